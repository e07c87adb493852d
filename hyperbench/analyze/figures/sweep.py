"""Time and error against the one swept parameter: block_size, sample_size, num_projections, heads and their like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hyperbench.analyze import style
from hyperbench.analyze.marks import (
    Panel,
    curve,
    error_lines,
    failure_notes,
    failures,
    largest,
    throttled_notes,
    timing_text,
)
from hyperbench.analyze.tables import HYPER_DIMS, DoesNotFitError, check_single, records, varying
from hyperbench.analyze.text import MASK_LABELS, escape, is_null, pass_label, plain, ratio
from hyperbench.analyze.view import MAIN_ERROR, TRIVIAL_ERRORS, View, provenance, require_timings

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

AXES = (*HYPER_DIMS, "heads", "kv_heads", "batch", "head_dim")
_CATEGORIES = ("sampling", "pairing")
_ERRORS = {
    MAIN_ERROR: ("out", "solid"),
    "dq_rel_fro": ("dq", "dash"),
    "dk_rel_fro": ("dk", "dashdot"),
    "dv_rel_fro": ("dv", "dot"),
}


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where not exactly one axis varies, or one that is not shown does."""
    require_timings(view)
    axis = swept_axis(view.timings)
    check_single(view.timings, ("method", "is_causal", "pass", axis))
    from plotly.subplots import make_subplots

    rows = view.timings.sort_values(axis, kind="stable")
    masks = sorted(bool(m) for m in rows["is_causal"].unique())
    fig = make_subplots(
        rows=2,
        cols=len(masks),
        row_heights=[0.6, 0.4],
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.05,
        horizontal_spacing=0.035,
        column_titles=[f"<b>{MASK_LABELS[m]}</b>" for m in masks],
    )
    places = sorted(rows[axis].dropna().unique())
    y_axis = style.log_axis([*rows["ci_low_ms"].dropna(), *rows["ci_high_ms"].dropna()], pad=0.08)
    named: set[str] = set()
    for col, is_causal in enumerate(masks, start=1):
        part = rows[rows["is_causal"] == is_causal]
        time, error = Panel(fig, 1, col, named), Panel(fig, 2, col, named)
        _time_curves(time, part, view, axis, places)
        failed = part[part["median_ms"].isna() & part[axis].notna()]
        failures(time, failed, style.foot(y_axis), x=axis)
        _error_curves(error, part, view, axis)
        fig.update_yaxes(y_axis, row=1, col=col)
        fig.update_yaxes(range=[0, 1.1 * largest(rows, (*_ERRORS, *TRIVIAL_ERRORS))], nticks=6, row=2, col=col)
        for row in (1, 2):
            fig.update_xaxes(_x_axis(axis, places), row=row, col=col)
        fig.update_xaxes(title_text=axis, row=2, col=col)
    fig.update_yaxes(title_text="time in ms", row=1, col=1)
    fig.update_yaxes(title_text="relative error", row=2, col=1)
    fig.update_layout(legend=style.side_legend())
    length = plain(rows["seq_len"].iloc[0])
    return style.finish(
        fig,
        title=f"Time and error over {axis}, n = {int(length):,}",
        subtitle=f"{view.environment.get('machine') or 'machine not recorded'}; medians with 95 % intervals",
        provenance=[*provenance(view, (axis,)), f"seq_len={length}"],
        notes=[
            "Error: relative Frobenius against exact attention on the same input; median over draws, band from least "
            "to most.",
            *throttled_notes(rows[rows["status"] == "throttled"]),
            *failure_notes(rows[rows["median_ms"].isna()]),
        ],
        plot_height=540,
    )


def swept_axis(frame: pd.DataFrame) -> str:
    """The one axis that varies. Raises DoesNotFitError where none or several do, saying how to choose."""
    found = varying(frame, (*AXES, "seq_len"))
    axes = [dim for dim in found if dim != "seq_len"]
    if not axes:
        also = "; seq_len does, which fig4 and times show" if "seq_len" in found else ""
        raise DoesNotFitError(f"none of {', '.join(AXES)} varies in this run{also}")
    if len(found) > 1:
        listed = "; ".join(f"{dim}: {', '.join(plain(v) for v in values)}" for dim, values in found.items())
        fixed = next(dim for dim in reversed(found) if dim != axes[0])
        raise DoesNotFitError(
            f"several axes vary ({listed}); keep one and choose a value of each other: {fixed}={plain(found[fixed][0])}"
        )
    return axes[0]


def _x_axis(axis: str, places: list[Any]) -> dict[str, Any]:
    if axis in _CATEGORIES:
        return {"type": "category", "categoryorder": "array", "categoryarray": places}
    numbers = [float(p) for p in places]
    kind = "log" if min(numbers) > 0 and max(numbers) >= 4 * min(numbers) else "linear"
    return {"type": kind, "tickvals": numbers, "ticktext": [f"{n:,.10g}" for n in numbers], "minor": {"ticks": ""}}


def _x(line: pd.DataFrame, axis: str) -> list[Any]:
    return list(line[axis]) if axis in _CATEGORIES else [float(v) for v in line[axis]]


def _time_curves(panel: Panel, part: pd.DataFrame, view: View, axis: str, places: list[Any]) -> None:
    methods = list(view.timings["method"].unique())
    colors = style.method_colors(methods, view.baseline)
    for method in methods:
        for name in style.passes_in(part["pass"].unique()):
            line = part[(part["method"] == method) & (part["pass"] == name)]
            if line.empty or not line["median_ms"].notna().any():
                continue
            # A method without the parameter has one row, which holds along the whole axis.
            constant = is_null(line[axis].iloc[0])
            across = line.loc[line.index.repeat(len(places))] if constant else line
            curve(
                panel,
                _x(line, axis) if not constant else _x(across.assign(**{axis: places}), axis),
                list(across["median_ms"]),
                low=list(across["ci_low_ms"]),
                high=list(across["ci_high_ms"]),
                name=escape(f"{method}, {pass_label(name)}"),
                group=f"{method}/{name}",
                color=colors[method],
                dash=style.PASS_DASH.get(name, "solid"),
                width=style.PASS_WIDTH.get(name, 2.0),
                symbol=style.PASS_SYMBOL.get(name, "circle"),
                size=3 if constant else 8,
                hollow=[s == "throttled" for s in across["status"]],
                hover=[_hover(r, view, axis) for r in records(across)],
            )


def _hover(row: dict[str, Any], view: View, axis: str) -> str:
    value = f", {axis} = {plain(row[axis])}" if not is_null(row[axis]) else ""
    lines = [f"<b>{escape(row['method'])}, {pass_label(row['pass'])}{escape(value)}</b>", timing_text(row)]
    if row["method"] != view.baseline:
        if not is_null(row["speedup"]):
            lines.append(f"speedup over {escape(view.baseline)} {ratio(row['speedup'])}")
        lines += error_lines(row, view.timings)
    return "<br>".join(lines)


def _error_curves(panel: Panel, part: pd.DataFrame, view: View, axis: str) -> None:
    colors = style.method_colors(list(view.timings["method"].unique()), view.baseline)
    points = part.drop_duplicates("point_id").dropna(subset=[axis])
    for method in view.methods:
        for metric, (label, dash) in _ERRORS.items():
            line = points[points["method"] == method]
            if metric not in line or not line[metric].notna().any():
                continue
            main = metric == MAIN_ERROR
            curve(
                panel,
                _x(line, axis),
                list(line[metric]),
                low=list(line[f"{metric}_low"]),
                high=list(line[f"{metric}_high"]),
                name=escape(f"error of {label}, {method}"),
                group=f"error/{method}/{metric}",
                color=colors[method],
                dash=dash,
                width=2.4 if main else 1.3,
                symbol="diamond",
                size=8 if main else 4,
                hover=[
                    "<br>".join(
                        [f"<b>{escape(method)}, {axis} = {escape(plain(r[axis]))}</b>", *error_lines(r, view.timings)]
                    )
                    for r in records(line)
                ],
            )
    for metric, label in TRIVIAL_ERRORS.items():
        if metric in points and points[metric].notna().any():
            line = points.dropna(subset=[metric]).drop_duplicates(axis)
            curve(
                panel,
                _x(line, axis),
                list(line[metric]),
                name=f"error of: {label}",
                group=f"error/{metric}",
                color=style.TRIVIAL_COLOR[metric],
                dash=style.TRIVIAL_DASH[metric],
                width=1.6,
                size=4,
                hover=[f"{label}: {v:.3g}" for v in line[metric]],
            )
