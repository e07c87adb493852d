"""The panel of errors below the times: the cost of approximation, on a logarithmic axis alongside trivial answers.

An error is read as a factor: so many times that of answering zero. The axis is therefore logarithmic. An answer that
is exact to the rounding of its type has no place on it and is marked at the foot, as is one whose error is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import at, escape, is_null, plain, short, significant
from hyperbench.analyze.joins import records
from hyperbench.analyze.plotting import style
from hyperbench.analyze.plotting.layout import Panel
from hyperbench.analyze.plotting.traces import Points, crosses, curve, marks, notes_by_reason, place_of
from hyperbench.analyze.view import MAIN_ERROR, TRIVIAL_ERRORS, View, causal_in_q, error_columns

if TYPE_CHECKING:
    import pandas as pd

#: Relative errors up to these come from rounding alone: the answer is that of exact attention in this type.
ROUNDING = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}
#: Name and look of the curve of a method and a metric.
Looks = Mapping[tuple[str, str], tuple[str, style.Look]]
AXIS_TITLE = "relative error"
NOTE = (
    "Error: relative Frobenius error of the output against exact attention on the same input, median over draws, "
    "band from least to most; answering zero or the mean of v, without any attention, puts it in proportion."
)
_ROUNDING = ROUNDING["float32"]
_MAX_NOTES = 3
_EXACT_PART, _MISSING_PART = 0.05, 0.14


@dataclass(frozen=True)
class ErrorScale:
    """The axis of an error panel, and the error up to which an answer counts as exact."""

    axis: dict[str, Any]
    exact_up_to: float

    def shows(self, value: Any) -> bool:
        """True for a value that has a place on the axis."""
        return not is_null(value) and math.isfinite(value) and value > self.exact_up_to


def error_scale(view: View, metrics: Iterable[str]) -> ErrorScale:
    """The scale on which all values of these metrics and of the trivial answers can be read."""
    rows = view.timings[view.timings["method"].isin(with_errors(view))]
    exact = max((ROUNDING.get(str(t), _ROUNDING) for t in rows["dtype"].unique()), default=_ROUNDING)
    names = [c for m in (*metrics, *TRIVIAL_ERRORS) for c in (m, f"{m}_low", f"{m}_high") if c in rows]
    every = [float(v) for name in names for v in rows[name].unique() if not is_null(v)]
    shown = [v for v in every if math.isfinite(v) and v > exact]
    axis = style.log_axis(shown, pad=0.1, dense_decades=2.5)
    if len(shown) < len(every) or (MAIN_ERROR in rows and rows[MAIN_ERROR].isna().any()):
        # Space for the marks at the foot.
        low, high = axis["range"]
        axis["range"] = [low - 0.2 * (high - low), high]
    return ErrorScale(axis, exact)


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
        """A gap where there is no error, a mark at the foot where it is that of rounding."""
        xs = [place_of(v) for v in line[self.x]]
        shows = line[metric].map(self.scale.shows)
        floor, top = style.height_at(self.scale.axis, 0), style.height_at(self.scale.axis, 1)
        method = line["method"].iloc[0]
        hover = [
            "<br>".join([f"<b>{escape(method)}, {escape(at(self.x, row[self.x]))}</b>", *error_lines(row, self.view)])
            for row in records(line)
        ]
        values = Points(
            xs,
            list(line[metric].where(shows)),
            list(line[f"{metric}_low"].clip(lower=floor).where(shows)),
            list(line[f"{metric}_high"].clip(upper=top).where(shows)),
            hover,
        )
        curve(self.panel, values, look, name=style.legend_name(name), group=f"error/{method}/{metric}")
        exact = [i for i, v in enumerate(line[metric]) if not is_null(v) and v <= self.scale.exact_up_to]
        if metric == MAIN_ERROR and exact:
            marker = {"symbol": "triangle-down-open", "size": 9, "color": look.color, "line": {"width": 1.8}}
            places, hovers = [xs[i] for i in exact], [hover[i] for i in exact]
            height = style.height_at(self.scale.axis, _EXACT_PART)
            marks(self.panel, "error/exact", places, height, hovers, "exact to rounding", marker)

    def _missing(self, points: pd.DataFrame) -> None:
        """Crosses where the error of a point is unknown or infinite, for methods whose error was measured at all."""
        causes: dict[Any, list[str]] = {}
        measured = points[points["method"].isin(with_errors(self.view))]
        for row in records(measured.sort_values(self.x, kind="stable")):
            value: Any = row.get(MAIN_ERROR)
            if is_null(value) or not math.isfinite(value):
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

    Before them a line where the method is not causal in q.
    """
    lines = []
    for metric in sorted(error_columns(view.timings), key=lambda name: name != MAIN_ERROR):
        if is_null(row[metric]):
            continue
        low, high = significant(row[f"{metric}_low"]), significant(row[f"{metric}_high"])
        spread = f" ({low} to {high} over seeds)" if low != high else ""
        lines.append(f"{escape(metric)} {significant(row[metric])}{spread}")
    lost = view.error_reasons.get(row["point_id"])
    moved = ["not causal in q: later queries change earlier outputs"] if causal_in_q(row) is False else []
    if not lines:
        return [*moved, f"error not measured{f': {escape(short(lost))}' if lost else ''}"]
    return [*moved, *lines, *([f"a draw without error: {escape(short(lost))}"] if lost else [])]


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
