"""Which origin (code, libraries, driver, settings) each round of a run was measured under. No torch, no pandas.

A run that is resumed on the same machine, but on another commit or another PyTorch, goes on in new rounds. Its
environment.json stays that of the first origin; origins.json lists the later ones, each with its first round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbench.store import environment

FILE = "origins.json"
#: Keys that must agree for a run to go on at all: milliseconds of two machines are not comparable.
MACHINE_KEYS = ("machine", "cpu_model", "gpu_name", "threads")
#: Keys of which a change begins a new origin.
ORIGIN_KEYS = (
    "commit", "code", "torch", "triton", "flash_attn", "cuda", "cudnn", "driver", "python", "os", "affinity",
    "env_vars",
)  # fmt: skip
_SHOWN_CHARS = 40


@dataclass(frozen=True)
class Origin:
    """The environment that the rounds from `first_round` on were measured under, up to the next origin's first."""

    first_round: int
    environment: dict[str, Any]


def read(run_dir: Path, first: Mapping[str, Any]) -> tuple[Origin, ...]:
    """All origins of a run in order; `first` is its environment.json. Raises ValueError, one line, on damage."""
    origins = [Origin(0, dict(first))]
    path = Path(run_dir) / FILE
    if not path.is_file():
        return tuple(origins)
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        for item in listed if isinstance(listed, list) else [None]:
            origins.append(_origin(item, origins[-1].first_round))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    return tuple(origins)


def to_text(origins: Sequence[Origin]) -> str:
    """What origins.json holds: all but the first."""
    later = [{"first_round": origin.first_round, "environment": origin.environment} for origin in origins[1:]]
    return json.dumps(later, indent=2) + "\n"


def of_round(origins: Sequence[Origin], round_: int) -> Origin:
    """The origin of a round: the last one that begins at it or before."""
    return next(origin for origin in reversed(origins) if origin.first_round <= round_)


def changes(there: Mapping[str, Any], here: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """What differs between two environments, as short texts; a key that only one of them has is no difference."""
    differing = (k for k in keys if k in there and k in here and there[k] != here[k])
    return [f"{key} ({_short(there[key])} there, {_short(here[key])} here)" for key in differing]


def described(origins: Sequence[Origin], rounds: Sequence[int]) -> str:
    """The origins of these rounds in one line for people, "" where there is one: which rounds, and what changed."""
    used = [origin for origin in origins if any(of_round(origins, round_) is origin for round_ in rounds)]
    if len(used) < 2:
        return ""
    parts = []
    for before, origin in zip([None, *used], used, strict=False):
        own = sorted({round_ for round_ in rounds if of_round(origins, round_) is origin})
        listed = f"round {own[0]}" if len(own) == 1 else f"rounds {own[0]} to {own[-1]}"
        commit = str(origin.environment.get("commit") or "")[:10] or "commit not recorded"
        keys = [k for k in ORIGIN_KEYS if before and before.environment.get(k) != origin.environment.get(k)]
        parts.append(f"{listed} at {commit}" + (f" (other {', '.join(keys)})" if keys else ""))
    return f"measured under {len(used)} origins: {'; '.join(parts)}"


def _origin(item: Any, at_least: int) -> Origin:
    if not isinstance(item, dict) or item.keys() != {"first_round", "environment"}:
        raise ValueError("it must be a list of origins, each with first_round and environment")
    first, found = item["first_round"], item["environment"]
    if isinstance(first, bool) or not isinstance(first, int) or first < at_least:
        raise ValueError(f"first_round={_short(first)} must be an integer of at least {at_least}")
    if not isinstance(found, dict):
        raise ValueError("the environment of an origin must be a mapping")
    environment.checked({name: value for name, value in found.items() if name in environment.KEYS})
    return Origin(first, found)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."
