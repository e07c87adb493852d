"""Choice among the configurations of a kernel.

It is measured once per GPU, dtype, head size, Triton version and kernel code, and kept in a small JSON file
(HYPERATTN_CACHE_DIR, else the user's cache folder). HYPERATTN_AUTOTUNE=0 takes the architecture's default instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from hyperattn_core.triton_backend.tuning import configs

_FORMAT = 2
#: Relative difference (Frobenius norm) up to which two configurations have the same result. Both add up the same
#: products in float32 and round to the inputs' dtype, in bfloat16 by 0.002; what a wrong one gives is far off.
TOLERANCE = 1e-2

Config = TypeVar("Config")


@dataclass(frozen=True)
class Trial:
    """The time and the results of one configuration, in milliseconds."""

    milliseconds: float
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Choice(Generic[Config]):
    """A configuration, its origin ("tuned", "cached" or "default"), and in a line each why others did not serve."""

    config: Config
    origin: str
    refused: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.config} ({'; '.join((self.origin, *self.refused))})"


def choose(
    options: Sequence[Config], key: str, *, trial: Callable[[Config], Trial | str] | None, cache: Path | None
) -> Choice[Config]:
    """The fastest candidate as measured before, or now, or the default where nothing may be measured.

    A candidate is taken only if its results are those of the most candidates, of the default where opinions are equal.

    Args:
        options: the candidates, the default first.
        key: what a choice holds for: the kernel, the GPU, Triton's version, the inputs.
        trial: run a configuration, or say in a line why it does not run; None: measure nothing.
        cache: the file of earlier choices, None for none.
    """
    key = f"{key}/{_fingerprint()}"
    known = _read(cache) if cache is not None else {}
    for option in options:
        if known.get(key) == str(option):
            return Choice(option, "cached")
    if trial is None or len(options) == 1:
        return Choice(options[0], "default")
    found = {option: trial(option) for option in options}
    trials = {option: one for option, one in found.items() if isinstance(one, Trial)}
    agree = {one: [other for other in trials if _agree(trials[one], trials[other])] for one in trials}
    right = max(agree.values(), key=len, default=[])
    refused = tuple(
        f"not {option}: {found[option] if option not in trials else 'its results are not those of the others'}"
        for option in options
        if option not in right
    )
    if not right:
        return Choice(options[0], "default", refused)
    best = min(right, key=lambda option: trials[option].milliseconds)
    if cache is not None:
        _write(cache, {**known, key: str(best)})
    return Choice(best, "tuned", refused)


def _agree(one: Trial, other: Trial) -> bool:
    """True if all results are the same within TOLERANCE; a NaN is not."""
    return all(
        bool((x.double() - y.double()).norm() <= TOLERANCE * x.double().norm())
        for x, y in zip(one.outputs, other.outputs, strict=True)
    )


def cache_file() -> Path:
    """The file of choices."""
    folder = os.environ.get("HYPERATTN_CACHE_DIR")
    if folder is None:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "hyperattn")
    return Path(folder).expanduser() / "kernels.json"


def _fingerprint() -> str:
    """Hash of the kernels' code and the candidates: another kernel is another choice."""
    digest = hashlib.sha256(str(_FORMAT).encode())
    kernels = Path(__file__).parents[1] / "kernels"
    for path in (*sorted(kernels.glob("*.py")), Path(configs.__file__)):
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
