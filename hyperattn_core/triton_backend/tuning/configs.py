"""Configurations of the attend kernel: a small set per architecture, and the choice among them.

The choice is measured once per GPU, dtype, head size, Triton version and kernel code, and kept in a small JSON file
(HYPERATTN_CACHE_DIR, else the user's cache folder). HYPERATTN_AUTOTUNE=0 takes the architecture's default instead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

#: Compute capabilities, ten times, that configurations are made for; another GPU takes the nearest older one's.
ARCHITECTURES = (80, 90)
_FORMAT = 1


@dataclass(frozen=True)
class AttendConfig:
    """Build options of the attend kernel.

    Attributes:
        tile_size: queries per program, the plan's tile.
        block_n: keys per step of the online softmax.
        num_warps: warps per program.
        num_stages: stages of the software pipeline that loads keys and values; the load of the indices that say which
            takes two of them, so that 5 hold two steps of keys and values.
        max_registers: registers per thread that the compiler may use, None for no limit.
    """

    tile_size: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __str__(self) -> str:
        limit = f", {self.max_registers} registers" if self.max_registers else ""
        return f"{self.tile_size}x{self.block_n}, {self.num_warps} warps, {self.num_stages} stages{limit}"


@dataclass(frozen=True)
class BackwardConfig:
    """Build options of the backward kernels.

    Attributes:
        block_m: most queries per step or program; a tile of the plan that is larger is taken in pieces.
        query_block_n: keys per step where a program owns queries.
        key_block_n: keys per program where a program owns keys.
        num_warps: warps per program.
        num_stages: stages of the software pipeline.
    """

    block_m: int
    query_block_n: int
    key_block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Choice:
    """A configuration and its origin: "tuned", "cached" or "default"."""

    config: AttendConfig
    origin: str


def candidates(arch: int, dtype: torch.dtype, head_dim: int) -> tuple[AttendConfig, ...]:
    """The configurations worth trying, the default first; none spills when compiled with the pinned Triton."""
    if dtype == torch.float32:  # Products without tensor cores: registers decide.
        if head_dim <= 64:
            return (AttendConfig(32, 32, 4, 2), AttendConfig(64, 32, 8, 2))
        return (AttendConfig(16, 16, 4, 1),)
    if head_dim <= 64:
        return (
            AttendConfig(64, 64, 4, 5, 168 if head_dim > 32 else None),
            AttendConfig(64, 64, 4, 4, 168),
            AttendConfig(64, 32, 4, 5, 128),
            AttendConfig(128, 64, 8, 5, 128 if arch >= 90 else None),
            AttendConfig(64, 64, 4, 2),
        )
    if head_dim <= 128:
        return (
            AttendConfig(64, 32, 4, 5),
            AttendConfig(64, 32, 4, 3, 168 if arch >= 90 else None),
            AttendConfig(64, 64, 4, 3),
            AttendConfig(128, 32, 8, 3),
        )
    return (AttendConfig(64, 32, 8, 3),) if arch >= 90 else (AttendConfig(32, 32, 4, 3),)


def default_config(arch: int, dtype: torch.dtype, head_dim: int) -> AttendConfig:
    """The configuration that is taken where nothing was measured."""
    return candidates(arch, dtype, head_dim)[0]


def default_backward_config(arch: int, dtype: torch.dtype, head_dim: int) -> BackwardConfig:
    """The configuration of the backward kernels; none spills when compiled with the pinned Triton."""
    if dtype == torch.float32:
        if head_dim <= 64:
            return BackwardConfig(16, 16, 16, 4, 1)
        if head_dim <= 128:
            return BackwardConfig(16, 16, 16, 8, 2) if arch >= 90 else BackwardConfig(16, 16, 16, 4, 1)
        return BackwardConfig(16, 16, 16, 8, 1 if arch >= 90 else 2)
    if head_dim <= 64:
        return BackwardConfig(64, 64, 64 if arch >= 90 else 32, 4, 3)
    if head_dim <= 128:
        return BackwardConfig(64, 32, 32, 8, 2)
    return BackwardConfig(32, 16, 16, 8, 2) if arch >= 90 else BackwardConfig(16, 16, 16, 4, 2)


def choose(
    arch: int,
    dtype: torch.dtype,
    head_dim: int,
    *,
    device_name: str,
    triton_version: str,
    measure: Callable[[AttendConfig], float] | None,
    cache: Path | None,
) -> Choice:
    """The fastest candidate as measured before, or now, or the default where nothing may be measured.

    Args:
        arch: one of ARCHITECTURES.
        dtype: of q, k and v.
        head_dim: the larger of D and Dv.
        device_name: the GPU's name; a choice holds for that GPU alone.
        triton_version: a choice holds for that version alone.
        measure: milliseconds of a configuration, or infinity where it cannot run; None: measure nothing.
        cache: the file of earlier choices, None for none.
    """
    options = candidates(arch, dtype, head_dim)
    key = "/".join((device_name, triton_version, str(dtype).removeprefix("torch."), str(head_dim), _fingerprint()))
    known = _read(cache) if cache is not None else {}
    for option in options:
        if known.get(key) == str(option):
            return Choice(option, "cached")
    if measure is None or len(options) == 1:
        return Choice(options[0], "default")
    times = {option: measure(option) for option in options}
    best = min(options, key=times.__getitem__)
    if cache is not None and times[best] < float("inf"):
        _write(cache, {**known, key: str(best)})
    return Choice(best, "tuned")


def cache_file() -> Path:
    """The file of choices."""
    folder = os.environ.get("HYPERATTN_CACHE_DIR")
    if folder is None:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hyperattn")
    return Path(folder).expanduser() / "attend.json"


def _fingerprint() -> str:
    """Hash of the kernel's code and the candidates: another kernel is another choice."""
    digest = hashlib.sha256(str(_FORMAT).encode())
    kernels = Path(__file__).parents[1] / "kernels"
    for path in (kernels / "attend.py", kernels / "common.py", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _read(path: Path) -> dict[str, str]:
    """Earlier choices; a file that is not there or not readable holds none."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}


def _write(path: Path, known: dict[str, str]) -> None:
    """Replace the file as a whole; a folder that cannot be written to costs a later process a measurement, no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(known, file, indent=1, sort_keys=True)
        Path(file.name).replace(path)
    except OSError:
        return


def with_tile(config: AttendConfig, tile_size: int) -> AttendConfig:
    """The configuration for a plan that was cut into tiles of another size."""
    if tile_size == config.tile_size:
        return config
    narrow = tile_size < 64 and config.num_warps > 4
    return dataclasses.replace(config, tile_size=tile_size, num_warps=4 if narrow else config.num_warps)
