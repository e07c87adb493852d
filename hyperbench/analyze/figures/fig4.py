"""Speedup over the baseline against sequence length, with the error it costs: the paper's Fig. 4 on your machine."""

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
from hyperbench.analyze.paper import PublishedPoint, published_points
from hyperbench.analyze.tables import DoesNotFitError, check_single, records, single_value
from hyperbench.analyze.text import MASK_LABELS, escape, is_null, pass_label, plain, ratio
from hyperbench.analyze.view import MAIN_ERROR, TRIVIAL_ERRORS, View, parameters, provenance, require_timings
from hyperbench.analyze.work import work_ratio

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SHOWN = ("method", "is_causal", "pass", "seq_len")
Limits = dict[tuple[int, int, int], list[str]]


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where it has no speedup or mixes a dimension that is not shown."""
    require_timings(view)
    check_single(view.timings, SHOWN)
    rows = view.timings[view.timings["method"] != view.baseline].sort_values("seq_len", kind="stable")
    if not rows["speedup"].notna().any():
        raise DoesNotFitError(
            f"no speedup can be computed: no method has a time beside one of baseline {view.baseline!r}"
        )
    from plotly.subplots import make_subplots

    masks = sorted(bool(m) for m in rows["is_causal"].unique())
    stars = [p for p in published_points("fig4") if p.is_causal in masks]
    lengths = sorted({int(n) for n in rows["seq_len"]} | {p.seq_len for p in stars})
    fig = make_subplots(
        rows=2,
        cols=len(masks),
        row_heights=[0.74, 0.26],
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.045,
        horizontal_spacing=0.035,
        column_titles=[f"<b>{MASK_LABELS[m]}</b>" for m in masks],
    )
    limits = _limits(rows)
    heights = [*rows["speedup"].dropna(), *(p.speedup for p in stars), 1.0]
    heights += [work_ratio(max(lengths), *key, is_causal=m) for key in limits for m in masks]
    y_axis = style.log_axis(heights, suffix="×", pad=0.07)
    named: set[str] = set()
    for col, is_causal in enumerate(masks, start=1):
        part = rows[rows["is_causal"] == is_causal]
        top, strip = Panel(fig, 1, col, named), Panel(fig, 2, col, named)
        _speedup_curves(top, part, view)
        failures(top, part[part["speedup"].isna()], style.foot(y_axis))
        for point in stars:
            if point.is_causal == is_causal:
                _star(top, point)
        _limit_curves(top, limits, lengths, is_causal)
        _error_strip(strip, part, view)
        fig.update_yaxes(y_axis, row=1, col=col)
        fig.add_hline(1.0, line={"color": style.INK, "width": 1}, row=1, col=col)
        fig.update_yaxes(range=[0, 1.12 * largest(rows, (MAIN_ERROR, *TRIVIAL_ERRORS))], nticks=5, row=2, col=col)
        fig.update_xaxes(style.seq_len_axis(lengths), row=1, col=col)
        fig.update_xaxes(style.seq_len_axis(lengths), title_text="sequence length n", row=2, col=col)
    fig.update_yaxes(title_text=f"speedup over {escape(view.baseline)}", row=1, col=1)
    fig.update_yaxes(title_text="relative error", row=2, col=1)
    fig.update_layout(legend=style.side_legend())
    return style.finish(
        fig,
        title=f"Speedup of {', '.join(view.methods)} over {view.baseline}, and the error it costs",
        subtitle=_subtitle(view),
        provenance=provenance(view),
        notes=[*_notes(rows, stars, limits), *throttled_notes(rows), *failure_notes(rows[rows["speedup"].isna()])],
        plot_height=560,
    )


def _speedup_curves(panel: Panel, part: pd.DataFrame, view: View) -> None:
    colors = style.method_colors(view.methods, view.baseline)
    several = len(view.methods) > 1
    for method in view.methods:
        for name in style.passes_in(part["pass"].unique()):
            line = part[(part["method"] == method) & (part["pass"] == name)]
            if not line["speedup"].notna().any():
                continue
            label = f"{method}, {pass_label(name)}" if several else pass_label(name)
            curve(
                panel,
                [int(n) for n in line["seq_len"]],
                list(line["speedup"]),
                low=list(line["speedup_low"]),
                high=list(line["speedup_high"]),
                name=escape(label),
                group=f"{method}/{name}",
                color=colors[method] if several else style.PASS_COLOR.get(name, style.INK),
                dash=style.PASS_DASH.get(name, "solid") if several or name == "backward" else "solid",
                width=style.PASS_WIDTH.get(name, 2.0),
                symbol=style.PASS_SYMBOL.get(name, "circle"),
                hollow=list((line["status"] == "throttled") | (line["baseline_status"] == "throttled")),
                hover=[_hover(row, view) for row in records(line)],
                visible="legendonly" if several and name == "backward" else True,
            )


def _hover(row: dict[str, Any], view: View) -> str:
    lines = [
        f"<b>{escape(row['method'])}, {pass_label(row['pass'])}, n = {int(row['seq_len']):,}</b>",
        f"speedup {ratio(row['speedup'])} [{ratio(row['speedup_low'])}, {ratio(row['speedup_high'])}]",
        f"{escape(row['method'])}: {timing_text(row)}",
        f"{escape(view.baseline)}: {timing_text(row, 'baseline_')}",
        *error_lines(row, view.timings),
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
        values = [single_value(part, name) for name in ("block_size", "sample_size", "min_seq_len")]
        if not any(is_null(v) for v in values):
            block, sample, leaf = (int(v) for v in values)
            found.setdefault((block, sample, leaf), []).append(str(method))
    return found


def _limit_curves(panel: Panel, limits: Limits, lengths: list[int], is_causal: bool) -> None:
    import plotly.graph_objects as go

    low, high = min(lengths), max(lengths)
    xs = [low, *(2**e for e in range(low.bit_length(), high.bit_length()) if 2**e < high), high]
    xs = sorted(set(xs))
    for key, methods in limits.items():
        label = "limit at equal rate" + (f" ({escape(', '.join(methods))})" if len(limits) > 1 else "")
        ys = [work_ratio(x, *key, is_causal=is_causal) for x in xs]
        panel.add(
            go.Scatter(
                x=xs,
                y=ys,
                mode="lines",
                name=label,
                line={"color": style.LIMIT_COLOR, "dash": "8px,4px", "width": 1.5},
                hovertext=[f"limit at equal rate, n = {x:,}: {ratio(y)}" for x, y in zip(xs, ys, strict=True)],
                hoverinfo="text",
            ),
            f"limit/{key}",
        )


def _star(panel: Panel, point: PublishedPoint) -> None:
    import plotly.graph_objects as go

    claim = point.claim
    hover = [f"<b>the paper's {ratio(point.speedup)}</b>", escape(claim.label), escape(f"on {point.device}")]
    panel.add(
        go.Scatter(
            x=[point.seq_len],
            y=[point.speedup],
            mode="markers+text",
            name="published: the paper's Fig. 4" + (" [recalled]" if claim.recalled else ""),
            text=[f"paper {point.speedup:g}×"],
            textposition="bottom center",
            textfont={"size": 12, "color": style.PUBLISHED_COLOR},
            marker={
                "symbol": "star",
                "size": 15,
                "color": "#F2C14E",
                "line": {"color": style.PUBLISHED_COLOR, "width": 1.4},
            },
            hovertext=["<br>".join(hover)],
            hoverinfo="text",
            cliponaxis=False,
        ),
        "published",
    )


def _error_strip(panel: Panel, part: pd.DataFrame, view: View) -> None:
    colors = style.method_colors(view.methods, view.baseline)
    points = part.drop_duplicates("point_id")
    if MAIN_ERROR in points:
        for method in view.methods:
            line = points[points["method"] == method].dropna(subset=[MAIN_ERROR])
            if line.empty:
                continue
            curve(
                panel,
                [int(n) for n in line["seq_len"]],
                list(line[MAIN_ERROR]),
                low=list(line[f"{MAIN_ERROR}_low"]),
                high=list(line[f"{MAIN_ERROR}_high"]),
                name=escape(f"error of {method}"),
                group=f"error/{method}",
                color=colors[method] if len(view.methods) > 1 else style.INK,
                width=2.0,
                symbol="diamond",
                hover=[
                    "<br>".join([f"<b>{escape(method)}, n = {int(r['seq_len']):,}</b>", *error_lines(r, view.timings)])
                    for r in records(line)
                ],
            )
    for metric, label in TRIVIAL_ERRORS.items():
        if metric not in points or not points[metric].notna().any():
            continue
        line = points.dropna(subset=[metric]).drop_duplicates("seq_len")
        curve(
            panel,
            [int(n) for n in line["seq_len"]],
            list(line[metric]),
            name=f"error of: {label}",
            group=f"error/{metric}",
            color=style.TRIVIAL_COLOR[metric],
            dash=style.TRIVIAL_DASH[metric],
            width=1.6,
            size=4,
            hover=[f"{label}, n = {int(n):,}: {v:.3g}" for n, v in zip(line["seq_len"], line[metric], strict=True)],
        )


def _subtitle(view: View) -> str:
    machine = view.environment.get("machine") or "machine not recorded"
    texts = [parameters(view.timings, view.methods[0])] if len(view.methods) == 1 else []
    kind = ", ".join(plain(v) for v in view.timings["input"].unique())
    return "; ".join([str(machine), *(t for t in texts if t), f"{kind} input"])


def _notes(rows: pd.DataFrame, stars: list[PublishedPoint], limits: Limits) -> list[str]:
    notes = []
    for device in dict.fromkeys(p.device for p in stars):
        values = " and ".join(f"{p.speedup:g}×" for p in stars if p.device == device)
        heads = stars[0].claim.setting.get("heads")
        setting = f"{device}, {heads} heads, {stars[0].claim.setting.get('dtype')}"
        text = f"Stars: the paper's {values} at n = {stars[0].seq_len:,} ({setting}), not measured here."
        if int(rows["seq_len"].max()) < stars[0].seq_len:
            text += f" This run ends at n = {int(rows['seq_len'].max()):,}."
        notes.append(text)
    bands = "Bands: 95 % intervals of both medians."
    if limits:
        bands += " Limit at equal rate: exact work over the method's work, in query-key pairs."
    notes.append(bands + " Error: relative Frobenius against exact attention on the same input, median over draws.")
    return notes
