"""Errors of two compared runs or methods, point by point: better, worse, or within their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hyperbench.analyze.compare.compare import Comparison, Row
from hyperbench.analyze.compare.compared_run import ComparedRun, ErrorRange
from hyperbench.analyze.compare.labels import FIELDS, are_numbers, cell, dims_of, head, point_label, side_names
from hyperbench.analyze.format import counted, significant
from hyperbench.analyze.text_table import TextTable
from hyperbench.store.schema import Point

#: Intervals that lie apart by less than this part differ in rounding.
MARGIN = 0.01
#: Errors up to this are those of rounding in float32.
FLOOR = 1e-6
_MAX_LABELS = 8


class Change(StrEnum):
    """The error of B against that of A."""

    WITHIN_INTERVALS = "within_intervals"
    BETTER = "better"
    WORSE = "worse"
    MISSING_IN_A = "missing_in_a"
    MISSING_IN_B = "missing_in_b"


@dataclass(frozen=True)
class ErrorPair:
    """The errors of a pair of points, null where a side has none; `row` is one of the rows of their times."""

    row: Row
    a: ErrorRange | None
    b: ErrorRange | None

    @property
    def words(self) -> str:
        """The change as it stands in a line."""
        return str(self.change).replace("_", " ")

    @property
    def change(self) -> Change:
        """The change from A to B: one beyond the intervals, or none."""
        if self.a is None or self.b is None:
            return Change.MISSING_IN_A if self.a is None else Change.MISSING_IN_B
        if max(self.a.high, self.b.high) <= FLOOR:
            return Change.WITHIN_INTERVALS
        if self.b.low > self.a.high * (1.0 + MARGIN):
            return Change.WORSE
        return Change.BETTER if self.b.high * (1.0 + MARGIN) < self.a.low else Change.WITHIN_INTERVALS


def error_pairs(comparison: Comparison) -> list[ErrorPair]:
    """The errors of each matched pair of points of which a side has one, in the order of the rows."""
    found: dict[tuple[str, str], ErrorPair] = {}
    for row in comparison.rows:
        a, b = (_error(run, point) for run, point in ((comparison.a, row.point_a), (comparison.b, row.point_b)))
        if row.point_a and row.point_b and (a or b):
            found.setdefault((row.point_a.point_id, row.point_b.point_id), ErrorPair(row, a, b))
    return list(found.values())


def _error(run: ComparedRun, point: Point | None) -> ErrorRange | None:
    return run.errors.get(point.point_id) if point else None


def error_table(comparison: Comparison, pairs: Sequence[ErrorPair]) -> TextTable:
    """A table of the errors of both sides with their intervals, a row per pair of points."""
    dims, names = dims_of(comparison), side_names(comparison)
    rows = tuple((*(cell(pair.row, dim) for dim in dims), _text(pair.a), _text(pair.b), pair.words) for pair in pairs)
    heads = (*map(head, dims), f"error of {names[0]}", f"error of {names[1]}", "change")
    return TextTable("errors of B against A", heads, (*are_numbers(dims), True, True, False), rows)


def error_lines(comparison: Comparison, pairs: Sequence[ErrorPair]) -> list[str]:
    """The points whose error got worse beyond its interval, in a line, and the counts of all in another."""
    counts, dims = Counter(pair.words for pair in pairs), dims_of(comparison)
    worse = [point_label(pair.row, dims) for pair in pairs if pair.change is Change.WORSE]
    more = f" and {len(worse) - _MAX_LABELS} more" if len(worse) > _MAX_LABELS else ""
    lines = [f"error worse beyond its interval at {'; '.join(worse[:_MAX_LABELS])}{more}"] if worse else []
    told = ", ".join(f"{count} {words}" for words, count in counts.items())
    return [*lines, f"errors of {counted(len(pairs), 'point')}: {told}"] if pairs else []


def error_failures(comparison: Comparison, pairs: Sequence[ErrorPair]) -> list[str]:
    """List why a check of errors fails: worse ones, lost ones, and none at all to compare; empty where it passes."""
    dims = dims_of(comparison)
    lines = [
        f"{point_label(pair.row, dims)}: error {pair.words}, {_text(pair.a)} in A, {_text(pair.b) or 'none'} in B"
        for pair in pairs
        if pair.change in (Change.WORSE, Change.MISSING_IN_B)
    ]
    if not any(pair.a and pair.b for pair in pairs):
        lines.append("no point has an error on both sides, so a worse one would not be seen")
    return lines


def error_data(pairs: Sequence[ErrorPair]) -> list[dict[str, Any]]:
    """The errors as plain data."""
    return [
        {
            **{f"point_id_{side}": p.point_id for side, p in (("a", pair.row.point_a), ("b", pair.row.point_b)) if p},
            **{f"method_{side}": p.method for side, p in (("a", pair.row.point_a), ("b", pair.row.point_b)) if p},
            **{name: getattr(pair.row.point, name) for name in FIELDS},
            "change": str(pair.change),
            **{
                f"error_{side}{end}": getattr(found, name) if found else None
                for side, found in (("a", pair.a), ("b", pair.b))
                for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
        }
        for pair in pairs
    ]


def _text(found: ErrorRange | None) -> str:
    """An error with its interval, where it has one: "0.300 (0.285 to 0.315)"."""
    if found is None:
        return ""
    ends = f" ({significant(found.low)} to {significant(found.high)})" if found.low < found.high else ""
    return f"{significant(found.value)}{ends}"
