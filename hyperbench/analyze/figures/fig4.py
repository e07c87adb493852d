"""Speedup over the baseline against sequence length, with the error it costs: the paper's Fig. 4 on your machine."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.claims.published import PublishedPoint, published_points
from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, escape, is_null, lengths_text, ratio, short
from hyperbench.analyze.joins import DoesNotFitError, check_single, inputs_in, masks_in, records
from hyperbench.analyze.plotting import errors, style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.view import MAIN_ERROR, View, require_timings
from hyperbench.flops import work_ratio
from hyperbench.stats.rounds import MIN_ROUNDS

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SHOWN = ("method", "is_causal", "pass", "seq_len", "input")
#: Runs of these are measurements of what the paper measured: only beside them do its points and the limit make sense.
HYPER = ("hyper", "hyper_paper")
_MAX_INPUTS = 6
_PANELS_PX = 600
Limits = dict[tuple[int, int, int], list[str]]


def build(view: View) -> go.Figure:
    """The figure of a run, two rows of panels an input.

    Raises DoesNotFitError where it has no speedup or mixes a dimension that is not shown.
    """
    require_timings(view)
    check_single(view.timings, SHOWN)
    rows = view.timings[view.timings["method"] != view.baseline].sort_values("seq_len", kind="stable")
    if not rows["speedup"].notna().any():
        raise DoesNotFitError(
            f"no speedup can be computed: no method has a time beside one of baseline {view.baseline!r}; "
            f"this run holds {', '.join(view.timings['method'].unique())}"
        )
    masks, inputs = masks_in(rows), inputs_in(rows, _MAX_INPUTS)
    with_hyper = any(method in HYPER for method in view.methods)
    stars = [p for p in published_points("fig4") if p.is_causal in masks] if with_hyper else []
    lengths = sorted({int(n) for n in rows["seq_len"]} | {p.seq_len for p in stars})
    limits = _limits(rows) if with_hyper else {}
    heights = [h for bound in traces.SPEEDUPS for h in rows[bound].dropna()]
    heights += [*(p.speedup for p in stars), 1.0]
    heights += [work_ratio(max(lengths), *key, is_causal=m) for key in limits for m in masks]
    x_axis, y_axis = style.seq_len_axis(lengths), style.log_axis(heights, suffix="×", pad=0.07)
    scale = errors.error_scale(view, (MAIN_ERROR,))
    # One method needs no look of its own: its passes have theirs.
    looks = style.method_looks(view.methods, view.baseline) if len(view.methods) > 1 else {}
    error_looks = {(m, MAIN_ERROR): (f"error of {m}", _error_look(looks.get(m))) for m in errors.with_errors(view)}
    count = len(inputs)
    heights_of_rows = [part / count for _ in inputs for part in (0.7, 0.3)]
    sheet = Sheet(2 * count, [MASK_LABELS[m] for m in masks], (0.045 / count, 0.035), heights_of_rows)
    for (i, name), (j, is_causal) in itertools.product(enumerate(inputs), enumerate(masks, start=1)):
        part = rows[(rows["is_causal"] == is_causal) & (rows["input"] == name)]
        top, strip = sheet.panel(2 * i + 1, j, x_axis, y_axis), sheet.panel(2 * i + 2, j, x_axis, scale.axis)
        _speedup_curves(top, part, view, looks)
        traces.failures(top, part[part["speedup"].isna()], style.foot(y_axis))
        for point in stars:
            if point.is_causal == is_causal:
                _star(top, point)
        _limit_curves(top, limits, lengths, is_causal, looks)
        errors.ErrorPanel(strip, scale, view, "seq_len").draw(part.drop_duplicates("point_id"), error_looks)
        sheet.fig.add_hline(1.0, line={"color": style.INK, "width": 1}, row=2 * i + 1, col=j)
    whose = [f"<br>{escape(short(name, 40))}" if count > 1 else "" for name in inputs]
    over = f"speedup over {escape(short(view.baseline, 40))}"
    compared = f"{style.listed(view.methods, 'methods')} over {short(view.baseline, 24)}"
    return sheet.finish(
        view,
        title=f"Speedup of {compared}, and the error it costs",
        axes=("sequence length n", [title for at in whose for title in (f"{over}{at}", f"{errors.AXIS_TITLE}{at}")]),
        notes=[*_notes(rows, stars, limits), *errors.error_notes(view), *traces.gap_notes(rows, "speedup")],
        plot_height=_PANELS_PX * count,
    )


def _error_look(look: style.Look | None) -> style.Look:
    """The look of the errors of a method: of several each has its own, solid since there is one line of it."""
    if look is None:
        return style.Look(style.INK, width=2.2, symbol="diamond")
    return replace(look, dash="solid", width=2.2)


def _speedup_curves(panel: Panel, part: pd.DataFrame, view: View, looks: Mapping[str, style.Look]) -> None:
    """Curves of the passes of each method: of several methods the passes differ in their dashes alone."""
    several = bool(looks)
    for method, name, line in traces.lines_in(part, view.methods, "speedup"):
        look = style.pass_look(name, looks[method].color if several else style.PASS_COLOR[name])
        look = replace(look, symbol=looks[method].symbol) if several else look
        hover = [_hover(row, view) for row in records(line)]
        lengths = [int(n) for n in line["seq_len"]]
        traces.curve(
            panel,
            traces.points_of(line, traces.SPEEDUPS, lengths, hover),
            look if several or name == "backward" else replace(look, dash="solid"),
            name=style.legend_name(f"{method}, {PASS_LABELS[name]}" if several else PASS_LABELS[name]),
            group=f"{method}/{name}",
            visible="legendonly" if several and name == "backward" else True,
        )


def _hover(row: dict[str, Any], view: View) -> str:
    lines = [
        f"<b>{escape(row['method'])}, {PASS_LABELS[row['pass']]}, n = {int(row['seq_len']):,}</b>",
        *traces.input_line(row, view),
        traces.speedup_text(row),
        f"{escape(row['method'])}: {traces.timing_text(row)}",
        *traces.parameter_lines(row, view),
        f"{escape(view.baseline)}: {traces.timing_text(row, 'baseline_')}",
        *errors.error_lines(row, view),
    ]
    if row["status"] != "ok":
        lines.append(f"status {escape(row['status'])}")
    if not is_null(row["message"]) and row["message"]:
        lines.append(escape(row["message"]))
    return "<br>".join(lines)


def _limits(rows: pd.DataFrame) -> Limits:
    """The parameters (b, m, L) that set a work limit, with the methods that share them."""
    found: Limits = {}
    for method, part in rows.groupby("method", sort=False):
        # One configuration a method, which was checked.
        values = part[["block_size", "sample_size", "min_seq_len"]].iloc[0]
        if values.notna().all():
            block, sample, leaf = map(int, values)
            found.setdefault((block, sample, leaf), []).append(str(method))
    return found


def _limit_curves(
    panel: Panel, limits: Limits, lengths: list[int], is_causal: bool, looks: Mapping[str, style.Look]
) -> None:
    low, high = min(lengths), max(lengths)
    xs = sorted({low, *(2**e for e in range(low.bit_length(), high.bit_length()) if 2**e < high), high})
    for key, methods in limits.items():
        several = len(limits) > 1
        whose = f" of {', '.join(methods)}" if several else ""
        color = looks[methods[0]].color if several else style.LIMIT_COLOR
        ys = [work_ratio(x, *key, is_causal=is_causal) for x in xs]
        panel.add(
            f"limit/{key}",
            [f"limit at equal rate{escape(whose)}, n = {x:,}: {ratio(y)}" for x, y in zip(xs, ys, strict=True)],
            x=xs,
            y=ys,
            mode="lines" if several else "lines+text",
            name=style.legend_name(f"limit at equal rate{whose}, computed"),
            text=["" for _ in xs[:-1]] + ["limit"],
            textposition="top left",
            textfont={"size": 13, "color": color},
            line={"color": color, "dash": "8px,4px", "width": 1.5},
        )


def _star(panel: Panel, point: PublishedPoint) -> None:
    claim, color = point.claim, style.PUBLISHED_COLOR
    caveat = [f"caveat: {claim.caveat}"] if claim.caveat else []
    said = [claim.label, f"on {point.device}, not measured here", *caveat]
    lines = [escape(line) for text in said for line in textwrap.wrap(text, 80)]
    panel.add(
        "published",
        ["<br>".join([f"<b>published: {ratio(point.speedup)}</b>", *lines])],
        x=[point.seq_len],
        y=[point.speedup],
        mode="markers+text",
        name="published, not measured:<br>the paper's Fig. 4" + (" [recalled]" if claim.recalled else ""),
        text=[f"paper {point.speedup:g}×"],
        textposition="bottom center",
        textfont={"size": 13, "color": color},
        marker={"symbol": "star", "size": 15, "color": "#F2C14E", "line": {"color": color, "width": 1.4}},
        cliponaxis=False,
    )


def _notes(rows: pd.DataFrame, stars: list[PublishedPoint], limits: Limits) -> list[str]:
    notes = []
    longest = int(rows["seq_len"].max())
    for device in dict.fromkeys(p.device for p in stars):
        group = [p for p in stars if p.device == device]
        values = " and ".join(f"{p.speedup:g}×" for p in group)
        where = group[0].claim.setting
        setting = f"{device}, {where['heads']} heads, {where['dtype']}"
        text = f"Stars: published, not measured here: the paper's {values} at n = {group[0].seq_len:,} ({setting})."
        notes.append(text + (f" This run ends at n = {longest:,}." if longest < group[0].seq_len else ""))
    few = rows[rows["speedup_rounds"] < MIN_ROUNDS]
    bands = "Speedups: geometric means over rounds of the ratio within each; bands: their 95 % intervals."
    if len(few):
        places = "" if len(few) == rows["speedup"].notna().sum() else f" at n = {lengths_text(few['seq_len'].unique())}"
        bands += (
            f" Below {MIN_ROUNDS} rounds{places} bands are those of the medians within rounds"
            " (least to most below 6 samples)."
        )
    if limits:
        bands += (
            " Limit: exact work over the method's work, in query-key pairs: the speedup if both did their work at an "
            "equal rate; computed, not measured."
        )
    return [*notes, bands]
