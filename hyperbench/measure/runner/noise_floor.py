"""How much two processes differ that do the same: the A/A floor, measured by a few fresh ones and kept for later runs.

No torch here: the processes are probes, and who starts them is passed in.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbench.measure.cpu_load import CpuTimes, busy_warning, read_cpu_times
from hyperbench.stats.samples import median
from hyperbench.store.files import atomic_write_text
from hyperbench.store.provenance import available_cpus, cpu_label, relevant_env

Ask = Callable[[dict[str, Any], Mapping[str, str]], dict[str, Any]]
#: Fresh processes of which each gives one median of the same call.
PROCESSES = 4
#: What was measured is taken again for so long, on the same machine with the same libraries and settings.
_KEPT_S = 7 * 24 * 3600.0
#: Keys of environment.json that this module gives.
KEYS = ("aa_floor", "timer_resolution_ns", "flush_ratio")


def aa_floor(medians_ms: list[float]) -> float:
    """The A/A floor: the largest relative deviation of a process's median from the median of all processes.

    A difference of two measurements that is smaller than this may come from the processes alone. Raises ValueError
    with fewer than two processes.
    """
    if len(medians_ms) < 2:
        raise ValueError("an A/A floor needs at least two processes")
    centre = median(medians_ms)
    return max(abs(value / centre - 1.0) for value in medians_ms) if centre > 0 else 0.0


@dataclass(frozen=True)
class Noise:
    """KEYS as they were measured, and whether the machine was quiet meanwhile: else they are not kept for others."""

    facts: dict[str, Any]
    quiet: bool


def measure_noise(
    ask: Ask, device: str, env: Mapping[str, str], cpu_times: Callable[[], CpuTimes] = read_cpu_times
) -> Noise:
    """The noise, measured: each of PROCESSES probes times the same small call in a fresh process.

    Raises whatever `ask` raises.
    """
    begun = cpu_times()
    answers = [ask(_request(device, full=index == 0), env)["noise"] for index in range(PROCESSES)]
    first = answers[0]
    facts = {
        "aa_floor": aa_floor([answer["median_ms"] for answer in answers]),
        "timer_resolution_ns": first["resolution_ns"],
        "flush_ratio": first["flush_ratio"],
    }
    return Noise(facts, quiet=not busy_warning(begun, cpu_times(), available_cpus()))


def noise_of(
    origin: Mapping[str, Any],
    measure: Callable[[], Noise],
    path: Path | None = None,
    now_s: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """KEYS from the cache, if it holds what `origin` (machine, libraries, settings) gave not long ago; else measured.

    A cache that is damaged or cannot be written does no harm.
    """
    file = path or cache_file()
    key = json.dumps(dict(origin), sort_keys=True, default=str)
    kept = _read(file)
    entry: Any = kept.get(key)
    if _is_good(entry) and 0 <= now_s() - entry["measured_s"] < _KEPT_S:
        ratio = entry["flush_ratio"]
        return {
            "aa_floor": float(entry["aa_floor"]),
            "timer_resolution_ns": int(entry["timer_resolution_ns"]),
            "flush_ratio": None if ratio is None else float(ratio),
        }
    found = measure()
    store_noise(origin, found, file, now_s)
    return found.facts


def store_noise(
    origin: Mapping[str, Any],
    found: Noise,
    path: Path | None = None,
    now_s: Callable[[], float] = time.time,
) -> str:
    """Keep what was measured on a quiet machine for later runs; why it is not kept, "" where it is."""
    if not found.quiet:
        return "other programs used the cores meanwhile"
    file = path or cache_file()
    key = json.dumps(dict(origin), sort_keys=True, default=str)
    entries = {name: value for name, value in _read(file).items() if _is_good(value)}
    entries[key] = {**{name: found.facts[name] for name in KEYS}, "measured_s": now_s()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(entries, indent=2) + "\n")
    except OSError as error:
        return f"cannot write {file}: {error.strerror}"
    return ""


def cache_file(env: Mapping[str, str] = os.environ) -> Path:
    """Where this user's measured noise is kept."""
    base = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "hyperbench" / "noise.json"


def origin_of(facts: Mapping[str, Any], device: str, env: Mapping[str, str], threads: int | None) -> dict[str, Any]:
    """What the noise of a machine depends on, as far as it is known beforehand."""
    return {
        "device": device,
        "cpu": cpu_label(None, available_cpus()),
        "node": os.uname().nodename,
        "gpu": facts.get("gpu_name") if device == "cuda" else None,
        "torch": facts["torch"],
        "threads": threads or facts["threads"],
        "env": relevant_env({**os.environ, **env}),
    }


def _request(device: str, *, full: bool) -> dict[str, Any]:
    return {"methods": [], "inputs": [], "noise": {"device": device, "full": full}}


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_good(entry: Any) -> bool:
    """Whether an entry of the cache is one that was written here."""

    def number(name: str, *, or_null: bool) -> bool:
        value = entry.get(name)
        if value is None:
            return or_null
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e300

    return (
        isinstance(entry, dict)
        and number("aa_floor", or_null=False)
        and number("timer_resolution_ns", or_null=False)
        and number("flush_ratio", or_null=True)
        and number("measured_s", or_null=False)
    )
