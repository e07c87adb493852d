"""LongBench: its datasets, which longbench.yaml holds as data, and the folder with its published files. No torch."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbench.config import paths
from hyperbench.config.catalog import ConfigError, check_name
from hyperbench.store.files import load_yaml

#: Parameters of the task: the folder, the dataset (of the file DATASET.jsonl), whether prompts get a chat template.
DATA, DATASET, CHAT = "data", "dataset", "chat"
#: Parameters that the file tells: the number of its examples, and its hash.
EXAMPLES, FILE_HASH = "examples", "sha256"
#: Packages that metrics need, by a part of their names.
_PACKAGES = {"rouge": "rouge", "_zh": "jieba"}
_FILE = Path(__file__).with_suffix(".yaml")
_HASH_DIGITS = 16
_LISTED = 12


@dataclass(frozen=True)
class Dataset:
    """A dataset of LongBench: its group and metric, and how its prompts and answers are made (see longbench.yaml)."""

    group: str
    metric: str
    answer_tokens: int
    prompt: str
    chat: bool = True
    first_line: bool = False
    stop_at_line: bool = False


@functools.cache
def _data() -> dict[str, Any]:
    data: dict[str, Any] = load_yaml(_FILE.read_text(encoding="utf-8"))
    return data


@functools.cache
def datasets() -> dict[str, Dataset]:
    """Every dataset by its name, in the order of the benchmark."""
    return {name: Dataset(**node) for name, node in _data()["datasets"].items()}


def groups() -> dict[str, str]:
    """The label of each group of datasets by its name, in the order of the benchmark."""
    return dict(_data()["groups"])


def chinese_punctuation() -> str:
    """The characters that are left out of Chinese answers, besides those of ASCII."""
    return str(_data()["chinese_punctuation"])


def found_in(data: Any) -> list[str]:
    """The datasets whose files a folder holds. Raises ConfigError, with what it holds, where that is none."""
    folder = _folder(data)
    found = [name for name in datasets() if (folder / f"{name}.jsonl").is_file()]
    if not found:
        inside = sorted(f"{path.name!r}"[1:-1] + "/" * path.is_dir() for path in folder.iterdir())
        there = ", ".join(inside[:_LISTED]) + ", ..." * (len(inside) > _LISTED)
        raise ConfigError(
            f"input.data={data} holds no file of LongBench (such as hotpotqa.jsonl); there is: {there or 'nothing'}"
        )
    return found


def params_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The hash of the file of a dataset, and the number of its examples, as parameters of a point.

    Raises ConfigError, one line, where there is no such dataset, file or package that its metric needs.
    """
    data, name = node.get(DATA), node.get(DATASET)
    known = datasets()
    if not isinstance(node.get(CHAT, True), bool):
        raise ConfigError(f"input.{CHAT}={node[CHAT]} must be true or false")
    if name is not None:
        check_name(f"input.{DATASET}", name, known)
    found = found_in(data)
    if name is None:
        raise ConfigError(f"input.{DATASET}=null: name one of {', '.join(found)}")
    if name not in found:
        raise ConfigError(f"input.{DATASET}={name}: {data} has no {name}.jsonl; there is: {', '.join(found)}")
    for part, package in _PACKAGES.items():
        if part in known[name].metric and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"input.{DATASET}={name} is scored with the package {package}, which is not installed: "
                "pip install 'hyperbench[lm]'"
            )
    digest, count = _told(*_state(data, name))
    if not count:
        raise ConfigError(f"input.{DATASET}={name}: {data}/{name}.jsonl is empty")
    return {FILE_HASH: digest, EXAMPLES: count}


def line(params: Mapping[str, Any], number: int) -> tuple[int, bytes]:
    """The line of an example, counted from 0, and its number in the file, from 1; blank lines are none.

    Raises ValueError if there is none, or the file is another one than when the run began.
    """
    data, name = params[DATA], params[DATASET]
    lines, digest = _lines(*_state(data, name))
    if digest != params[FILE_HASH]:
        raise ValueError(f"{name}.jsonl was changed since the run began")
    if number >= len(lines):
        raise ValueError(f"example {number} is beyond the end of {name}.jsonl, which has {len(lines)}")
    return lines[number]


def _folder(data: Any) -> Path:
    if not isinstance(data, str) or not data:
        raise ConfigError(f"input.{DATA}={data} names no folder; give data=DIR with files of LongBench (DATASET.jsonl)")
    folder = paths.folder(data)
    if not folder.is_dir():
        raise ConfigError(f"input.{DATA}={data}: there is no such folder")
    return folder


def _state(data: Any, name: str) -> tuple[Path, int, int, int]:
    """The file of a dataset, and numbers that differ once it has been changed. Raises ConfigError where it is none."""
    path = _folder(data) / f"{name}.jsonl"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"input.{DATASET}={name}: {data}/{name}.jsonl is no file")
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"input.{DATASET}={name}: {data}/{name}.jsonl cannot be read: {error.strerror}") from None
    return path, found.st_ino, found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _told(path: Path, *state: int) -> tuple[str, int]:
    """The hash of a file, and the number of its lines that are not blank."""
    digest, count = hashlib.sha256(), 0
    for _, text in _numbered(path):
        digest.update(text)
        count += bool(text.strip())
    return digest.hexdigest()[:_HASH_DIGITS], count


@functools.lru_cache(maxsize=1)
def _lines(path: Path, *state: int) -> tuple[list[tuple[int, bytes]], str]:
    """The lines of a file that are not blank, with their numbers, and its hash: those of one file at a time."""
    lines = list(_numbered(path))
    digest = hashlib.sha256(b"".join(text for _, text in lines)).hexdigest()[:_HASH_DIGITS]
    return [(number, text) for number, text in lines if text.strip()], digest


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from enumerate(file, start=1)
