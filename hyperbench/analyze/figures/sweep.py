"""Time and error against the one swept parameter: that of a method or of the input, heads, batch or head_dim."""

from __future__ import annotations

import math
import numbers
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, escape, is_flag, is_null, plain, ratio
from hyperbench.analyze.joins import DoesNotFitError, check_single, masks_in, records, value_text, varying
from hyperbench.analyze.plotting import errors, style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.view import MAIN_ERROR, View, require_timings
from hyperbench.store.parameters import input_parameters, method_parameters

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_SHAPE_AXES = ("heads", "kv_heads", "batch", "head_dim")
_LABELS = {
    "block_size": "block size b (keys in a query's block)",
    "sample_size": "sample size m (sampled keys)",
    "num_projections": "projections r of the hash",
    "min_seq_len": "length up to which attention is exact",
    "head_dim": "head dimension d",
    "kv_heads": "key and value heads",
}
#: The label of an error, and the look of its curves but for their colour.
_ERRORS = {
    MAIN_ERROR: ("out", style.Look("", "solid", 2.4, "diamond", 8)),
    "dq_rel_fro": ("dq", style.Look("", "dash", 1.3, "diamond", 4)),
    "dk_rel_fro": ("dk", style.Look("", "dashdot", 1.3, "diamond", 4)),
    "dv_rel_fro": ("dv", style.Look("", "dot", 1.3, "diamond", 4)),
}


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where not exactly one axis varies, or one that is not shown does."""
    require_timings(view)
    axis = swept_axis(view.timings)
    check_single(view.timings, ("method", "is_causal", "pass", axis))
    view = replace(view, timings=_on_axis(view.timings, axis))
    rows = view.timings.sort_values(axis, kind="stable")
    masks = masks_in(rows)
    places = list(rows[axis].dropna().unique())
    x_axis = _x_axis(places)
    y_axis = style.log_axis([*rows["ci_low_ms"].dropna(), *rows["ci_high_ms"].dropna()], pad=0.08)
    scale = errors.error_scale(view, _ERRORS)
    colors = style.method_colors(list(view.timings["method"].unique()), view.baseline)
    looks = {
        (method, metric): (f"error of {label}, {method}", replace(look, color=colors[method]))
        for method in errors.with_errors(view)
        for metric, (label, look) in _ERRORS.items()
    }
    sheet = Sheet(2, [MASK_LABELS[m] for m in masks], spacing=(0.05, 0.035), heights=(0.6, 0.4))
    for col, is_causal in enumerate(masks, start=1):
        part = rows[rows["is_causal"] == is_causal]
        time, error = sheet.panel(1, col, x_axis, y_axis), sheet.panel(2, col, x_axis, scale.axis)
        _time_curves(time, part, view, axis, places)
        failed = _across(part[part["median_ms"].isna()], axis, places)
        traces.failures(time, failed, style.foot(y_axis), x=axis)
        errors.ErrorPanel(error, scale, view, axis).draw(
            _across(part, axis, places).drop_duplicates(["point_id", axis]), looks
        )
    length, label = plain(rows["seq_len"].iloc[0]), _LABELS.get(axis, axis)
    return sheet.finish(
        view,
        title=f"Time and error over {label.partition(' (')[0]}, n = {int(length):,}",
        axes=(_LABELS.get(axis) or escape(axis), ("time in ms", errors.AXIS_TITLE)),
        notes=[
            "Times: medians, bands: 95 % intervals (least to most below 6 samples)."
            + (f" Lines with small marks: methods without {axis}." if rows[axis].isna().any() else ""),
            *errors.error_notes(view),
            *traces.gap_notes(rows, "median_ms"),
        ],
        plot_height=580,
        swept=(axis,),
        fixed=[f"seq_len={length}"],
    )


def axes_of(frame: pd.DataFrame) -> list[str]:
    """The columns that can be the axis: parameters of methods and of inputs, and sizes."""
    return [*method_parameters(frame), *input_parameters(frame), *_SHAPE_AXES]


def swept_axis(frame: pd.DataFrame) -> str:
    """The one axis that varies. Raises DoesNotFitError where none or several do, saying how to choose."""
    allowed = axes_of(frame)
    found = varying(frame, (*allowed, "seq_len"))
    axes = [dim for dim in found if dim != "seq_len"]
    if not axes:
        but = " but seq_len, which fig4 and times show" if "seq_len" in found else ""
        raise DoesNotFitError(f"no parameter varies in this run{but}; this figure shows one of {', '.join(allowed)}")
    if len(found) > 1:
        listed = "; ".join(f"{dim}: {', '.join(value_text(v) for v in values)}" for dim, values in found.items())
        fixed = next(dim for dim in reversed(found) if dim != axes[0])
        choice = f"{fixed}={value_text(found[fixed][0])}"
        raise DoesNotFitError(f"several axes vary ({listed}); keep one and choose a value of each other: {choice}")
    return axes[0]


def _on_axis(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The same rows with places on the axis: as they are where all are numbers, else categories, null the last."""
    import pandas as pd

    values = varying(frame, [axis])[axis]
    if all(isinstance(v, numbers.Real) and not is_flag(v) and math.isfinite(v) for v in values):
        return frame
    has = frame[axis].notna().groupby(frame["method"]).transform("any")
    every = [*sorted(frame[axis].dropna().unique()), *([None] if None in values else [])]
    texts = frame[axis].map(value_text).astype(object).where(has, None)
    return frame.assign(**{axis: pd.Categorical(texts, list(map(value_text, every)), ordered=True)})


def _x_axis(places: list[Any]) -> dict[str, Any]:
    if isinstance(places[0], str):
        return {"type": "category", "categoryorder": "array", "categoryarray": [traces.place_of(p) for p in places]}
    return style.value_axis([float(p) for p in places])


def _across(frame: pd.DataFrame, axis: str, places: list[Any]) -> pd.DataFrame:
    """The same rows, but one that lacks the swept parameter stands at every place, since it holds along the axis."""
    import pandas as pd

    constant = frame[frame[axis].isna()]
    repeated = [constant.assign(**{axis: pd.Series(place, constant.index, frame[axis].dtype)}) for place in places]
    parts = [part for part in (frame[frame[axis].notna()], *repeated) if len(part)]
    return pd.concat(parts).sort_values(axis, kind="stable") if parts else frame


def _time_curves(panel: Panel, part: pd.DataFrame, view: View, axis: str, places: list[Any]) -> None:
    methods = list(view.timings["method"].unique())
    looks = style.method_looks(methods, view.baseline)
    for method, name, line in traces.lines_in(part, methods, "median_ms"):
        across = _across(line, axis, places)
        hover = [_hover(r, view, axis) for r in records(line.loc[across.index])]
        look = style.pass_look(name, looks[method].color, size=3 if is_null(line[axis].iloc[0]) else 8)
        # Of several methods the passes differ in their dashes alone.
        look = replace(look, symbol=looks[method].symbol) if len(view.methods) > 1 else look
        traces.curve(
            panel,
            traces.points_of(across, traces.TIMES, [traces.place_of(x) for x in across[axis]], hover),
            look,
            name=style.legend_name(f"{method}, {PASS_LABELS[name]}"),
            group=f"{method}/{name}",
        )


def _hover(row: dict[str, Any], view: View, axis: str) -> str:
    value = f", {axis} = {plain(row[axis])}" if not is_null(row[axis]) else ""
    lines = [f"<b>{escape(row['method'])}, {PASS_LABELS[row['pass']]}{escape(value)}</b>", traces.timing_text(row)]
    lines += traces.parameter_lines(row, view)
    if row["method"] != view.baseline:
        if not is_null(row["speedup"]):
            lines.append(f"speedup over {escape(view.baseline)} {ratio(row['speedup'])}")
        lines += errors.error_lines(row, view)
    return "<br>".join(lines)
