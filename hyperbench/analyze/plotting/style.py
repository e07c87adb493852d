"""How every figure looks: colours that colour-blind readers can tell apart, axes of the field, title and footer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import escape, thousands

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's palette, without its yellow, which is too pale for a thin line on white; then three of Tol's.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288",
)  # fmt: skip
BASELINE_COLOR = "#5F6368"
PUBLISHED_COLOR = "#8A6100"
LIMIT_COLOR = "#6B7075"
FAILED_COLOR = "#B00020"
INK = "#202124"
QUIET_INK = "#4A4F54"
GRID = "#E6E8EB"
AXIS = "#9AA0A6"

TRIVIAL_COLOR = {"mean_v_rel_fro": "#8A6FB0", "zero_rel_fro": "#80868B"}
TRIVIAL_DASH = {"mean_v_rel_fro": "dashdot", "zero_rel_fro": "dot"}

PASS_ORDER = ("forward", "forward_backward", "backward")
PASS_COLOR = dict(zip(PASS_ORDER, PALETTE, strict=False))
PASS_DASH = {"forward": "solid", "forward_backward": "dash", "backward": "dot"}
PASS_WIDTH = {"forward": 2.6, "forward_backward": 2.6, "backward": 1.3}
PASS_SYMBOL = {"forward": "circle", "forward_backward": "square", "backward": "triangle-up"}

# A page shows a figure some 900 px wide: at this width the smallest text is still 10 px there.
WIDTH = 1080
_FONT_PX = {"title": 20, "subtitle": 14, "text": 14, "panel": 15, "legend": 12.5, "footer": 12}
_LINE_CHARS = {"title": 84, "subtitle": 140, "legend": 30, "footer": 158}
_SEPARATOR = " · "
_SUBTITLE_LINE_PX = 18
_FOOTER_LINE_PX = 17
_LEGEND_ROW_PX = 22
_MAX_TICKS, _MIN_TICKS = 9, 3
_FINE_STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
_MARGIN = {"left": 76, "right": 236, "top": 88, "bottom": 66}


def rgba(color: str, alpha: float) -> str:
    """A #RRGGBB colour with an opacity from 0 to 1, as CSS writes it."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def method_colors(methods: Sequence[str], baseline: str) -> dict[str, str]:
    """A colour for each method in order; the baseline is grey."""
    others = [m for m in methods if m != baseline]
    colors = {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(others)}
    return {**colors, baseline: BASELINE_COLOR}


def passes_in(values: Iterable[str]) -> list[str]:
    """The passes that occur, in the order in which they are shown."""
    found = set(values)
    return [p for p in PASS_ORDER if p in found] + sorted(found - set(PASS_ORDER))


def listed(names: Sequence[str], kind: str) -> str:
    """Names side by side as long as they fit in a title, else how many there are: "hyper, uniform" or "9 methods"."""
    text = ", ".join(names)
    return text if len(text) <= 36 else f"{len(names)} {kind}"


def legend_name(text: str) -> str:
    """A name for a legend, escaped and broken into lines, so that a long one does not push the axes away."""
    lines = textwrap.wrap(text, _LINE_CHARS["legend"], max_lines=3, placeholder=" …")
    return "<br>".join(escape(line) for line in lines)


def seq_len_axis(lengths: Iterable[int]) -> dict[str, Any]:
    """A logarithmic axis of sequence lengths, ticked at the powers of two between the ends (512, 4k, 131k)."""
    values = [int(v) for v in lengths]
    low, high = math.log2(min(values)), math.log2(max(values))
    first, last = math.floor(low), math.ceil(high)
    step = math.ceil((last - first + 1) / _MAX_TICKS)
    ticks = [2**e for e in reversed(range(last, first - 1, -step))]
    pad = 0.05 * max(high - low, 1.0) + 0.15
    return {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [thousands(t) for t in ticks],
        "range": [(low - pad) * math.log10(2), (high + pad) * math.log10(2)],
        "minor": {"ticks": ""},
    }


def log_axis(
    values: Iterable[float], suffix: str = "", pad: float = 0.12, dense_decades: float = 4.2
) -> dict[str, Any]:
    """A logarithmic axis around positive values, ticked at 1, 2, 5 of each decade.

    Over more than `dense_decades` decades only the decades are ticked; over a short stretch more than 1, 2, 5.
    """
    kept = [float(v) for v in values if v is not None and math.isfinite(v) and v > 0]
    low, high = math.log10(min(kept, default=1.0)), math.log10(max(kept, default=1.0))
    if high - low < 0.3:
        low, high = low - 0.3, high + 0.3
    margin = pad * (high - low)
    low, high = low - margin, high + margin
    steps: tuple[float, ...] = (1, 2, 5) if high - low <= dense_decades else (1,)
    ticks = _ticks(low, high, steps)
    if sum(low <= math.log10(t) <= high for t in ticks) < _MIN_TICKS:
        ticks = _ticks(low, high, _FINE_STEPS)
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [f"{t:,.10g}{suffix}" for t in ticks],
        "minor": {"ticks": ""},
    }


def _ticks(low: float, high: float, steps: Iterable[float]) -> list[float]:
    return [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in steps]


def height_at(axis: dict[str, Any], part: float) -> float:
    """The value at a part (0: the lower end, 1: the upper end) of a logarithmic axis."""
    low, high = axis["range"]
    return float(10 ** (low + part * (high - low)))


def foot(axis: dict[str, Any]) -> float:
    """A height just above the lower end of a logarithmic axis."""
    return height_at(axis, 0.035)


def finish(
    fig: go.Figure,
    *,
    title: str,
    subtitle: Sequence[str],
    provenance: Sequence[str],
    notes: Sequence[str],
    plot_height: int,
) -> go.Figure:
    """Give a figure its title, the lines of its subtitle and a footer of notes and provenance below the axes.

    Every text is escaped here. `plot_height` is the least height of the axes in px; a long legend beside them makes
    them higher, and the footer takes what it needs.
    """
    under = [line for text in subtitle if text for line in _wrap(text, "subtitle")]
    lines = [line for note in notes for line in _wrap(note, "footer")]
    lines += _pack(provenance)
    top = _MARGIN["top"] + _SUBTITLE_LINE_PX * len(under)
    bottom = _MARGIN["bottom"] + _FOOTER_LINE_PX * len(lines) + 12
    height = top + max(plot_height, _legend_height(fig)) + bottom
    fig.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=height,
        margin={"l": _MARGIN["left"], "r": _MARGIN["right"], "t": top, "b": bottom},
        font={"family": "Helvetica, Arial, 'Liberation Sans', sans-serif", "size": _FONT_PX["text"], "color": INK},
        title={
            "text": f"<b>{escape(textwrap.shorten(title, _LINE_CHARS['title'], placeholder=' …'))}</b>",
            "subtitle": {
                "text": "<br>".join(escape(line) for line in under),
                "font": {"size": _FONT_PX["subtitle"], "color": QUIET_INK},
            },
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "yref": "container",
            "y": 1 - 22 / height,
            "yanchor": "top",
            "font": {"size": _FONT_PX["title"]},
        },
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"size": 13, "color": INK}},
        hovermode="closest",
    )
    fig.update_xaxes(showline=True, linecolor=AXIS, gridcolor=GRID, zeroline=False, ticks="outside", ticklen=4)
    fig.update_yaxes(showline=True, linecolor=AXIS, gridcolor=GRID, zeroline=False, ticks="outside", ticklen=4)
    fig.update_xaxes(title_font_size=_FONT_PX["panel"])
    fig.update_yaxes(title_font_size=_FONT_PX["panel"])
    fig.update_annotations(font_size=_FONT_PX["panel"])
    fig.add_annotation(
        text="<br>".join(escape(line) for line in lines),
        xref="paper",
        yref="paper",
        x=0,
        y=0,
        xanchor="left",
        yanchor="top",
        yshift=-_MARGIN["bottom"],
        align="left",
        showarrow=False,
        font={"size": _FONT_PX["footer"], "color": QUIET_INK},
        name="footer",
    )
    return fig


def side_legend() -> dict[str, Any]:
    """A legend to the right of the axes, which grows downwards and never covers a curve."""
    return {
        "x": 1.015,
        "xanchor": "left",
        "y": 1,
        "yanchor": "top",
        "tracegroupgap": 3,
        "font": {"size": _FONT_PX["legend"]},
        "groupclick": "togglegroup",
        "itemsizing": "trace",
    }


def panel_legend(right_of: float, below: float) -> dict[str, Any]:
    """A legend inside a panel, at its upper left corner (in paper coordinates)."""
    return {
        "x": right_of + 0.006,
        "xanchor": "left",
        "y": below - 0.005,
        "yanchor": "top",
        "bgcolor": "rgba(255,255,255,0.75)",
        "font": {"size": _FONT_PX["legend"]},
        "tracegroupgap": 0,
    }


def _legend_height(fig: go.Figure) -> int:
    """What the entries of the legend beside the axes need; legends inside panels have numbers in their names."""
    entries = [t for t in fig.data if t.showlegend and t.legend in (None, "legend")]
    return _LEGEND_ROW_PX * sum(1 + (t.name or "").count("<br>") for t in entries) + 16


def _pack(parts: Sequence[str]) -> list[str]:
    """Short texts side by side, broken between them and not inside where a line is full."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + len(_SEPARATOR) <= _LINE_CHARS["footer"]:
            lines[-1] += _SEPARATOR + part
        else:
            lines.append(part)
    return [piece for line in lines for piece in _wrap(line, "footer")]


def _wrap(text: str, where: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _LINE_CHARS[where]) or [""]
