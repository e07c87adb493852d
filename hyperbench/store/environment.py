"""The keys of environment.json: the type of each, the values it may have, and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_GIB = 2.0**30


@dataclass(frozen=True)
class Key:
    """A key of environment.json: its type, what a value must satisfy, and how it is shown."""

    kind: type
    check: Callable[[Any], bool] = lambda value: True
    show: Callable[[Any], str] = str


def _filled(value: str) -> bool:
    return bool(value.strip())


def _positive(value: float) -> bool:
    return value > 0


def _gib(value: int) -> str:
    return f"{value / _GIB:.1f} GiB"


def _pairs(value: Mapping[str, object]) -> str:
    return " ".join(f"{name}={text}" for name, text in value.items())


#: Every key there is; a value may be null where the machine does not tell.
KEYS: dict[str, Key] = {
    "machine": Key(str, _filled),
    "cpu_model": Key(str, _filled),
    "cpu_count": Key(int, _positive),
    "affinity": Key(str, _filled),
    "threads": Key(int, _positive),
    "parallel": Key(dict, show=_pairs),
    "memory_total_bytes": Key(int, _positive, _gib),
    "gpu_name": Key(str, _filled),
    "gpu_count": Key(int, lambda value: value >= 0),
    "gpu_memory_bytes": Key(int, _positive, _gib),
    "driver": Key(str, _filled),
    "cuda": Key(str, _filled),
    "cudnn": Key(str, _filled),
    "torch": Key(str, _filled),
    "triton": Key(str, _filled),
    "kernels": Key(dict, show=_pairs),
    "flash_attn": Key(str, _filled),
    "python": Key(str, _filled),
    "os": Key(str, _filled),
    "hyperbench": Key(str, _filled),
    "commit": Key(str, lambda value: all(c in "0123456789abcdef" for c in value)),
    "dirty": Key(bool),
    "code": Key(str, _filled),
    "env_vars": Key(dict, show=_pairs),
    "aa_floor": Key(float, lambda value: 0 <= value < math.inf, lambda value: f"{value:.2%}"),
    "timer_resolution_ns": Key(int, lambda value: value >= 0, lambda value: f"{value:,} ns"),
    "flush_ratio": Key(float, _positive, lambda value: f"{value:.2f}"),
    "device": Key(str, _filled),
    "device_reason": Key(str),
    "config_hash": Key(str, _filled),
    "run_id": Key(str, _filled),
    "started": Key(str, _filled),
    "schema_version": Key(int, _positive),
}

#: Keys that must agree for a run to be resumed: numbers of two machines, libraries or states of the code never stand in
#: one table. The commit is not among them: `code` says whether what is measured has changed.
RESUME_KEYS = (
    "machine", "cpu_model", "gpu_name", "threads", "code", "torch", "triton", "flash_attn", "cuda", "cudnn", "driver",
    "python", "os", "affinity", "env_vars",
)  # fmt: skip
_SHOWN_CHARS = 40


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


def changes(there: Mapping[str, Any], here: Mapping[str, Any], keys: Iterable[str] = RESUME_KEYS) -> list[str]:
    """Differences of two environments as short texts; a key that only one of them has is no difference."""

    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."

    found = []
    for key in keys:
        if key not in there or key not in here or there[key] == here[key]:
            continue
        old, new, names = there[key], here[key], [key]
        if isinstance(old, dict) and isinstance(new, dict):
            # Only what differs: two long dicts would look alike in a line.
            names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        else:
            old, new = {key: old}, {key: new}
        found += [f"{name} ({short(old.get(name, "unset"))} there, {short(new.get(name, "unset"))} here)" for name in names]
    return found


def shown(values: Mapping[str, Any]) -> dict[str, str]:
    """Every known value as text for people; a null is left out."""
    return {name: key.show(values[name]) for name, key in KEYS.items() if values.get(name) is not None}
