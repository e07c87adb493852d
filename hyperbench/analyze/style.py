"""How every figure looks: colours that colour-blind readers can tell apart, axes of the field, title and footer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.text import escape, thousands

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's palette, without its yellow, which is too pale for a thin line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
BASELINE_COLOR = "#5F6368"
PUBLISHED_COLOR = "#B8860B"
LIMIT_COLOR = "#7A7A7A"
FAILED_COLOR = "#B00020"
INK = "#202124"
GRID = "#E6E8EB"

TRIVIAL_COLOR = {"mean_v_rel_fro": "#8A6FB0", "zero_rel_fro": "#9AA0A6"}
TRIVIAL_DASH = {"mean_v_rel_fro": "dashdot", "zero_rel_fro": "dot"}

PASS_ORDER = ("forward", "forward_backward", "backward")
PASS_COLOR = dict(zip(PASS_ORDER, PALETTE, strict=False))
PASS_DASH = {"forward": "solid", "forward_backward": "dash", "backward": "dot"}
PASS_WIDTH = {"forward": 2.6, "forward_backward": 2.6, "backward": 1.3}
PASS_SYMBOL = {"forward": "circle", "forward_backward": "square", "backward": "triangle-up"}

WIDTH = 1240
_FOOTER_CHARS = 212
_SEPARATOR = " · "
_FOOTER_LINE_PX = 16
_MARGIN = {"left": 76, "right": 250, "top": 112, "bottom": 64}


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


def seq_len_axis(lengths: Iterable[int]) -> dict[str, Any]:
    """A logarithmic axis of sequence lengths, ticked at the powers of two between the ends (512, 4k, 131k)."""
    values = [int(v) for v in lengths]
    low, high = math.log2(min(values)), math.log2(max(values))
    ticks = [2**e for e in range(math.floor(low), math.ceil(high) + 1)]
    pad = 0.05 * max(high - low, 1.0) + 0.15
    return {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [thousands(t) for t in ticks],
        "range": [(low - pad) * math.log10(2), (high + pad) * math.log10(2)],
        "minor": {"ticks": ""},
    }


def log_axis(values: Iterable[float], suffix: str = "", pad: float = 0.12) -> dict[str, Any]:
    """A logarithmic axis around positive values, ticked at 1, 2, 5 of each decade, or at decades if there are many."""
    kept = [float(v) for v in values if v is not None and math.isfinite(v) and v > 0]
    low, high = math.log10(min(kept, default=1.0)), math.log10(max(kept, default=1.0))
    if high - low < 0.3:
        low, high = low - 0.3, high + 0.3
    margin = pad * (high - low)
    low, high = low - margin, high + margin
    steps = (1, 2, 5) if high - low <= 4.2 else (1,)
    ticks = [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in steps]
    return {
        "type": "log",
        "range": [low, high],
        "tickvals": ticks,
        "ticktext": [f"{t:,.10g}{suffix}" for t in ticks],
        "minor": {"ticks": ""},
    }


def foot(axis: dict[str, Any]) -> float:
    """A height just above the lower end of a logarithmic axis."""
    low, high = axis["range"]
    return float(10 ** (low + 0.035 * (high - low)))


def finish(
    fig: go.Figure, *, title: str, subtitle: str, provenance: Sequence[str], notes: Sequence[str], plot_height: int
) -> go.Figure:
    """Give a figure its title, its subtitle and a footer of notes and provenance below the axes.

    Every text is escaped here. `plot_height` is the height of the axes in px; the footer takes what it needs.
    """
    lines = [line for note in notes for line in _wrap(note)]
    lines += _pack(provenance)
    bottom = _MARGIN["bottom"] + _FOOTER_LINE_PX * len(lines) + 12
    fig.update_layout(
        template="plotly_white",
        width=WIDTH,
        height=_MARGIN["top"] + plot_height + bottom,
        margin={"l": _MARGIN["left"], "r": _MARGIN["right"], "t": _MARGIN["top"], "b": bottom},
        font={"family": "Helvetica, Arial, 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        title={
            "text": f"<b>{escape(title)}</b>",
            "subtitle": {"text": escape(subtitle), "font": {"size": 13, "color": "#5F6368"}},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "yref": "container",
            "y": 1 - 30 / (_MARGIN["top"] + plot_height + bottom),
            "yanchor": "top",
            "font": {"size": 19},
        },
        hoverlabel={"align": "left", "bgcolor": "white", "font": {"size": 12, "color": INK}},
        hovermode="closest",
    )
    fig.update_xaxes(showline=True, linecolor="#9AA0A6", gridcolor=GRID, zeroline=False, ticks="outside", ticklen=4)
    fig.update_yaxes(showline=True, linecolor="#9AA0A6", gridcolor=GRID, zeroline=False, ticks="outside", ticklen=4)
    fig.update_annotations(font_size=14)
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
        font={"size": 11, "color": "#5F6368"},
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
        "tracegroupgap": 4,
        "font": {"size": 12},
        "groupclick": "togglegroup",
        "itemsizing": "trace",
    }


def _pack(parts: Sequence[str]) -> list[str]:
    """Short texts side by side, broken between them and not inside where a line is full."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + len(_SEPARATOR) <= _FOOTER_CHARS:
            lines[-1] += _SEPARATOR + part
        else:
            lines.append(part)
    return [piece for line in lines for piece in _wrap(line)]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), _FOOTER_CHARS) or [""]
