"""Verdicts on two runs, or two methods of one, point by point and pass by pass: same, faster, slower or ambiguous."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperbench.analyze.compare.compared_run import (
    ComparedRun,
    RoundKey,
    RoundTime,
    differences,
    match_methods,
    match_runs,
    read_run,
)
from hyperbench.analyze.format import counted, status_text
from hyperbench.stats.rounds import Judgement, Reason, Verdict, judge
from hyperbench.store.schema import Pass, Point, Status

Rounds = Mapping[RoundKey, RoundTime]
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
        """True if both sides have it, timed or not."""
        return self.point_a is not None and self.point_b is not None

    @property
    def point(self) -> Point:
        """The point of A, or B's where A has none."""
        point = self.point_a or self.point_b
        assert point is not None
        return point


@dataclass(frozen=True)
class Comparison:
    """Two compared runs and the verdicts; `threshold` and the floors are relative, 0.01 for 1 %."""

    a: ComparedRun
    b: ComparedRun
    threshold: float
    paired: bool
    rows: tuple[Row, ...]
    unmatched: tuple[Row, ...]
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[Verdict, int]:
        """Number of matched rows by verdict."""
        found = Counter(row.judgement.verdict for row in self.rows)
        return {verdict: found[verdict] for verdict in Verdict}

    def headline(self) -> str:
        """The verdict in one line."""
        num_points = len({(x.point_id, y.point_id) for x, y in ((r.point_a, r.point_b) for r in self.rows) if x and y})
        told = ", ".join(f"{count} {verdict}" for verdict, count in self.counts.items())
        line = f"{counted(num_points, 'point')}, {counted(len(self.rows), 'pass', 'es')}: {told}"
        for name, reason in (("A", Reason.MISSING_IN_B), ("B", Reason.MISSING_IN_A)):
            alone = sum(row.judgement.reason is reason for row in self.unmatched)
            line += f"; {alone} only in {name}" if alone else ""
        return line


def compare(
    path_a: Path, path_b: Path | None = None, methods: Sequence[str] | None = None, threshold: float | None = None
) -> Comparison:
    """Compare two runs, or with `methods` (one for each side) two methods of one run or of two.

    Differences within the threshold count as none: `threshold` (relative; default 1 %), or the larger of the A/A
    floors of the two machines where that is more. Where both sides come from one run, rounds are compared in pairs.
    Raises ValueError on a folder that is no run's or is damaged, or on methods that are not two or not there.
    """
    if methods is not None and (len(methods) != 2 or not all(methods)):
        raise ValueError(f"--methods={','.join(methods)} must name two methods: --methods flash2,hyper")
    if path_b is None and methods is None:
        raise ValueError("give two runs to compare, or one run and two of its methods: --methods flash2,hyper")
    first, second = methods or (None, None)
    if path_b is None and first == second:
        raise ValueError(f"--methods={first},{second} of one run must be two different ones")
    paired = path_b is None or Path(path_a).resolve() == Path(path_b).resolve()
    whole = read_run(Path(path_a))
    a, b = whole.of(first), (whole if path_b is None or paired else read_run(Path(path_b))).of(second)
    limit = max(DEFAULT_THRESHOLD if threshold is None else threshold, a.aa_floor or 0.0, b.aa_floor or 0.0)
    pairs = (match_runs if first == second else match_methods)(a.points, b.points)
    rows = [row for x, y in pairs for row in _rows(x, y, a, b, paired, limit)]
    warnings = [] if paired else differences(a, b)
    if paired and a.method == b.method:
        warnings = ["A and B are the same run and the same methods: there is nothing to compare"]
    sides = (("A", a),) if paired and first == second else (("A", a), ("B", b))
    warnings += [f"{name}: {line}" for name, run in sides for line in run.differing]
    matched, unmatched = (tuple(row for row in rows if row.is_matched is wanted) for wanted in (True, False))
    return Comparison(a, b, limit, paired, matched, unmatched, tuple(warnings))


def _rows(
    x: Point | None, y: Point | None, a: ComparedRun, b: ComparedRun, paired: bool, threshold: float
) -> list[Row]:
    """Judge every pass that a pair of points, or a point without partner, has on either side."""
    alike = a.timing_settings == b.timing_settings
    passes_a = a.timings[x.point_id] if x else {}
    passes_b = b.timings[y.point_id] if y else {}
    rows = []
    for pass_ in (pass_ for pass_ in Pass if pass_ in passes_a or pass_ in passes_b):
        of_a, of_b = passes_a.get(pass_, {}), passes_b.get(pass_, {})
        timed_a, timed_b, failed_a, failed_b = _medians(of_a), _medians(of_b), _failures(of_a), _failures(of_b)
        if of_a and of_b:
            judgement = _judged(of_a, of_b, paired, threshold, alike)
            detail = "; ".join(f"{name}: {text}" for name, text in (("A", failed_a), ("B", failed_b)) if text)
        else:
            judgement = Judgement(Verdict.AMBIGUOUS, Reason.MISSING_IN_B if of_a else Reason.MISSING_IN_A)
            detail = failed_a or failed_b
        lost_in_b = bool(timed_a) and (not of_b or (bool(failed_b) and not (timed_b and failed_a)))
        points = (x if of_a else None, y if of_b else None)
        means = (_geometric_mean(timed_a.values()), _geometric_mean(timed_b.values()))
        rows.append(Row(*points, pass_, judgement, *means, len(timed_a), len(timed_b), detail, lost_in_b))
    return rows


def _judged(of_a: Rounds, of_b: Rounds, paired: bool, threshold: float, alike: bool) -> Judgement:
    """Judge a pass; `alike`: both sides were timed under the same settings."""
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


def _medians(of: Rounds) -> dict[RoundKey, float]:
    """The median of each round that has samples, in milliseconds."""
    return {key: t.median_ms for key, t in of.items() if t.median_ms is not None}


def _failures(of: Rounds) -> str:
    """Statuses and messages of the rounds without a timing; "" where every round has one."""
    told = [status_text(t.status, t.message) for t in of.values() if t.median_ms is None]
    if not told:
        return ""
    reasons = "; ".join(dict.fromkeys(told))
    return reasons if len(told) == len(of) else f"{len(told)} of {len(of)} rounds without a timing ({reasons})"


def _geometric_mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    if not listed:
        return None
    return math.exp(sum(math.log(v) for v in listed) / len(listed)) if min(listed) > 0 else 0.0
