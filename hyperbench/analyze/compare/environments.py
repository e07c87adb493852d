"""What differs between the origins of two runs: machine, libraries, code, settings and protocol, a line for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hyperbench.analyze.format import printable, short
from hyperbench.store import environment
from hyperbench.store.schema import Timing

#: Keys of environment.json that change what a number means; the rest (when, which folder) differs between any two runs.
_KEYS = (
    "machine", "device", "cpu_model", "cpu_count", "threads", "gpu_name", "driver", "cuda", "torch", "triton",
    "kernels", "flash_attn", "python", "hyperbench", "commit", "code", "env_vars",
)  # fmt: skip
#: Whether a graph is replayed, gradients add up, the load lasts, and the same values come again and again.
_TIMING_SETTINGS = {"cuda_graph": False, "as_paper": False, "fixed_time": False, "input_copies": 1}
_NOT_RECORDED = "not recorded"
_SHOWN_CHARS = 60


def environment_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, and which side was measured from uncommitted code."""
    shown = [environment.shown({name: env.get(name) for name in _KEYS}) for env in (a, b)]
    lines = [_line(name, *(s.get(name, _NOT_RECORDED) for s in shown)) for name in _KEYS if a.get(name) != b.get(name)]
    return lines + [
        f"{side} was measured with uncommitted changes" for side, env in (("A", a), ("B", b)) if env.get("dirty")
    ]


def protocol_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between the protocols of two configurations, setting by setting."""
    nodes = [node if isinstance(node, dict) else {} for node in (a.get("protocol"), b.get("protocol"))]
    names = [name for name in dict.fromkeys([*nodes[0], *nodes[1]]) if name != "description"]
    return [
        _line(f"protocol.{name}", *(node.get(name, _NOT_RECORDED) for node in nodes))
        for name in names
        if nodes[0].get(name) != nodes[1].get(name)
    ]


def timing_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a protocol that change what is timed, whatever the protocol's name; defaults where they lack."""
    protocol = config.get("protocol")
    node = protocol if isinstance(protocol, dict) else {}
    return {name: node.get(name, default) for name, default in _TIMING_SETTINGS.items()}


def implementation_differences(a: Iterable[Timing], b: Iterable[Timing]) -> list[str]:
    """The methods that two runs ran by different kernels or packages."""
    found = [_implementations(timings) for timings in (a, b)]
    shared = [method for method in found[0] if method in found[1] and found[0][method] != found[1][method]]
    return [_line(f"implementation of {m}", *(", ".join(sorted(side[m])) for side in found)) for m in shared]


def _implementations(timings: Iterable[Timing]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for timing in timings:
        if timing.implementation:
            found.setdefault(timing.point.method, set()).add(timing.implementation)
    return found


def _line(name: object, in_a: object, in_b: object) -> str:
    a, b = (short(printable(value), _SHOWN_CHARS) for value in (in_a, in_b))
    return f"{short(printable(name), _SHOWN_CHARS)} differs: {a} in A, {b} in B"
