"""One of two runs of a comparison, or a method of it: reading, matching of points, differences of origin."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from hyperbench.analyze.format import differing, printable, short
from hyperbench.analyze.view import MAIN_ERROR
from hyperbench.config.catalog import nearest
from hyperbench.stats.samples import median
from hyperbench.store import environment
from hyperbench.store.journal import each_record
from hyperbench.store.run_folder import JOURNAL, check_run_folder, read_config, read_environment
from hyperbench.store.schema import ErrorRow, Pass, Point, Status, Timing
from hyperbench.store.tables import CONDITIONS

#: Keys of environment.json that change what a number means; the rest (when, which folder) differs between any two runs.
_ENVIRONMENT_KEYS = (
    "machine", "device", "cpu_model", "cpu_count", "threads", "gpu_name", "driver", "cuda", "torch", "triton",
    "kernels", "flash_attn", "python", "hyperbench", "commit", "code", "env_vars",
)  # fmt: skip
#: Settings of a protocol that change what is timed: whether a graph is replayed, gradients add up, the load lasts, and
#: the same values come again and again. Their defaults stand in for what a configuration lacks.
_TIMING_SETTINGS = {"cuda_graph": False, "as_paper": False, "fixed_time": False, "input_copies": 1}
#: Two runs of one configuration may differ in these: where they ran, and where the method's code lies.
_PLACE = ("device", "target")
#: Two methods on one input may differ in these.
_METHOD = ("method", "target", "hyper", "device")
_NOT_RECORDED = "not recorded"
_SHOWN_CHARS = 60


#: The run and the number of a round: a folder may hold journals of several runs.
RoundKey = tuple[str, int]


class RoundTime(NamedTuple):
    """One pass of a point in one round, without its samples; `median_ms` is None where it has no time."""

    method: str
    protocol: str
    status: Status
    message: str
    implementation: str
    flags: tuple[str, ...]
    median_ms: float | None
    conditions: Mapping[str, Any]

    @classmethod
    def of(cls, timing: Timing) -> RoundTime:
        """The part of a timing that a comparison needs."""
        samples = timing.samples_ms
        return cls(
            timing.point.method, timing.protocol, timing.status, timing.message, timing.implementation, timing.flags,
            median(samples) if samples else None, {name: timing.conditions.get(name) for name in CONDITIONS},
        )  # fmt: skip


class ErrorRange(NamedTuple):
    """The main error of a point: the median over its draws, and the ends of the range of these and their intervals."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, rows: Iterable[ErrorRow]) -> ErrorRange | None:
        """The range of some draws; None unless each has a finite error, of which there is one at least."""
        listed = [(row.value, row.low, row.high) for row in rows]
        values = [value for value, _, _ in listed if value is not None and math.isfinite(value)]
        if not values or len(values) < len(listed):
            return None
        ends = [(value if low is None else low, value if high is None else high) for value, low, high in listed]
        lows, highs = [low for low, _ in ends if low is not None], [high for _, high in ends if high is not None]
        return cls(median(values), min(lows), max(highs))


@dataclass(frozen=True)
class ComparedRun:
    """A run, or one method of it; `timings` by point_id, pass, and run and round, of which the last written counts.

    `errors` are by point_id, as far as they are known.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    timings: dict[str, dict[Pass, dict[RoundKey, RoundTime]]]
    points: tuple[Point, ...]
    method: str | None = None
    errors: Mapping[str, ErrorRange] = field(default_factory=dict)

    @property
    def aa_floor(self) -> float | None:
        """The A/A floor: how far two measurements of one call differ here, relative; None where it was not measured."""
        return self.environment.get("aa_floor")

    @property
    def protocols(self) -> list[str]:
        """The protocols that the timings were made by, in alphabetical order."""
        return sorted({t.protocol for t in self.all_timings()})

    @property
    def num_rounds(self) -> int:
        """The number of different rounds."""
        return len({key for passes in self.timings.values() for rounds in passes.values() for key in rounds})

    @property
    def timing_settings(self) -> dict[str, Any]:
        """The settings of the protocol that change what is timed, whatever the protocol's name."""
        node = _protocol(self)
        return {name: node.get(name, default) for name, default in _TIMING_SETTINGS.items()}

    @property
    def differing(self) -> list[str]:
        """The conditions that differ within the run, a line each."""
        counts: dict[str, Counter[Any]] = {
            name: Counter(value for t in self.all_timings() if (value := t.conditions.get(name)) is not None)
            for name in CONDITIONS
        }
        keys = (key for passes in self.timings.values() for rounds in passes.values() for key in rounds)
        own = self.environment.get("run_id") or self.path.resolve().name
        return differing({"run_id": Counter(run_id or own for run_id, _ in keys), **counts})

    def of(self, method: str | None) -> ComparedRun:
        """A method of the run, or all of it. Raises ValueError on one that it lacks."""
        if method is None:
            return self
        names = dict.fromkeys(point.method for point in self.points)
        if method not in names:
            allowed = f"allowed: {', '.join(names)}" if names else "it holds no timing yet"
            raise ValueError(f"method {method!r} is none of run {self.path}; {allowed}{nearest(method, names)}")
        points = tuple(point for point in self.points if point.method == method)
        return replace(
            self, timings={p.point_id: self.timings[p.point_id] for p in points}, points=points, method=method
        )

    def all_timings(self) -> Iterable[RoundTime]:
        """Every timing, in the order of the journal."""
        return (t for passes in self.timings.values() for rounds in passes.values() for t in rounds.values())


def read_run(path: Path) -> ComparedRun:
    """Read a run. Raises ValueError on a folder that is no run's or is damaged."""
    folder = check_run_folder(path)
    config, env = read_config(folder), read_environment(folder)
    timings: dict[str, dict[Pass, dict[RoundKey, RoundTime]]] = {}
    points: dict[str, Point] = {}
    draws: dict[str, dict[tuple[str, int], ErrorRow]] = {}
    for run_id, record in each_record(folder / JOURNAL, str(env.get("run_id") or "")):
        if isinstance(record, Timing) and not record.stage:
            points.setdefault(record.point.point_id, record.point)
            rounds = timings.setdefault(record.point.point_id, {}).setdefault(record.pass_, {})
            rounds[run_id, record.round] = RoundTime.of(record)
        elif isinstance(record, ErrorRow) and record.metric == MAIN_ERROR:
            draws.setdefault(record.point.point_id, {})[run_id, record.seed] = record
    errors = {point_id: found for point_id, rows in draws.items() if (found := ErrorRange.of(rows.values()))}
    return ComparedRun(folder, config, env, timings, tuple(points.values()), errors=errors)


#: A point of A and its partner of B; None stands for a partner that is not there.
Pair = tuple[Point | None, Point | None]


def match_runs(a: Sequence[Point], b: Sequence[Point]) -> list[Pair]:
    """Match the points of two runs: by point_id, and what is left by configuration without the device.

    A configuration that a run holds twice (on two devices) is matched by point_id alone.
    """
    partner = {point.point_id: point for point in b}
    found = {point.point_id: partner[point.point_id] for point in a if point.point_id in partner}
    left_a, left_b = (_without([p for p in points if p.point_id not in found], _PLACE) for points in (a, b))
    for key, points in left_a.items():
        if len(points) == len(left_b.get(key, [])) == 1:
            found[points[0].point_id] = left_b[key][0]
    return _with_rest(a, b, [(p, found[p.point_id]) for p in a if p.point_id in found])


def match_methods(a: Sequence[Point], b: Sequence[Point]) -> list[Pair]:
    """Match the points of two methods on the same input, shape and masking.

    Where a method has several configurations there, each meets the other's only one, or the one of equal parameters.
    """
    groups = _without(b, _METHOD)
    found = []
    for key, points in _without(a, _METHOD).items():
        others = groups.get(key, [])
        alike = len(points) > 1 and len(others) > 1
        found += [(x, y) for x in points for y in others if not alike or x.hyper == y.hyper]
    ranks = {point.point_id: rank for rank, point in enumerate(a)}
    return _with_rest(a, b, sorted(found, key=lambda pair: ranks[pair[0].point_id]))


def differences(a: ComparedRun, b: ComparedRun) -> list[str]:
    """List what differs between two runs in environment, protocol and kernels, and what was measured uncommitted."""
    shown = [environment.shown({k: run.environment.get(k) for k in _ENVIRONMENT_KEYS}) for run in (a, b)]
    protocols = [_protocol(run) for run in (a, b)]
    settings = [name for name in dict.fromkeys([*protocols[0], *protocols[1]]) if name != "description"]
    kernels = [_implementations(run.all_timings()) for run in (a, b)]
    shared = [method for method in kernels[0] if method in kernels[1] and kernels[0][method] != kernels[1][method]]
    return [
        *(
            _difference(key, *(env.get(key, _NOT_RECORDED) for env in shown))
            for key in _ENVIRONMENT_KEYS
            if a.environment.get(key) != b.environment.get(key)
        ),
        *(
            f"{name} was measured with uncommitted changes"
            for name, run in (("A", a), ("B", b))
            if run.environment.get("dirty")
        ),
        *(
            _difference(f"protocol.{name}", *(node.get(name, _NOT_RECORDED) for node in protocols))
            for name in settings
            if protocols[0].get(name) != protocols[1].get(name)
        ),
        *(_difference(f"implementation of {m}", *(", ".join(sorted(of[m])) for of in kernels)) for m in shared),
    ]


def _protocol(run: ComparedRun) -> Mapping[str, Any]:
    node = run.config.get("protocol")
    return node if isinstance(node, dict) else {}


def _implementations(timings: Iterable[RoundTime]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for timing in timings:
        if timing.implementation:
            found.setdefault(timing.method, set()).add(timing.implementation)
    return found


def _difference(name: object, in_a: object, in_b: object) -> str:
    a, b = (short(printable(value), _SHOWN_CHARS) for value in (in_a, in_b))
    return f"{short(printable(name), _SHOWN_CHARS)} differs: {a} in A, {b} in B"


def _with_rest(a: Sequence[Point], b: Sequence[Point], pairs: Sequence[tuple[Point, Point]]) -> list[Pair]:
    """The pairs, and the points of A and of B that are in none."""
    in_a, in_b = {x.point_id for x, _ in pairs}, {y.point_id for _, y in pairs}
    only_a: list[Pair] = [(p, None) for p in a if p.point_id not in in_a]
    only_b: list[Pair] = [(None, p) for p in b if p.point_id not in in_b]
    return [*pairs, *only_a, *only_b]


def _without(points: Iterable[Point], names: Sequence[str]) -> dict[str, list[Point]]:
    """Points by all of their fields but these."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        kept = {name: value for name, value in point.as_dict().items() if name not in names}
        groups.setdefault(json.dumps(kept, sort_keys=True), []).append(point)
    return groups
