"""Files of captured q, k and v: their headers, read and checked in plain Python. Nothing in them is ever executed.

A capture is a safetensors file: 8 bytes with the length of a header, the header (JSON: name, dtype, shape and place of
each tensor), the numbers. It holds `layers.L.q` (heads, rows, head_dim), `layers.L.k` and `layers.L.v` (kv_heads, rows,
head_dim) for some layers L; tensors of dtype I8 have a float32 `layers.L.q_scale` (heads, rows) beside them, by which
each row is multiplied. All other facts, such as the softmax scale, are in the header's `__metadata__`, as text.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hyperbench.config import paths
from hyperbench.config.catalog import ConfigError, check_name
from hyperbench.store.plain_data import short

#: A path that begins so names a capture that ships with hyperbench.
SHIPPED = "shipped:"
PARTS = ("q", "k", "v")
#: The first digits of the SHA-256 of a file, which tell one file from another.
HASH_DIGITS = 16
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
_MAX_HEADER_BYTES = 2**24
_CHUNK_BYTES = 2**20
_TENSOR = re.compile(r"layers\.(0|[1-9][0-9]{0,5})\.([qkv](?:_scale)?)")
_MAX_DIMENSIONS = 8
#: First bytes of what others write; as the length of a header they would be far too large.
_OTHERS = {b"PK\x03\x04": "an archive, such as torch.save writes", b"\x80": "a pickle", b"\x93NUMPY": "a file of numpy"}


@dataclass(frozen=True)
class Layer:
    """The sizes of a layer's tensors: q is (heads, rows, head_dim), k and v have kv_heads."""

    heads: int
    kv_heads: int
    rows: int
    head_dim: int


@dataclass(frozen=True)
class Capture:
    """A capture as its header tells it: where it lies, its layers by number, the text of its metadata."""

    file: Path
    layers: dict[int, Layer]
    metadata: dict[str, str]

    def scale(self, head_dim: int) -> float:
        """The softmax scale of the model; 1 / sqrt(head_dim) where the file does not tell it."""
        return float(self.metadata.get("scale", head_dim**-0.5))


def locate(path: str) -> Path:
    """The file that `input.path` names. Raises ConfigError on an unknown name after `shipped:`."""
    if not path.startswith(SHIPPED):
        return paths.folder(path)
    folder = Path(__file__).resolve().parents[1] / "measure" / "inputs" / "data"
    name = path.removeprefix(SHIPPED)
    check_name("input.path: the file that ships with hyperbench", name, sorted(f.name for f in folder.glob("*.safe*")))
    return folder / name


def read(path: str) -> Capture:
    """The header of a capture. Raises ConfigError, one line, if the file is missing or is no capture."""
    file = locate(path)
    return _read(str(file), path, *_state(file, path))


def sha256(path: str) -> str:
    """The first digits of the SHA-256 of a capture's file. Raises ConfigError if it cannot be read."""
    file = locate(path)
    return _sha256(str(file), path, *_state(file, path))


def _state(file: Path, path: str) -> tuple[int, ...]:
    """Numbers that differ once a file has been changed. Raises ConfigError unless it is a regular file."""
    try:
        found = file.stat()
    except (OSError, ValueError) as error:
        raise ConfigError(f"input.path={path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"input.path={path} is no file; name a .safetensors file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _sha256(file: str, path: str, *state: int) -> str:
    digest = hashlib.sha256()
    with _opened(file, path) as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()[:HASH_DIGITS]


@functools.lru_cache(maxsize=64)
def _read(file: str, path: str, *state: int) -> Capture:
    with _opened(file, path) as opened:
        header, data_bytes = _header(opened, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _damaged(path, "its __metadata__ is no mapping of texts")
    _check_scale(metadata.get("scale"), path)
    tensors: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, entry in header.items():
        if (match := _TENSOR.fullmatch(name)) is not None:
            number, part = match.groups()
            tensors.setdefault(int(number), {})[part] = _tensor(name, entry, data_bytes, path)
    if not tensors:
        raise ConfigError(f"input.path={path} holds no tensor layers.L.q; make a capture by: hyperbench capture")
    return Capture(Path(file), {number: _layer(number, tensors[number], path) for number in sorted(tensors)}, metadata)


def _opened(file: str, path: str) -> BinaryIO:
    try:
        # Not to wait for the other end, should it have become a pipe.
        return os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise ConfigError(f"input.path={path} cannot be read: {error.strerror}") from None


def _damaged(path: str, reason: str) -> ConfigError:
    return ConfigError(f"input.path={path} is no safetensors file: {reason}")


def _header(file: BinaryIO, path: str) -> tuple[dict[str, Any], int]:
    """The header of a file, and how many bytes of numbers follow it."""
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    if len(start) < 8:
        raise _damaged(path, f"it has {len(start)} bytes")
    length = int.from_bytes(start, "little")
    if length > _MAX_HEADER_BYTES:
        for first, kind in _OTHERS.items():
            if start.startswith(first):
                raise _damaged(path, f"it is {kind}, and no pickle is ever read")
        raise _damaged(path, f"its header would have {length:,} bytes; at most {_MAX_HEADER_BYTES:,} are read")
    if length > size - 8:
        raise _damaged(path, f"it ends within its header ({size:,} bytes, {length + 8:,} with the header)")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is no JSON") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no mapping")
    return header, size - 8 - length


def _tensor(name: str, entry: Any, data_bytes: int, path: str) -> tuple[str, tuple[int, ...]]:
    """The dtype and the shape of a tensor whose numbers are all in the file."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _damaged(path, f"its entry of {name} lacks dtype, shape or data_offsets") from None
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        allowed = ", ".join(_ITEM_BYTES)
        raise ConfigError(f"{name} of input.path={path} is of dtype {short(dtype)}; allowed: {allowed}")
    if len(shape) > _MAX_DIMENSIONS:
        raise _damaged(path, f"its entry of {name} has {len(shape)} dimensions")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise _damaged(path, f"its entry of {name} has other numbers than non-negative integers")
    if end > data_bytes:
        raise _damaged(path, f"{name} ends at byte {end:,} of its {data_bytes:,} bytes of numbers: it is cut short")
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _damaged(path, f"{name} of {dtype} {list(shape)} cannot take {end - begin:,} bytes")
    return dtype, shape


def _layer(number: int, tensors: dict[str, tuple[str, tuple[int, ...]]], path: str) -> Layer:
    """The sizes of a layer. Raises ConfigError unless it has q, k and v of shapes that go together."""
    where = f"input.path={path}"
    for part in PARTS:
        if part not in tensors:
            raise ConfigError(f"{where} has no tensor layers.{number}.{part}")
        dtype, shape = tensors[part]
        if len(shape) != 3 or 0 in shape:
            raise ConfigError(
                f"layers.{number}.{part} of {where} is {list(shape)}; it must be (heads, rows, head_dim), each above 0"
            )
        if dtype == "I8" and tensors.get(f"{part}_scale") != ("F32", shape[:2]):
            name = f"layers.{number}.{part}"
            raise ConfigError(f"{name} of {where} is of I8 and needs {name}_scale, F32 {list(shape[:2])}")
    (heads, rows, head_dim), key_shape, value_shape = (tensors[part][1] for part in PARTS)
    if key_shape != value_shape or key_shape[1:] != (rows, head_dim) or heads % key_shape[0]:
        raise ConfigError(
            f"layer {number} of {where} has q {[heads, rows, head_dim]}, k {list(key_shape)}, v {list(value_shape)};"
            " k and v must be alike, with the rows and the head_dim of q, and their heads must divide those of q"
        )
    return Layer(heads, key_shape[0], rows, head_dim)


def _check_scale(text: str | None, path: str) -> None:
    try:
        good = text is None or 0.0 < float(text) < math.inf
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"input.path={path} says scale={short(text)}; the softmax scale must be a positive number")
