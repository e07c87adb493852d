"""The keys of environment.json: the type of each, the values it may have, and how it is shown."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Key:
    """A key of environment.json: its type, what a value must satisfy, and how it is shown."""

    kind: type
    check: Callable[[Any], bool] = lambda value: True
    show: Callable[[Any], str] = str


_TEXT = Key(str, lambda value: bool(value.strip()))
_COUNT = Key(int, lambda value: value > 0)
_BYTES = Key(int, lambda value: value > 0, lambda value: f"{value / 2**30:.1f} GiB")
_PAIRS = Key(dict, show=lambda value: " ".join(f"{name}={text}" for name, text in value.items()))
#: Every key there is; a value may be null where the machine does not tell.
KEYS: dict[str, Key] = {
    "machine": _TEXT, "cpu_model": _TEXT, "cpu_count": _COUNT, "affinity": _TEXT, "threads": _COUNT, "parallel": _PAIRS,
    "memory_total_bytes": _BYTES,
    "gpu_name": _TEXT, "gpu_count": Key(int, lambda value: value >= 0), "gpu_memory_bytes": _BYTES,
    "driver": _TEXT, "cuda": _TEXT, "cudnn": _TEXT, "torch": _TEXT, "triton": _TEXT, "kernels": _PAIRS,
    "flash_attn": _TEXT, "python": _TEXT, "os": _TEXT, "hyperbench": _TEXT,
    "commit": Key(str, lambda value: all(c in "0123456789abcdef" for c in value)),
    "dirty": Key(bool), "code": _TEXT, "env_vars": _PAIRS,
    "aa_floor": Key(float, lambda value: 0 <= value < math.inf, lambda value: f"{value:.2%}"),
    "timer_resolution_ns": Key(int, lambda value: value >= 0, lambda value: f"{value:,} ns"),
    "flush_ratio": Key(float, lambda value: value > 0, lambda value: f"{value:.2f}"),
    "device": _TEXT, "device_reason": Key(str),
    "config_hash": _TEXT, "run_id": _TEXT, "started": _TEXT, "schema_version": _COUNT,
}  # fmt: skip

#: Keys that must agree for a run to be resumed: numbers of two machines, libraries or states of the code never stand in
#: one table. The commit is not among them: `code` says whether what is measured has changed.
RESUME_KEYS = (
    "machine", "cpu_model", "gpu_name", "threads", "code", "torch", "triton", "flash_attn", "cuda", "cudnn", "driver",
    "python", "os", "affinity", "env_vars",
)  # fmt: skip
_SHOWN_CHARS = 80
#: Key of the checksum of all others.
CHECKSUM = "crc32"


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, if each is null or of its key's type and allowed; else ValueError, naming key and value."""
    for name, value in values.items():
        key = KEYS.get(name)
        if key is None:
            raise ValueError(f"environment key {name!r} is unknown; allowed: {', '.join(KEYS)}")
        right_type = isinstance(value, key.kind) and (key.kind is bool or not isinstance(value, bool))
        if value is not None and not (right_type and key.check(value)):
            raise ValueError(f"environment key {name}={value!r} must be a valid {key.kind.__name__}")
    return dict(values)


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a checksum of them all as a last key."""
    return {**values, CHECKSUM: _checksum(values)}


def unsealed(values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The values without their checksum, and what is wrong with it, "" if nothing is; files of version 1 have none."""
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    if CHECKSUM not in values:
        return rest, "" if rest.get("schema_version") == 1 else "it has no checksum"
    return rest, "" if values[CHECKSUM] == _checksum(rest) else "its checksum is another"


def _checksum(values: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(dict(values), sort_keys=True).encode()):08x}"


def changes(there: Mapping[str, Any], here: Mapping[str, Any], keys: Iterable[str] = RESUME_KEYS) -> list[str]:
    """Differences of two environments as short texts; a key that only one of them has is no difference."""

    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."

    found = []
    for key in keys:
        if key not in there or key not in here or there[key] == here[key]:
            continue
        old, new = there[key], here[key]
        if isinstance(old, dict) and isinstance(new, dict):
            # Only the entries that differ: two long dicts, cut short, would look alike.
            names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
            old, new = (" ".join(f"{n}={side.get(n, 'unset')}" for n in names) for side in (old, new))
        found.append(f"{key} ({short(old)} there, {short(new)} here)")
    return found


def shown(values: Mapping[str, Any]) -> dict[str, str]:
    """Every known value as text for people; a null is left out."""
    return {name: key.show(values[name]) for name, key in KEYS.items() if values.get(name) is not None}
