"""Choice among the configurations of the attend kernel.

It is measured once per GPU, dtype, head size, Triton version and kernel code, and kept in a small JSON file
(HYPERATTN_CACHE_DIR, else the user's cache folder). HYPERATTN_AUTOTUNE=0 takes the architecture's default instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hyperattn_core.triton_backend.tuning import configs
from hyperattn_core.triton_backend.tuning.configs import AttendConfig, candidates

_FORMAT = 1


@dataclass(frozen=True)
class Choice:
    """A configuration and its origin: "tuned", "cached" or "default"."""

    config: AttendConfig
    origin: str


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
    for path in (kernels / "attend.py", kernels / "common.py", Path(configs.__file__)):
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
