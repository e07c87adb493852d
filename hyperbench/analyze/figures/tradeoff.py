"""Error against speedup, a point per setting, with the Pareto front and the region that trivial methods rule out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, escape, passes_in, plain, short
from hyperbench.analyze.joins import DoesNotFitError, check_single, inputs_in, masks_in
from hyperbench.analyze.plotting import errors, style, traces
from hyperbench.analyze.plotting.layout import Sheet
from hyperbench.analyze.plotting.tradeoffs import (
    ANSWERS,
    ORACLE,
    TRIVIAL,
    TradeoffPanel,
    error_axis,
    settings_of,
    speedup_axis,
)
from hyperbench.analyze.view import View, require_timings
from hyperbench.store.parameters import method_parameters

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = ("method", "is_causal", "input")
_MOST_INPUTS = 6
_PANEL_PX = 310


@dataclass(frozen=True)
class Selection:
    """The part of a view that is drawn, of one pass and one length, and the filters that choose the other parts."""

    view: View
    name: str
    seq_len: int
    others: Sequence[str]


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError where no two settings can be compared, or it would mix dimensions."""
    require_timings(view)
    chosen = selected(view)
    rows, settings = chosen.view.timings, settings_of(chosen.view)
    inputs, masks = inputs_in(settings, _MOST_INPUTS), masks_in(settings)
    looks = style.method_looks(list(view.timings["method"].unique()), view.baseline)
    x_axis = speedup_axis(settings)
    sheet = Sheet(len(inputs), [MASK_LABELS[mask] for mask in masks], spacing=(0.12 / len(inputs), 0.04))
    for i, name in enumerate(inputs, start=1):
        points, every = settings[settings["input"] == name], rows[rows["input"] == name]
        y_axis = error_axis(points, every)
        for j, is_causal in enumerate(masks, start=1):
            drawn = TradeoffPanel(sheet.panel(i, j, x_axis, y_axis), chosen.view, x_axis, y_axis)
            drawn.draw(points[points["is_causal"] == is_causal], every[every["is_causal"] == is_causal], looks)
    baseline, methods = short(view.baseline, 24), [str(name) for name in settings["method"].unique()]
    return sheet.finish(
        chosen.view,
        title=f"Error against speedup over {baseline}: {style.listed(methods, 'methods')}",
        axes=(
            f"speedup over {escape(baseline)}, {PASS_LABELS[chosen.name]}, n = {chosen.seq_len:,}",
            [f"{escape(short(plain(name), 30))}<br>{errors.AXIS_TITLE}" for name in inputs],
        ),
        notes=_notes(chosen, methods),
        plot_height=_PANEL_PX * len(inputs),
        fixed=[f"seq_len={chosen.seq_len}"],
    )


def selected(view: View) -> Selection:
    """The first pass in the order in which passes are shown, at the longest length of those with the most inputs.

    Raises DoesNotFitError where no method has a speedup and an error, where no two settings stand beside each other,
    and where a dimension varies that is not shown.
    """
    settings = settings_of(view)
    if settings.empty:
        raise DoesNotFitError(
            f"no approximate method has both a speedup over {view.baseline!r} and an error; "
            f"this run holds {', '.join(view.timings['method'].unique())}"
        )
    name, *other_passes = passes_in(settings["pass"].unique())
    settings = settings[settings["pass"] == name]
    inputs_at = settings.groupby("seq_len")["input"].nunique()
    seq_len = max((int(n) for n in inputs_at.index), key=lambda n: (int(inputs_at[n]), n))
    rows = view.timings[(view.timings["pass"] == name) & (view.timings["seq_len"] == seq_len)]
    check_single(rows, (*SHOWN, *method_parameters(rows)))
    settings = settings[settings["seq_len"] == seq_len]
    if settings.groupby(["input", "is_causal"]).size().max() < 2:
        raise DoesNotFitError(
            f"one setting of one approximate method is no trade-off (n = {seq_len:,}); "
            "`hyperbench run sweep=tradeoff` measures many"
        )
    lengths = sorted(int(n) for n in view.timings["seq_len"].unique())
    others = [f"seq_len={n}" for n in lengths if n != seq_len] + [f"pass={other}" for other in other_passes]
    return Selection(replace(view, timings=rows), name, seq_len, others)


def _notes(chosen: Selection, methods: Sequence[str]) -> list[str]:
    kinds = chosen.view.kinds
    trivial, oracles = ([m for m in methods if kinds.get(m) == kind] for kind in (TRIVIAL, ORACLE))
    slower = f"slower and less accurate than a setting of {', '.join(trivial)}, or " if trivial else ""
    aside = f" Aside stands what needs exact attention itself: {', '.join(oracles)} (oracle)." if oracles else ""
    rows = chosen.view.timings
    return [
        "A point is a setting of a method (its parameters in the hover); bars: 95 % intervals of speedups, and errors "
        "from least to most over draws.",
        f"Shaded: {slower}less accurate than a trivial answer: a method is of use outside of it. Rings and stairs: the "
        f"settings than which no other, nor exact attention, is both as fast and as accurate.{aside}",
        *([f"Other parts of this run: {', '.join(chosen.others)}."] if chosen.others else []),
        *errors.error_notes(chosen.view),
        *traces.gap_notes(rows[~rows["method"].isin(list(ANSWERS))], "speedup"),
    ]
