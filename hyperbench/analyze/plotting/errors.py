"""The panel of errors below the times: the cost of approximation, on a logarithmic axis alongside trivial answers.

An error is read as a factor: so many times that of answering zero. The axis is therefore logarithmic. An answer that
is exact to the rounding of its type has no place on it and is marked at the foot, as is one whose error is next to
nothing, and one whose error is unknown.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.caveats import caveats_of
from hyperbench.analyze.format import at, escape, is_null, plain, short, significant
from hyperbench.analyze.joins import records
from hyperbench.analyze.plotting import style
from hyperbench.analyze.plotting.layout import Panel
from hyperbench.analyze.plotting.traces import Points, crosses, curve, marks, notes_by_reason, place_of
from hyperbench.analyze.view import MAIN_ERROR, TRIVIAL_ERRORS, View, error_columns

if TYPE_CHECKING:
    import pandas as pd

#: Steps between one and the next number of each type.
_STEPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
#: An exact method is exact to rounding up to so many steps: a softmax, two products and a reference of the same type
#: round a few times each, and errors of rounding add up to few of them in the Frobenius norm, however long the sums.
_ROUNDINGS = 8.0
#: Smaller errors of other methods have no place on the axis either: where their parameters make them exact.
_FLOOR = 1e-6
_EXACT, _BELOW = "exact to rounding", "error below 1e-6"
#: Name and look of the curve of a method and a metric.
Looks = Mapping[tuple[str, str], tuple[str, style.Look]]
AXIS_TITLE = "relative error"
NOTE = (
    "Error: relative Frobenius error of the output against exact attention on the same input, median over draws, "
    "band from least to most; answering zero or the mean of v, without any attention, puts it in proportion."
)
_MAX_NOTES = 3
_EXACT_PART, _MISSING_PART = 0.05, 0.14
_OF_A_HEAD = re.compile(r"out_rel_fro_head\d+")


@dataclass(frozen=True)
class ErrorScale:
    """The axis of an error panel; `exact_methods` are those whose errors of rounding alone have no place on it."""

    axis: dict[str, Any]
    exact_methods: frozenset[str]

    def shows(self, row: Mapping[str, Any], metric: str) -> bool:
        """True if an error of a row has a place on the axis."""
        return _is_error(row[metric]) and row[metric] > least_shown(row, self.exact_methods)


def least_shown(row: Mapping[str, Any], exact_methods: frozenset[str]) -> float:
    """The error of a row up to which it has no place on the axis: of an exact method, a few roundings of its type."""
    return _ROUNDINGS * _STEPS.get(str(row["dtype"]), 0.0) if row["method"] in exact_methods else _FLOOR


def error_scale(view: View, metrics: Iterable[str]) -> ErrorScale:
    """The scale on which all values of these metrics and of the trivial answers can be read."""
    rows = view.timings[view.timings["method"].isin(with_errors(view))]
    names = [c for m in (*metrics, *TRIVIAL_ERRORS) for c in (m, f"{m}_low", f"{m}_high") if c in rows]
    every = [
        (float(row[name]), least_shown(row, view.exact_methods))
        for row in records(rows.drop_duplicates("point_id"))
        for name in names
        if not is_null(row[name])
    ]
    shown = [value for value, least in every if math.isfinite(value) and value > least]
    axis = style.log_axis(shown, pad=0.1, dense_decades=2.5)
    if len(shown) < len(every) or (MAIN_ERROR in rows and rows[MAIN_ERROR].isna().any()):
        # Space for the marks at the foot.
        low, high = axis["range"]
        axis["range"] = [low - 0.2 * (high - low), high]
    return ErrorScale(axis, view.exact_methods)


@dataclass(frozen=True)
class ErrorPanel:
    """A panel in which errors of the view's methods are drawn over the column `x`, on one scale."""

    panel: Panel
    scale: ErrorScale
    view: View
    x: str

    def draw(self, points: pd.DataFrame, looks: Looks) -> None:
        """Draw trivial answers, the curves and what is missing; `points` has a row per place."""
        self._trivial(points)
        for (method, metric), (name, look) in looks.items():
            line = points[points["method"] == method]
            if metric in line and line[metric].notna().any():
                self._curve(line, metric, name, look)
        self._missing(points)

    def _curve(self, line: pd.DataFrame, metric: str, name: str, look: style.Look) -> None:
        """A gap where there is no error, a mark at the foot where it has no place on the axis."""
        import pandas as pd

        xs = [place_of(v) for v in line[self.x]]
        rows = records(line)
        shows = pd.Series([self.scale.shows(row, metric) for row in rows], index=line.index)
        floor, top = style.height_at(self.scale.axis, 0), style.height_at(self.scale.axis, 1)
        method = line["method"].iloc[0]
        hover = [
            "<br>".join([f"<b>{escape(method)}, {escape(at(self.x, row[self.x]))}</b>", *error_lines(row, self.view)])
            for row in rows
        ]
        values = Points(
            xs,
            list(line[metric].where(shows)),
            list(line[f"{metric}_low"].clip(lower=floor).where(shows)),
            list(line[f"{metric}_high"].clip(upper=top).where(shows)),
            hover,
        )
        curve(self.panel, values, look, name=style.legend_name(name), group=f"error/{method}/{metric}")
        tiny = [i for i, row in enumerate(rows) if _is_error(row[metric]) and not self.scale.shows(row, metric)]
        if metric == MAIN_ERROR and tiny:
            marker = {"symbol": "triangle-down-open", "size": 9, "color": look.color, "line": {"width": 1.8}}
            places, hovers = [xs[i] for i in tiny], [hover[i] for i in tiny]
            height = style.height_at(self.scale.axis, _EXACT_PART)
            label = _EXACT if method in self.scale.exact_methods else _BELOW
            marks(self.panel, f"error/{label}", places, height, hovers, label, marker)

    def _missing(self, points: pd.DataFrame) -> None:
        """Crosses where the error of a point is unknown or infinite, for methods whose error was measured at all."""
        causes: dict[Any, list[str]] = {}
        measured = points[points["method"].isin(with_errors(self.view))]
        for row in records(measured.sort_values(self.x, kind="stable")):
            value: Any = row.get(MAIN_ERROR)
            if not _is_error(value):
                lost = self.view.error_reasons.get(row["point_id"], "not measured")
                why = lost if is_null(value) else plain(value)
                causes.setdefault(row[self.x], []).append(f"error of {row['method']}: {why}")
        crosses(self.panel, causes, style.height_at(self.scale.axis, _MISSING_PART), self.x)

    def _trivial(self, points: pd.DataFrame) -> None:
        """The errors of answering zero, or the mean of the values: those of no attention at all."""
        for metric, label in TRIVIAL_ERRORS.items():
            if metric not in points or not points[metric].notna().any():
                continue
            line = points.dropna(subset=[metric]).drop_duplicates(self.x)
            places = list(zip(line[self.x], line[metric], strict=True))
            hover = [f"{label}, {escape(at(self.x, x))}: {significant(v)}" for x, v in places]
            curve(
                self.panel,
                Points([place_of(x) for x, _ in places], [v for _, v in places], hover=hover),
                style.TRIVIAL_LOOK[metric],
                name=f"error of {label}",
                group=f"error/{metric}",
            )


def error_lines(row: Mapping[str, Any], view: View) -> list[str]:
    """Every error metric of a row, escaped, the main one first, with the range over the seeds of the draw.

    Before them a line where the method is not causal in q, or leaks.
    """
    lines = []
    for metric in sorted(error_columns(view.timings), key=lambda name: name != MAIN_ERROR):
        # Those of single heads, which may be many, are told by their median and maximum.
        if is_null(row[metric]) or _OF_A_HEAD.fullmatch(metric):
            continue
        low, high = significant(row[f"{metric}_low"]), significant(row[f"{metric}_high"])
        spread = f" ({low} to {high} over seeds)" if low != high else ""
        half_width: Any = row.get(f"{metric}_half_width")
        estimated = "" if is_null(half_width) or math.isinf(half_width) else f" ±{100 * half_width:.1f}%"
        lines.append(f"{escape(metric)} {significant(row[metric])}{estimated}{spread}")
    lost = view.error_reasons.get(row["point_id"])
    moved = caveats_of(row)
    if not lines:
        return [*moved, f"error not measured{f': {escape(short(lost))}' if lost else ''}"]
    return [*moved, *lines, *([f"a draw without error: {escape(short(lost))}"] if lost else [])]


def _is_error(value: Any) -> bool:
    """True for a number that an error can be."""
    return not is_null(value) and math.isfinite(value) and value >= 0.0


def with_errors(view: View) -> list[str]:
    """The methods whose error was measured, or was to be measured, at one point at least."""
    frame = view.timings
    known = frame["point_id"].isin(list(view.error_reasons))
    if MAIN_ERROR in frame:
        known |= frame[MAIN_ERROR].notna()
    return [m for m in view.methods if known[frame["method"] == m].any()]


def error_notes(view: View) -> list[str]:
    """Footnotes on errors: their definition, and the methods and draws without one."""
    measured = with_errors(view)
    without = [m for m in view.methods if m not in measured]
    notes = [NOTE] if measured else []
    if without:
        notes.append(f"No error was measured for {', '.join(without)}.")
    frame = view.timings
    lost = frame[frame["point_id"].isin(list(view.error_reasons))].drop_duplicates("point_id")
    reasons = lost["point_id"].map(view.error_reasons)
    return [*notes, *notes_by_reason(lost, reasons, "Draws of {} without an error")[:_MAX_NOTES]]
