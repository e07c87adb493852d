"""Time in ms against sequence length on logarithmic axes, a panel per masking and pass, with fitted slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, escape, passes_in, plain, short
from hyperbench.analyze.joins import DoesNotFitError, check_single, inputs_in, masks_in, records
from hyperbench.analyze.plotting import errors, style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.view import View, require_timings
from hyperbench.stats.power_law import power_law

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SHOWN = ("method", "is_causal", "pass", "seq_len", "input")
_PANEL_PX = 300
_LEGEND_ROW_PX = 19
_MAX_INPUTS = 6


def build(view: View) -> go.Figure:
    """The figure of a run, a row of panels an input and masking.

    Raises DoesNotFitError where nothing was timed or a dimension varies that is not shown.
    """
    require_timings(view)
    check_single(view.timings, SHOWN)
    rows = view.timings.sort_values("seq_len", kind="stable")
    if rows["seq_len"].nunique() < 2:
        raise DoesNotFitError(f"seq_len has one value, {plain(rows['seq_len'].iloc[0])}: there is no curve to draw")
    inputs, passes = inputs_in(rows, _MAX_INPUTS), passes_in(rows["pass"].unique())
    places = [(name, is_causal) for name in inputs for is_causal in masks_in(rows[rows["input"] == name])]
    x_axis = style.seq_len_axis(int(n) for n in rows["seq_len"].unique())
    y_axis = style.log_axis([*rows["ci_low_ms"].dropna(), *rows["ci_high_ms"].dropna()], pad=0.1)
    low, high = y_axis["range"]
    # Space for the legends inside the panels; the larger part suffices, since curves rise to the right.
    entries = rows["method"].nunique() + int(rows["median_ms"].isna().any())
    panel_px = _PANEL_PX + _LEGEND_ROW_PX * max(0, entries - 3)
    space = 0.8 * (_LEGEND_ROW_PX * entries + 12) / panel_px
    y_axis["range"] = [low, high + space / (1 - space) * (high - low)]
    gap = 0.1 / max(2, len(places))
    sheet = Sheet(len(places), [PASS_LABELS[p] for p in passes], spacing=(gap, 0.02), legend_in_panels=True)
    for i, (source, is_causal) in enumerate(places, start=1):
        for j, name in enumerate(passes, start=1):
            panel = sheet.panel(i, j, x_axis, y_axis)
            at = (rows["is_causal"] == is_causal) & (rows["input"] == source)
            part = rows[at & (rows["pass"] == name)]
            _curves(panel, part, view)
            traces.failures(panel, part[part["median_ms"].isna()], style.foot(y_axis))
    whose = {name: f"<br>{escape(short(name, 32))}" if len(inputs) > 1 else "" for name in inputs}
    names = [view.baseline] * bool((rows["method"] == view.baseline).any()) + view.methods
    return sheet.finish(
        view,
        title=f"Time of {style.listed(names, 'methods')} over sequence length",
        axes=("sequence length n", [f"time in ms<br>{MASK_LABELS[m]}{whose[name]}" for name, m in places]),
        notes=[
            "Medians, bands: 95 % intervals (least to most below 6 samples). "
            "Slopes: time grows as n to that power, by least squares of log time over "
            "the larger half of the lengths.",
            *traces.gap_notes(rows, "median_ms"),
        ],
        plot_height=panel_px * len(places),
    )


def fitted_slope(lengths: Sequence[int], times_ms: Sequence[float]) -> float | None:
    """The exponent p of time ~ n^p by least squares in log-log over the larger half of the lengths; None below two."""
    pairs = sorted(zip(lengths, times_ms, strict=True))
    pairs = pairs[-max(2, math.ceil(len(pairs) / 2)) :]
    law = power_law(pairs)
    return None if law is None else law.exponent


def _curves(panel: Panel, part: pd.DataFrame, view: View) -> None:
    methods = list(view.timings["method"].unique())
    looks = style.method_looks(methods, view.baseline)
    for method in methods:
        line = part[part["method"] == method]
        timed = line[line["median_ms"] > 0]
        if timed.empty:
            continue
        slope = fitted_slope([int(n) for n in timed["seq_len"]], [float(v) for v in timed["median_ms"]])
        power = f"  ∝ n<sup>{slope:.2f}</sup>" if slope is not None else ""
        hover = [_hover(row, view) for row in records(line)]
        traces.curve(
            panel,
            traces.points_of(line, traces.TIMES, [int(n) for n in line["seq_len"]], hover),
            replace(looks[method], size=7),
            name=f"{escape(short(method, 24))}{power}",
            group=str(method),
        )


def _hover(row: dict[str, Any], view: View) -> str:
    head = f"<b>{escape(row['method'])}, {PASS_LABELS[row['pass']]}, n = {int(row['seq_len']):,}</b>"
    lost = [] if row["method"] == view.baseline else errors.error_lines(row, view)
    told = [*traces.input_line(row, view), traces.timing_text(row), *traces.parameter_lines(row, view)]
    return "<br>".join([head, *told, *lost])
