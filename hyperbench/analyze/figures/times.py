"""Time in ms against sequence length on logarithmic axes, a panel per masking and pass, with fitted slopes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hyperbench.analyze.format import MASK_LABELS, escape, pass_label, plain, short
from hyperbench.analyze.joins import DoesNotFitError, check_single, records
from hyperbench.analyze.plotting import errors, style
from hyperbench.analyze.plotting.traces import (
    Panel,
    curve,
    failure_notes,
    failures,
    is_throttled,
    throttled_notes,
    timing_text,
)
from hyperbench.analyze.view import View, headline, meanings, provenance, require_timings

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SHOWN = ("method", "is_causal", "pass", "seq_len")
_PANEL_PX = 300
_LEGEND_ROW_PX = 19
_SYMBOLS = ("square", "circle", "diamond", "triangle-up", "cross", "star")


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where nothing was timed or a dimension varies that is not shown."""
    require_timings(view)
    check_single(view.timings, SHOWN)
    from plotly.subplots import make_subplots

    rows = view.timings.sort_values("seq_len", kind="stable")
    if rows["seq_len"].nunique() < 2:
        raise DoesNotFitError(f"seq_len has one value, {plain(rows['seq_len'].iloc[0])}: there is no curve to draw")
    masks = sorted(bool(m) for m in rows["is_causal"].unique())
    passes = style.passes_in(rows["pass"].unique())
    fig = make_subplots(
        rows=len(masks),
        cols=len(passes),
        shared_xaxes="all",
        shared_yaxes="all",
        vertical_spacing=0.05,
        horizontal_spacing=0.02,
        column_titles=[f"<b>{pass_label(p)}</b>" for p in passes],
    )
    lengths = [int(n) for n in rows["seq_len"].unique()]
    y_axis = style.log_axis([*rows["ci_low_ms"].dropna(), *rows["ci_high_ms"].dropna()], pad=0.1)
    low, high = y_axis["range"]
    # Head room for the legends inside the panels; the larger part suffices, since curves rise to the right.
    entries = rows["method"].nunique() + int(rows["median_ms"].isna().any())
    panel_px = _PANEL_PX + _LEGEND_ROW_PX * max(0, entries - 3)
    room = 0.8 * (_LEGEND_ROW_PX * entries + 12) / panel_px
    y_axis["range"] = [low, high + room / (1 - room) * (high - low)]
    for i, is_causal in enumerate(masks):
        for j, name in enumerate(passes):
            legend = "legend" if i + j == 0 else f"legend{i * len(passes) + j + 1}"
            panel = Panel(fig, i + 1, j + 1, set(), legend)
            part = rows[(rows["is_causal"] == is_causal) & (rows["pass"] == name)]
            _curves(panel, part, view)
            failures(panel, part[part["median_ms"].isna()], style.foot(y_axis))
            fig.update_xaxes(style.seq_len_axis(lengths), row=i + 1, col=j + 1)
            fig.update_yaxes(y_axis, row=i + 1, col=j + 1)
            _place_legend(fig, panel, legend)
        fig.update_yaxes(title_text=f"time in ms<br>{MASK_LABELS[is_causal]}", row=i + 1, col=1)
    for j in range(len(passes)):
        fig.update_xaxes(title_text="sequence length n", row=len(masks), col=j + 1)
    missing = rows[rows["median_ms"].isna()]
    names = [view.baseline] * bool((rows["method"] == view.baseline).any()) + view.methods
    style.finish(
        fig,
        title=f"Time of {style.listed(names, 'methods')} over sequence length",
        subtitle=headline(view),
        provenance=provenance(view),
        notes=[
            "Medians, bands: 95 % intervals (least to most below 6 samples). "
            "Slopes: time grows as n to that power, by least squares of log time over "
            "the larger half of the lengths.",
            *throttled_notes(rows),
            *failure_notes(missing),
            *meanings(view),
        ],
        plot_height=panel_px * len(masks),
    )
    fig.update_layout(margin={"r": 36})
    return fig


def fitted_slope(lengths: Sequence[int], times_ms: Sequence[float]) -> float | None:
    """The exponent p of time ~ n^p by least squares in log-log over the larger half of the lengths; None below two."""
    pairs = sorted(zip(lengths, times_ms, strict=True))
    pairs = pairs[-max(2, math.ceil(len(pairs) / 2)) :]
    xs = [math.log(n) for n, _ in pairs]
    if len(set(xs)) < 2:
        return None
    ys = [math.log(ms) for _, ms in pairs]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - mean_x) ** 2 for x in xs)


def _curves(panel: Panel, part: pd.DataFrame, view: View) -> None:
    methods = list(view.timings["method"].unique())
    colors = style.method_colors(methods, view.baseline)
    for index, method in enumerate(methods):
        line = part[part["method"] == method]
        timed = line[line["median_ms"] > 0]
        if timed.empty:
            continue
        slope = fitted_slope([int(n) for n in timed["seq_len"]], [float(v) for v in timed["median_ms"]])
        power = f"  ∝ n<sup>{slope:.2f}</sup>" if slope is not None else ""
        curve(
            panel,
            [int(n) for n in line["seq_len"]],
            list(line["median_ms"]),
            low=list(line["ci_low_ms"]),
            high=list(line["ci_high_ms"]),
            name=f"{escape(short(method, 24))}{power}",
            group=str(method),
            color=colors[method],
            symbol=_SYMBOLS[index % len(_SYMBOLS)],
            size=7,
            hollow=list(is_throttled(line)),
            hover=[
                "<br>".join(
                    [
                        f"<b>{escape(r['method'])}, {pass_label(r['pass'])}, n = {int(r['seq_len']):,}</b>",
                        timing_text(r),
                        *([] if method == view.baseline else errors.error_lines(r, view)),
                    ]
                )
                for r in records(line)
            ],
        )


def _place_legend(fig: go.Figure, panel: Panel, legend: str) -> None:
    subplot = fig.get_subplot(panel.row, panel.col)
    fig.update_layout({legend: style.panel_legend(subplot.xaxis.domain[0], subplot.yaxis.domain[1])})
