"""The length from which each method beats exact attention, with its interval, per pass and masking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, escape, passes_in, plain, ratio, short, significant
from hyperbench.analyze.joins import DoesNotFitError, check_single, inputs_in, masks_in, records
from hyperbench.analyze.plotting import style, traces
from hyperbench.analyze.plotting.layout import Panel, Sheet
from hyperbench.analyze.view import View, require_timings
from hyperbench.stats.crossing import ABOVE_ALL, BELOW_ALL, Crossing, crossing

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SHOWN = ("method", "is_causal", "input", "pass", "seq_len")
#: Space for a pass of a method and between methods, and what a panel has around them, in px.
_PASS_PX, _BETWEEN_PX, _AROUND_PX = 26, 10, 40
_CHAR_PX, _NAME_CHARS = 7.4, 24
_MOST_INPUTS = 4
NONE = "no interval: one of a speedup is missing"
#: Marks of a crossing before the shortest length and beyond the longest.
_OPEN_SYMBOLS = {BELOW_ALL: "triangle-left", ABOVE_ALL: "triangle-right"}


@dataclass(frozen=True)
class Place:
    """The crossing of a method in a pass, among lengths from `shortest` to `longest`, and the text of its hover."""

    found: Crossing
    shortest: int
    longest: int
    hover: str

    @property
    def x(self) -> float:
        """The place on the axis: an open crossing stands at the end of the lengths."""
        return self._on_axis(self.found.at)

    @property
    def reach(self) -> tuple[float, float]:
        """The length of the interval to the left and to the right of the place; 0 where it is not known."""
        low, high = (self.x if math.isnan(end) else self._on_axis(end) for end in (self.found.low, self.found.high))
        return max(0.0, self.x - low), max(0.0, high - self.x)

    def _on_axis(self, length: float) -> float:
        return min(max(length, float(self.shortest)), float(self.longest))


def build(view: View) -> go.Figure:
    """The figure of a run. Raises DoesNotFitError with less than two lengths, or where a dimension varies not shown."""
    require_timings(view)
    check_single(view.timings, SHOWN)
    rows = view.timings[view.timings["method"] != view.baseline].sort_values("seq_len", kind="stable")
    known = rows[(rows["speedup"] > 0) & (rows["speedup"] < math.inf)]
    lengths = sorted({int(n) for n in known["seq_len"]})
    if len(lengths) < 2:
        raise DoesNotFitError(
            f"there is no crossing to look for: speedups over {view.baseline!r} are at "
            f"{f'seq_len {lengths[0]} alone' if lengths else 'no length'}"
        )
    methods, passes = [m for m in view.methods if m in set(known["method"])], passes_in(known["pass"].unique())
    inputs, masks = inputs_in(known, _MOST_INPUTS), masks_in(known)
    x_axis, y_axis = style.seq_len_axis(lengths), _method_axis(methods, view)
    sheet = Sheet(len(inputs), [MASK_LABELS[mask] for mask in masks], spacing=(0.12 / len(inputs), 0.03))
    for i, name in enumerate(inputs, start=1):
        for j, is_causal in enumerate(masks, start=1):
            part = known[(known["input"] == name) & (known["is_causal"] == is_causal)]
            _draw(sheet.panel(i, j, x_axis, y_axis), part, view, (methods, passes))
    labels = [escape(short(plain(name), 30)) if len(inputs) > 1 else "" for name in inputs]
    height = _AROUND_PX + len(methods) * (len(passes) * _PASS_PX + _BETWEEN_PX)
    fig = sheet.finish(
        view,
        title=f"From which length on {short(view.baseline, 24)} is slower: {style.listed(methods, 'methods')}",
        axes=("sequence length n", labels),
        notes=_notes(rows, view),
        plot_height=height * len(inputs),
    )
    longest = max(len(method) for method in methods) + len(" (trivial)")
    labels_px = int(_CHAR_PX * min(longest, _NAME_CHARS))
    # Wider by as much: the footer begins where the axes do.
    return fig.update_layout(margin_l=fig.layout.margin.l + labels_px, width=fig.layout.width + labels_px)


def _method_axis(methods: Sequence[str], view: View) -> dict[str, Any]:
    """An axis with a row for each method, the first on top."""
    kinds = [f" ({view.kinds[method]})" if method in view.kinds else "" for method in methods]
    return {
        "range": [len(methods) - 0.5, -0.5],
        "tickvals": list(range(len(methods))),
        "ticktext": [escape(short(method, _NAME_CHARS) + kind) for method, kind in zip(methods, kinds, strict=True)],
    }


def _draw(panel: Panel, part: pd.DataFrame, view: View, order: tuple[Sequence[str], Sequence[str]]) -> None:
    """Draw the crossings of a panel, those of each pass a trace; `order` has the methods and the passes."""
    methods, passes = order
    middle = math.sqrt(float(view.timings["seq_len"].min()) * float(view.timings["seq_len"].max()))
    for number, name in enumerate(passes):
        shift = (number - (len(passes) - 1) / 2) * _PASS_PX / (len(passes) * _PASS_PX + _BETWEEN_PX)
        lines = {m: part[(part["method"] == m) & (part["pass"] == name)] for m in methods}
        places = {m: place_of(line, view) for m, line in lines.items() if len(line)}
        if not places:
            continue
        look = style.pass_look(name, style.PASS_COLOR[name], size=9)
        reach = [place.reach for place in places.values()]
        panel.add(
            f"pass/{name}",
            [place.hover for place in places.values()],
            x=[place.x for place in places.values()],
            y=[methods.index(method) + shift for method in places],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [right for _, right in reach],
                "arrayminus": [left for left, _ in reach],
                "color": style.rgba(look.color, 0.6),
                "thickness": 2.5,
                "width": 4,
            },
            mode="markers+text",
            text=[length_text(place.found.at, (place.shortest, place.longest)) for place in places.values()],
            textposition=["top left" if place.x > middle else "top right" for place in places.values()],
            textfont={"size": 11, "color": style.QUIET_INK},
            marker={
                "symbol": [_OPEN_SYMBOLS.get(place.found.at, look.symbol) for place in places.values()],
                "size": look.size,
                "color": look.color,
            },
            name=style.legend_name(PASS_LABELS[name]),
            cliponaxis=False,
        )


def place_of(line: pd.DataFrame, view: View) -> Place:
    """The crossing of the rows of one method, masking and pass, whose speedups are positive and finite."""
    rows = records(line.sort_values("seq_len", kind="stable"))
    lengths = [int(row["seq_len"]) for row in rows]
    found = crossing(lengths, *([float(row[column]) for row in rows] for column in traces.SPEEDUPS))
    at, low, high = (length_text(end, lengths) for end in (found.at, found.low, found.high))
    head = rows[0]
    lines = [
        f"<b>{escape(head['method'])}, {PASS_LABELS[head['pass']]}, {MASK_LABELS[bool(head['is_causal'])]}</b>",
        f"faster than {escape(view.baseline)} from n = {at} ({f'between {low} and {high}' if low and high else NONE})",
        *traces.input_line(head, view),
        *traces.parameter_lines(head, view),
        *(f"n = {n:,}: {_speedup(row)}" for n, row in zip(lengths, rows, strict=True)),
    ]
    return Place(found, lengths[0], lengths[-1], "<br>".join(lines))


def length_text(length: float, lengths: Sequence[int]) -> str:
    """A crossing among sorted lengths in words, an unknown one as ""."""
    if length == BELOW_ALL:
        return f"below {lengths[0]:,}"
    return f"above {lengths[-1]:,}" if length == ABOVE_ALL else significant(length)


def _speedup(row: Mapping[str, Any]) -> str:
    low, high = (ratio(row[column]) for column in traces.SPEEDUPS[1:])
    return f"{ratio(row['speedup'])} [{low}, {high}]" if low and high else ratio(row["speedup"])


def _notes(rows: pd.DataFrame, view: View) -> list[str]:
    return [
        f"A method beats {view.baseline} from the length on from which its speedup stays above 1 as far as was "
        "measured, interpolated in the logarithms of both. Bars: from where the upper ends of the speedups' 95 % "
        "intervals stay above 1 to where the lower ends do. Triangles: that is below, or above, all lengths measured.",
        "It says nothing of the error: the figures fig4 and tradeoff do.",
        *traces.gap_notes(rows, "speedup"),
    ]
