"""Shares of the stages of a forward pass (hash, sort, sample, attend, ...) over sequence length, as stacked areas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, escape, flags_in, is_null, lengths_text, milliseconds, short
from hyperbench.analyze.joins import DoesNotFitError, check_single, masks_in, records
from hyperbench.analyze.plotting import style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.stage_table import KNOWN, by_point, missing_stages, stages_in
from hyperbench.analyze.view import View, require_timings

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Stages = Mapping[str, Mapping[str, Any]]
SHOWN = ("method", "is_causal", "seq_len")
WHOLE_PASS = "forward pass as a whole"
_PANEL_PX = 330
_MAX_NOTES = 4
#: Half the width of the bar that stands for an area of one length, as a factor of that length.
_BAR = 1.12
_ALPHA = 0.62
#: The line of the whole pass is cut here, in percent of the sum: one disturbed time is not to flatten the areas.
MOST_PERCENT = 160.0


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError without stages, or where a dimension varies that is not shown."""
    require_timings(view)
    rows = _whole(view)
    check_single(rows.drop_duplicates("point_id"), SHOWN)
    lengths = sorted({int(n) for n in rows["seq_len"]})
    if len(lengths) < 2:
        raise DoesNotFitError(f"stages have one seq_len, {lengths[0]}: there is no area to draw")
    methods, masks = [str(m) for m in rows["method"].unique()], masks_in(rows)
    shown = view.stages[view.stages["method"].isin(methods)].sort_values("seq_len", kind="stable")
    colors = _colors(stages_in(rows))
    highest = max([100.0, *rows["forward_percent"].dropna()])
    x_axis = style.seq_len_axis(shown["seq_len"])
    y_axis = {"range": [0.0, 1.08 * min(highest, MOST_PERCENT)], "ticksuffix": " %", "dtick": 20}
    sheet = Sheet(len(methods), [MASK_LABELS[m] for m in masks], spacing=(0.06, 0.035))
    for i, method in enumerate(methods, start=1):
        for j, is_causal in enumerate(masks, start=1):
            panel = sheet.panel(i, j, x_axis, y_axis)
            part = shown[(shown["method"] == method) & (shown["is_causal"] == is_causal)]
            _areas(panel, part, colors)
            _whole_pass(panel, part)
            places = dict(zip(part["point_id"], part["seq_len"], strict=True))
            causes = {places[point]: lines for point, lines in missing_stages(part).items()}
            traces.crosses(panel, causes, 3.0, "seq_len")
    heads = [f"{escape(short(method, 24))}<br>" if len(methods) > 1 else "" for method in methods]
    fig = sheet.finish(
        view,
        title=f"Where the time of a forward pass of {style.listed(methods, 'methods')} goes",
        axes=("sequence length n", [f"{head}share of the sum of stages" for head in heads]),
        notes=_notes(view),
        plot_height=_PANEL_PX * len(methods),
    )
    return fig.update_layout(legend={"traceorder": "reversed"})


def _whole(view: View) -> pd.DataFrame:
    """The stages of the points that have a time for each. Raises DoesNotFitError where there are none."""
    if view.stages.empty:
        raise DoesNotFitError(
            "this run holds no stages; `hyperbench run sweep=stages` times them, as does stages=true in any sweep"
        )
    rows = view.stages[view.stages["sum_ms"].notna()]
    if rows.empty:
        first = next(iter(missing_stages(view.stages).values()))[0]
        raise DoesNotFitError(f"no point of this run has a time for each of its stages ({short(first)})")
    return rows.sort_values("seq_len", kind="stable")


def _colors(stages: list[str]) -> dict[str, str]:
    """A colour for each stage, the same in every figure for those of the library; exact attention is grey."""
    order = [name for name in (*KNOWN, *(n for n in stages if n not in KNOWN)) if name != "exact"]
    colors = {name: style.PALETTE[i % len(style.PALETTE)] for i, name in enumerate(order)}
    return {name: colors.get(name, style.BASELINE_COLOR) for name in stages}


def _areas(panel: Panel, part: pd.DataFrame, colors: Mapping[str, str]) -> None:
    """A stack for each stretch of neighbouring lengths that have the same stages; that of one length is a bar."""
    for number, stretch in enumerate(_stretches(part)):
        for rank, name in ((r, n) for r, n in enumerate(colors) if n in stretch[0]):
            # One length is drawn as three places close to each other, of which the middle one has a marker.
            factors = (1.0,) if len(stretch) > 1 else (1 / _BAR, 1.0, _BAR)
            drawn = [(stages[name], factor) for stages in stretch for factor in factors]
            fill = ["white" if r["status"] == "throttled" else colors[name] for r, _ in drawn]
            line = {"color": colors[name], "width": 1.2}
            panel.add(
                f"stage/{name}",
                [_hover(r) for r, _ in drawn],
                x=[int(r["seq_len"]) * factor for r, factor in drawn],
                y=[100.0 * float(r["share"]) for r, _ in drawn],
                mode="lines+markers",
                name=style.legend_name(name),
                stackgroup=f"{panel.row}/{panel.col}/{number}",
                fillcolor=style.rgba(colors[name], _ALPHA),
                line=line,
                marker={"color": fill, "size": [5 if factor == 1.0 else 0 for _, factor in drawn], "line": line},
                hoveron="points",
                legendrank=rank,
            )


def _stretches(part: pd.DataFrame) -> list[list[Stages]]:
    """The points of a panel, by length, cut where the stages change and where a point lacks one."""
    found: list[list[Stages]] = [[]]
    for stages in by_point(part).values():
        if is_null(next(iter(stages.values()))["sum_ms"]):
            found.append([])
        elif found[-1] and found[-1][-1].keys() != stages.keys():
            found.append([stages])
        else:
            found[-1].append(stages)
    return [stretch for stretch in found if stretch]


def _whole_pass(panel: Panel, part: pd.DataFrame) -> None:
    line = part.drop_duplicates("point_id")
    if not line["forward_percent"].notna().any():
        return
    traces.curve(
        panel,
        traces.Points(
            [int(n) for n in line["seq_len"]],
            list(line["forward_percent"].clip(upper=MOST_PERCENT)),
            list(100.0 * line["forward_low_ms"] / line["sum_ms"]),
            list(100.0 * line["forward_high_ms"] / line["sum_ms"]),
            hover=[
                "<br>".join([f"<b>{escape(r['method'])}, n = {int(r['seq_len']):,}</b>", *_sums(r)])
                for r in records(line)
            ],
            hollow=list(line["forward_status"] == "throttled"),
        ),
        style.Look(style.INK, "dash", 1.8, "diamond", 7),
        name=style.legend_name(WHOLE_PASS),
        group="whole",
    )


def _hover(row: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{escape(row['stage'])}, n = {int(row['seq_len']):,}</b>",
        traces.timing_text(row),
        f"{100.0 * float(row['share']):.1f} % of the sum of the stages",
        *_sums(row),
    ]
    if flags := flags_in([row["flags"]]):
        lines.append(escape(f"flagged: {', '.join(flags)}"))
    if row["message"]:
        lines.append(escape(short(row["message"])))
    return "<br>".join(lines)


def _sums(row: Mapping[str, Any]) -> list[str]:
    """The sum of the stages alongside the pass as a whole."""
    total = f"sum of the stages {milliseconds(row['sum_ms'])}"
    if is_null(row["forward_ms"]):
        return [total, "forward pass: no time"]
    whole = f"forward pass as a whole {milliseconds(row['forward_ms'])}"
    return [total, f"{whole} ({row['forward_percent']:.0f} % of the sum)"]


def _notes(view: View) -> list[str]:
    notes = [
        "Each stage is timed by itself, on the results of those before it (medians). Areas: its part of the sum of the "
        "stages. Line: the forward pass timed as a whole; where it lies at 100 %, the stages add up to it."
    ]
    if (view.timings["device"] == "cuda").any():
        notes.append(
            "The L2 cache is overwritten before each stage, so that none finds there what the one before left."
        )
    slow = view.stages["forward_status"] == "throttled"
    notes += traces.throttled_notes(view.stages.assign(status=view.stages["status"].mask(slow, "throttled")))
    flagged = flags_in(view.stages["flags"])
    if flagged:
        where = lengths_text(view.stages.loc[view.stages["flags"].notna(), "seq_len"].unique())
        notes.append(f"Flagged stages ({', '.join(flagged)}; see hover) at n = {where}.")
    rows = view.stages.drop_duplicates("point_id")
    cut = [
        f"{row['forward_percent']:.0f} % at n = {int(row['seq_len']):,} {MASK_LABELS[bool(row['is_causal'])]}"
        for row in records(rows[rows["forward_percent"] > MOST_PERCENT])
    ]
    if cut:
        notes.append(f"The line is cut at {MOST_PERCENT:.0f} %; it lies at {', '.join(cut)}.")
    lost = missing_stages(view.stages)
    whole = view.stages[view.stages["point_id"].isin(list(lost))]
    reasons = [lost[point][0] for point in whole["point_id"]]
    return [*notes, *traces.notes_by_reason(whole, reasons, "No stages: {}")[:_MAX_NOTES]]
