"""Two runs, or two methods of one run, point by point and pass by pass: same, faster, slower or ambiguous, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hyperbench.analyze.compare.environments import (
    environment_differences,
    implementation_differences,
    protocol_differences,
    timing_settings,
)
from hyperbench.analyze.compare.matching import match_methods, match_runs
from hyperbench.analyze.compare.run_side import Side, read_side
from hyperbench.stats.rounds import Judgement, Reason, Verdict, judge
from hyperbench.stats.samples import median
from hyperbench.store.schema import Pass, Point, Status, Timing

Rounds = Mapping[int, Timing]
#: The smallest difference that counts, unless the machine's own noise (the A/A floor) is larger; relative.
DEFAULT_THRESHOLD = 0.01


@dataclass(frozen=True)
class Row:
    """One pass of a pair of points, or of a point without partner: the verdict and what it rests on.

    `a_ms` and `b_ms` are geometric means over the rounds' medians; `detail` says what failed, if anything did.
    `lost_in_b`: B lacks a timing, of all or of some rounds, that A has.
    """

    point_a: Point | None
    point_b: Point | None
    pass_: Pass
    judgement: Judgement
    a_ms: float | None = None
    b_ms: float | None = None
    rounds_a: int = 0
    rounds_b: int = 0
    detail: str = ""
    lost_in_b: bool = False

    @property
    def is_matched(self) -> bool:
        """Whether both sides have it, timed or not."""
        return self.point_a is not None and self.point_b is not None

    @property
    def point(self) -> Point:
        """The point of A, or B's where A has none."""
        point = self.point_a or self.point_b
        assert point is not None
        return point


@dataclass(frozen=True)
class Comparison:
    """What was compared and what came of it; `threshold` and the floors are relative, 0.01 for 1 %."""

    a: Side
    b: Side
    threshold: float
    paired: bool
    rows: tuple[Row, ...]
    unmatched: tuple[Row, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many rows got which verdict; those without partner are not among them."""
        found = Counter(row.judgement.verdict for row in self.rows)
        return {verdict: found[verdict] for verdict in Verdict}

    @property
    def can_judge(self) -> bool:
        """Whether any row has an interval at all."""
        return any(row.judgement.low is not None for row in self.rows)

    def headline(self) -> str:
        """The verdict in one line."""
        num_points = len(
            {(row.point_a.point_id, row.point_b.point_id) for row in self.rows if row.point_a and row.point_b}
        )
        told = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        line = f"{_counted(num_points, 'point')}, {_counted(len(self.rows), 'pass', 'es')}: {told}"
        for name, reason in (("A", Reason.MISSING_IN_B), ("B", Reason.MISSING_IN_A)):
            alone = sum(row.judgement.reason is reason for row in self.unmatched)
            line += f"; {alone} only in {name}" if alone else ""
        return line

    def regressions(self, percent: float) -> list[Row]:
        """Rows of which B is slower by more than `percent` (the interval's lower end), or lacks a timing that A has."""
        limit = 1.0 + percent / 100.0
        return [row for row in (*self.rows, *self.unmatched) if row.lost_in_b or _is_slower(row.judgement, limit)]


def compare(
    path_a: Path,
    path_b: Path | None = None,
    methods: Sequence[str] | None = None,
    threshold: float | None = None,
) -> Comparison:
    """Compare two runs, or with `methods` (one for each side) two methods of one run or of two.

    Differences within the threshold count as none: `threshold` (relative; default 1 %), or the larger of the A/A
    floors of the two machines where that is more. Where both sides come from one run, rounds are compared in pairs.
    Raises ValueError on a folder that is no run's or is damaged, or on methods that are not two or not there.
    """
    if methods is not None and len(methods) != 2:
        raise ValueError(f"methods={','.join(methods)} must name two methods, the one of A and the one of B")
    if path_b is None and methods is None:
        raise ValueError("give two runs to compare, or one run and two of its methods: --methods flash2,hyper")
    first, second = methods or (None, None)
    if path_b is None and first == second:
        raise ValueError(f"methods={first},{second} of one run must be two different ones")
    a = read_side(Path(path_a), first)
    b = read_side(Path(path_b if path_b is not None else path_a), second)
    paired = a.path.resolve() == b.path.resolve()
    limit = max(DEFAULT_THRESHOLD if threshold is None else threshold, a.aa_floor, b.aa_floor)
    matching = (match_runs if first == second else match_methods)(a.points, b.points)
    alike = timing_settings(a.config) == timing_settings(b.config)
    rows = [row for x, y in matching.pairs for row in _rows(x, y, a, b, paired, limit, alike)]
    rows += [_alone(p, pass_, a, Reason.MISSING_IN_B) for p in matching.only_a for pass_ in a.timings[p.point_id]]
    rows += [_alone(p, pass_, b, Reason.MISSING_IN_A) for p in matching.only_b for pass_ in b.timings[p.point_id]]
    return Comparison(
        a,
        b,
        limit,
        paired,
        tuple(row for row in rows if row.is_matched),
        tuple(row for row in rows if not row.is_matched),
        tuple(_warnings(a, b, paired)),
    )


def _warnings(a: Side, b: Side, paired: bool) -> list[str]:
    if paired and a.method == b.method:
        same = "A and B are the same run and the same methods: there is nothing to compare"
        return [same, *(f"A and B were {note}" for note in a.notes)]
    if paired:
        return [f"A and B were {note}" for note in dict.fromkeys([*a.notes, *b.notes])]
    return [
        *(f"{name} was {note}" for name, side in (("A", a), ("B", b)) for note in side.notes),
        *environment_differences(a.environment, b.environment),
        *protocol_differences(a.config, b.config),
        *implementation_differences(a.all_timings(), b.all_timings()),
    ]


def _rows(x: Point, y: Point, a: Side, b: Side, paired: bool, threshold: float, alike: bool) -> list[Row]:
    """A row for every pass that either side of a pair has."""
    rows = []
    for pass_ in Pass:
        of_a, of_b = a.timings[x.point_id].get(pass_), b.timings[y.point_id].get(pass_)
        if of_a and of_b:
            rows.append(_row(x, y, pass_, of_a, of_b, _judged(of_a, of_b, paired, threshold, alike)))
        elif of_a:
            rows.append(_alone(x, pass_, a, Reason.MISSING_IN_B))
        elif of_b:
            rows.append(_alone(y, pass_, b, Reason.MISSING_IN_A))
    return rows


def _row(x: Point, y: Point, pass_: Pass, of_a: Rounds, of_b: Rounds, judgement: Judgement) -> Row:
    timed_a, timed_b = _medians(of_a), _medians(of_b)
    failed_a, failed_b = _failures(of_a), _failures(of_b)
    told = [f"{name}: {text}" for name, text in (("A", failed_a), ("B", failed_b)) if text]
    return Row(
        x,
        y,
        pass_,
        judgement,
        _geometric_mean(timed_a.values()),
        _geometric_mean(timed_b.values()),
        len(timed_a),
        len(timed_b),
        "; ".join(told),
        bool(timed_a) and bool(failed_b) and (not timed_b or not failed_a),
    )


def _alone(point: Point, pass_: Pass, side: Side, reason: Reason) -> Row:
    of = side.timings[point.point_id][pass_]
    timed = _medians(of)
    ms, rounds = _geometric_mean(timed.values()), len(timed)
    judgement, detail = Judgement(Verdict.AMBIGUOUS, reason), _failures(of)
    if reason is Reason.MISSING_IN_B:
        return Row(point, None, pass_, judgement, ms, None, rounds, 0, detail, lost_in_b=bool(timed))
    return Row(None, point, pass_, judgement, None, ms, 0, rounds, detail)


def _judged(of_a: Rounds, of_b: Rounds, paired: bool, threshold: float, alike: bool) -> Judgement:
    """The verdict on a pass; `alike`: both sides were timed under the same settings."""
    timed_a, timed_b = _medians(of_a), _medians(of_b)
    if not timed_a or not timed_b:
        reason = Reason.NO_TIMING_IN_B if timed_a else Reason.NO_TIMING_IN_A if timed_b else Reason.NO_TIMING
        return Judgement(Verdict.AMBIGUOUS, reason)
    found = judge(timed_a, timed_b, paired=paired, threshold=threshold)
    if not alike or {t.protocol for t in of_a.values()} != {t.protocol for t in of_b.values()}:
        return replace(found, verdict=Verdict.AMBIGUOUS, reason=Reason.DIFFERENT_PROTOCOL)
    throttled = [any(t.status is Status.THROTTLED for t in of.values()) for of in (of_a, of_b)]
    if found.low is not None and throttled[0] != throttled[1]:
        return replace(found, verdict=Verdict.AMBIGUOUS, reason=Reason.THROTTLED)
    return found


def _medians(of: Rounds) -> dict[int, float]:
    """The median of each round that has samples, in milliseconds."""
    return {round_: median(t.samples_ms) for round_, t in of.items() if t.samples_ms}


def _failures(of: Rounds) -> str:
    """What happened in the rounds without a timing; "" where every round has one."""
    told = [f"{t.status}: {t.message}" if t.message else str(t.status) for t in of.values() if not t.samples_ms]
    if not told:
        return ""
    reasons = "; ".join(dict.fromkeys(told))
    return reasons if len(told) == len(of) else f"{len(told)} of {len(of)} rounds without a timing ({reasons})"


def _geometric_mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    if not listed:
        return None
    return math.exp(sum(math.log(v) for v in listed) / len(listed)) if min(listed) > 0 else 0.0


def _is_slower(judgement: Judgement, limit: float) -> bool:
    return judgement.verdict is Verdict.SLOWER and judgement.low is not None and judgement.low > limit


def _counted(count: int, name: str, plural: str = "s") -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}{plural}"
