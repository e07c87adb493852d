"""The look of every figure: colours that colour-blind readers can tell apart, lines, names and axes of the field."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hyperbench.analyze.format import PASS_LABELS, escape, thousands

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
PASS_COLOR = dict(zip(PASS_LABELS, PALETTE, strict=False))

_LEGEND_CHARS = 30
_MAX_TICKS, _MIN_TICKS = 9, 3
_FINE_STEPS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Look:
    """The look of a line and its markers."""

    color: str
    dash: str = "solid"
    width: float = 2.4
    symbol: str = "circle"
    size: float = 8


#: Curves of the errors of trivial answers, by metric.
TRIVIAL_LOOK = {
    "mean_v_rel_fro": Look("#8A6FB0", "dashdot", width=1.8, size=4),
    "zero_rel_fro": Look("#80868B", "dot", width=1.8, size=4),
}
_PASS_LOOK = {
    "forward": Look("", "solid", 2.6, "circle"),
    "forward_backward": Look("", "dash", 2.6, "square"),
    "backward": Look("", "dot", 1.3, "triangle-up"),
}


def pass_look(name: str, color: str, size: float = 8) -> Look:
    """The look of a pass."""
    return replace(_PASS_LOOK[name], color=color, size=size)


def rgba(color: str, alpha: float) -> str:
    """A #RRGGBB colour with an opacity from 0 to 1, as CSS writes it."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def method_colors(methods: Sequence[str], baseline: str) -> dict[str, str]:
    """A colour for each method in order; the baseline is grey."""
    others = [m for m in methods if m != baseline]
    colors = {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(others)}
    return {**colors, baseline: BASELINE_COLOR}


def listed(names: Sequence[str], kind: str) -> str:
    """Names side by side as long as they fit in a title, else how many there are: "hyper, uniform" or "9 methods"."""
    text = ", ".join(names)
    return text if len(text) <= 36 else f"{len(names)} {kind}"


def legend_name(text: str) -> str:
    """A name for a legend, escaped and broken into lines, so that a long one does not push the axes away."""
    lines = textwrap.wrap(text, _LEGEND_CHARS, max_lines=3, placeholder=" …")
    return "<br>".join(escape(line) for line in lines)


def seq_len_axis(lengths: Iterable[int]) -> dict[str, Any]:
    """A logarithmic axis of sequence lengths, ticked at the powers of two between the ends (512, 4k, 131k)."""
    values = [int(v) for v in lengths]
    low, high = math.log2(min(values)), math.log2(max(values))
    first, last = math.floor(low), math.ceil(high)
    step = math.ceil((last - first + 1) / _MAX_TICKS)
    ticks = [2**e for e in reversed(range(last, first - 1, -step))]
    pad = 0.05 * max(high - low, 1.0) + 0.15
    ends = [(low - pad) * math.log10(2), (high + pad) * math.log10(2)]
    return _ticked(ends, ticks, [thousands(t) for t in ticks])


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
    return _ticked([low, high], ticks, [f"{t:,.10g}{suffix}" for t in ticks])


def _ticked(ends: list[float], ticks: Sequence[float], texts: Sequence[str]) -> dict[str, Any]:
    """A logarithmic axis between these powers of ten."""
    return {"type": "log", "range": ends, "tickvals": ticks, "ticktext": texts, "minor": {"ticks": ""}}


def _ticks(low: float, high: float, steps: Iterable[float]) -> list[float]:
    return [s * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for s in steps]


def height_at(axis: dict[str, Any], part: float) -> float:
    """The value at a part (0: the lower end, 1: the upper end) of a logarithmic axis."""
    low, high = axis["range"]
    return float(10 ** (low + part * (high - low)))


def foot(axis: dict[str, Any]) -> float:
    """A height just above the lower end of a logarithmic axis."""
    return height_at(axis, 0.035)
