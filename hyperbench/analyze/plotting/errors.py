"""The panel of errors below the times: what approximation costs, on a logarithmic axis beside trivial answers.

An error is read as a factor: so many times that of answering zero. The axis is therefore logarithmic. An answer that
is exact to the rounding of its type has no place on it and is marked at the foot, as is one whose error is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.causality import causal_in_q
from hyperbench.analyze.format import at, escape, is_null, plain, short, significant
from hyperbench.analyze.joins import records
from hyperbench.analyze.plotting import style
from hyperbench.analyze.plotting.traces import Panel, crosses, curve, place_of
from hyperbench.analyze.view import MAIN_ERROR, TRIVIAL_ERRORS, View, error_columns

if TYPE_CHECKING:
    import pandas as pd

#: Relative errors up to these come from rounding alone: the answer is that of exact attention in this type.
ROUNDING = {"float64": 1e-10, "float32": 1e-4, "float16": 2e-3, "bfloat16": 1e-2}
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
        """Whether a value has a place on the axis."""
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
        # Room for the marks at the foot.
        low, high = axis["range"]
        axis["range"] = [low - 0.2 * (high - low), high]
    return ErrorScale(axis, exact)


def error_curve(
    panel: Panel,
    scale: ErrorScale,
    line: pd.DataFrame,
    axis: str,
    view: View,
    *,
    metric: str = MAIN_ERROR,
    name: str,
    color: str,
    **look: Any,
) -> None:
    """A method's error over `axis`: a gap where there is none, a mark at the foot where it is that of rounding."""
    method = str(line["method"].iloc[0])
    xs = [place_of(v) for v in line[axis]]
    shows = [scale.shows(v) for v in line[metric]]
    floor, top = style.height_at(scale.axis, 0), style.height_at(scale.axis, 1)
    hover = [_hover(row, axis, view) for row in records(line)]
    curve(
        panel,
        xs,
        _where(shows, line[metric]),
        low=_where(shows, [max(float(v), floor) for v in line[f"{metric}_low"]]),
        high=_where(shows, [min(float(v), top) for v in line[f"{metric}_high"]]),
        name=style.legend_name(name),
        group=f"error/{method}/{metric}",
        color=color,
        symbol="diamond",
        hover=hover,
        **look,
    )
    exact = [i for i, v in enumerate(line[metric]) if not is_null(v) and v <= scale.exact_up_to]
    if metric == MAIN_ERROR and exact:
        _exact_marks(panel, scale, [xs[i] for i in exact], [hover[i] for i in exact], color)


def missing_errors(panel: Panel, scale: ErrorScale, points: pd.DataFrame, axis: str, view: View) -> None:
    """Crosses where the error of a point is unknown or infinite, for methods whose error was measured at all."""
    causes: dict[Any, list[str]] = {}
    for row in records(points[points["method"].isin(with_errors(view))].sort_values(axis, kind="stable")):
        value: Any = row.get(MAIN_ERROR)
        if is_null(value) or not math.isfinite(value):
            why = view.error_reasons.get(row["point_id"], "not measured") if is_null(value) else plain(value)
            causes.setdefault(row[axis], []).append(f"error of {row['method']}: {why}")
    crosses(panel, causes, style.height_at(scale.axis, _MISSING_PART), axis)


def trivial_curves(panel: Panel, points: pd.DataFrame, axis: str) -> None:
    """The errors of answering zero, or the mean of the values: what no attention at all would err."""
    for metric, label in TRIVIAL_ERRORS.items():
        if metric not in points or not points[metric].notna().any():
            continue
        line = points.dropna(subset=[metric]).drop_duplicates(axis)
        curve(
            panel,
            [place_of(v) for v in line[axis]],
            list(line[metric]),
            name=f"error of {label}",
            group=f"error/{metric}",
            color=style.TRIVIAL_COLOR[metric],
            dash=style.TRIVIAL_DASH[metric],
            width=1.8,
            size=4,
            hover=[
                f"{label}, {escape(at(axis, x))}: {significant(v)}"
                for x, v in zip(line[axis], line[metric], strict=True)
            ],
        )


def error_lines(row: Mapping[str, Any], view: View) -> list[str]:
    """Every error metric of a row, escaped, the main one first, with the range over the seeds of the draw.

    Before them a line where the method is not causal in q.
    """
    metrics = error_columns(view.timings)
    lines = []
    for metric in dict.fromkeys([m for m in (MAIN_ERROR, *metrics) if m in metrics]):
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
    """Footnotes on errors: what they are, and whose were not measured."""
    measured = with_errors(view)
    without = [m for m in view.methods if m not in measured]
    notes = [NOTE] if measured else []
    if without:
        notes.append(f"No error was measured for {', '.join(without)}.")
    frame = view.timings
    lost = frame[frame["point_id"].isin(list(view.error_reasons))].drop_duplicates("point_id")
    kinds: dict[tuple[str, str], set[int]] = {}
    for row in records(lost):
        kinds.setdefault((row["method"], view.error_reasons[row["point_id"]]), set()).add(int(row["seq_len"]))
    for (method, why), lengths in list(kinds.items())[:_MAX_NOTES]:
        listed = ", ".join(f"{n:,}" for n in sorted(lengths))
        notes.append(f"Draws of {method} without an error at n = {listed} ({short(why)}).")
    return notes


def _hover(row: Mapping[str, Any], axis: str, view: View) -> str:
    head = f"<b>{escape(row['method'])}, {escape(at(axis, row[axis]))}</b>"
    return "<br>".join([head, *error_lines(row, view)])


def _where(shows: Sequence[bool], values: Iterable[Any]) -> list[Any]:
    return [v if show else None for show, v in zip(shows, values, strict=True)]


def _exact_marks(panel: Panel, scale: ErrorScale, xs: Sequence[Any], hover: Sequence[str], color: str) -> None:
    import plotly.graph_objects as go

    panel.add(
        go.Scatter(
            x=list(xs),
            y=[style.height_at(scale.axis, _EXACT_PART)] * len(xs),
            mode="markers",
            name="exact to rounding",
            marker={"symbol": "triangle-down-open", "size": 9, "color": color, "line": {"width": 1.8}},
            hovertext=list(hover),
            hoverinfo="text",
            cliponaxis=False,
        ),
        "error/exact",
    )
