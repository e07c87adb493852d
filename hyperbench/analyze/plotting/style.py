"""The look of every figure: colours that colour-blind readers can tell apart, lines, names and axes of the field."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hyperbench.analyze.format import PASS_LABELS, escape, thousands

# Okabe and Ito's palette, without its yellow, which is too pale for a thin line on white; then four of Tol's and a dark
# green. So many colours are not all far apart for every eye (the nearest two: 13 in CIELAB for a colour-blind one, of
# the first eight 16): therefore marks differ too.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288",
    "#661100", "#006D2C",
)  # fmt: skip
#: Marks of methods, one fewer than colours: the two together repeat after the product of their numbers. The published
#: points' star and the cross of what failed are none of them.
SYMBOLS = (
    "circle", "diamond", "triangle-up", "cross", "triangle-down", "pentagon", "x", "hourglass", "square", "bowtie",
    "hexagon2",
)  # fmt: skip
_BASELINE_SYMBOL = "square"
_DASHES = ("solid", "dash", "dashdot", "dot")
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
_MOST_DECADES = 300.0
#: The least width of a panel, that of a character of a tick's label, and the gap between two labels.
_PANEL_PX, _CHAR_PX, _GAP_PX = 300, 8, 8
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


def part(length: float) -> float:
    """The length of a part of an error bar: 0 where there is no interval."""
    return 0.0 if math.isnan(length) else max(length, 0.0)


def method_looks(methods: Sequence[str], baseline: str) -> dict[str, Look]:
    """A look for each method in order, no two alike in colour, mark and dash; colours are those of `method_colors`.

    The dash stays solid until the colours are used up.
    """
    others = [m for m in methods if m != baseline]
    looks = {
        m: Look(color, _DASHES[i // len(PALETTE) % len(_DASHES)], symbol=SYMBOLS[i % len(SYMBOLS)])
        for i, (m, color) in enumerate(method_colors(others, baseline).items())
        if m != baseline
    }
    return {**looks, baseline: Look(BASELINE_COLOR, symbol=_BASELINE_SYMBOL)}


def listed(names: Sequence[str], kind: str) -> str:
    """Names side by side as long as they fit in a title, else how many there are: "hyper, uniform" or "9 methods"."""
    text = ", ".join(names)
    return text if len(text) <= 36 else f"{len(names)} {kind}"


def legend_name(text: str) -> str:
    """A name for a legend, escaped and broken into lines, so that a long one does not push the axes away."""
    lines = textwrap.wrap(text, _LEGEND_CHARS, max_lines=3, placeholder=" …")
    return "<br>".join(escape(line) for line in lines)


def seq_len_axis(lengths: Iterable[int]) -> dict[str, Any]:
    """A logarithmic axis of sequence lengths, ticked at the powers of two between the ends (512, 4k, 131k).

    Lengths that lie too near each other for that are ticked themselves.
    """
    values = sorted({int(v) for v in lengths})
    low, high = math.log2(values[0]), math.log2(values[-1])
    pad = 0.05 * (high - low) + 0.15 * min(high - low, 1.0) if high > low else 0.2
    ends = [(low - pad) * math.log10(2), (high + pad) * math.log10(2)]
    first, last = math.floor(low), math.ceil(high)
    step = math.ceil((last - first + 1) / _MAX_TICKS)
    ticks = [2**e for e in reversed(range(last, first - 1, -step))]
    if sum(values[0] <= tick <= values[-1] for tick in ticks) >= 2:
        return _ticked(ends, *apart(ticks, [thousands(t) for t in ticks], ends))
    return _ticked(ends, *apart(values, [f"{v:,}" for v in values], ends))


def value_axis(values: Sequence[float]) -> dict[str, Any]:
    """An axis ticked at these sorted values, but for those whose labels would touch; logarithmic over a wide range."""
    kind = "log" if values[0] > 0 and values[-1] >= 4 * values[0] else "linear"
    low, high = (math.log10(v) if kind == "log" else v for v in (values[0], values[-1]))
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    ends = [low - pad, high + pad]
    ticks, texts = apart(values, [_number(v) for v in values], ends, is_log=kind == "log")
    return {**_ticked(ends, ticks, texts), "type": kind}


def apart(
    ticks: Sequence[float], texts: Sequence[str], ends: Sequence[float], *, is_log: bool = True
) -> tuple[list[float], list[str]]:
    """The ticks, in order, whose labels do not touch each other in a panel of the least width, and these labels.

    `ends` are those of the axis, as powers of ten where it is logarithmic. The last tick is always kept.
    """
    kept: list[tuple[float, float, str]] = []
    for tick, text in reversed(list(zip(ticks, texts, strict=True))):
        place = ((math.log10(tick) if is_log else tick) - ends[0]) / (ends[1] - ends[0]) * _PANEL_PX
        width = len(text) * _CHAR_PX
        if not kept or place + width / 2 + _GAP_PX <= kept[-1][0]:
            kept.append((place - width / 2, tick, text))
    return [tick for _, tick, _ in reversed(kept)], [text for _, _, text in reversed(kept)]


def log_axis(
    values: Iterable[float], suffix: str = "", pad: float = 0.12, dense_decades: float = 4.2
) -> dict[str, Any]:
    """A logarithmic axis around positive values, ticked at 1, 2, 5 of each decade.

    Over more than `dense_decades` decades only the decades are ticked, over very many not all of these; over a short
    stretch more than 1, 2, 5. What lies beyond 1e-300 or 1e300 has no place on it.
    """
    kept = [float(v) for v in values if v is not None and math.isfinite(v) and v > 0]
    logs = [max(-_MOST_DECADES, min(_MOST_DECADES, math.log10(v))) for v in kept] or [0.0]
    low, high = min(logs), max(logs)
    if high - low < 0.3:
        low, high = low - 0.3, high + 0.3
    margin = min(pad * (high - low), 2.0)
    low, high = low - margin, high + margin
    ticks = _ticks(low, high, (1, 2, 5) if high - low <= dense_decades else (1,))
    if sum(low <= math.log10(t) <= high for t in ticks) < _MIN_TICKS:
        ticks = _ticks(low, high, _FINE_STEPS)
    return _ticked([low, high], ticks, [f"{_number(t)}{suffix}" for t in ticks])


def _number(value: float) -> str:
    """A number on an axis: 0.002, 50,000, and with its power of ten where that is shorter."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.10g}"
    factor, exponent = f"{value:.9e}".split("e")
    head = factor.rstrip("0").rstrip(".")
    return f"{'' if head == '1' else f'{head}·'}10<sup>{int(exponent)}</sup>"


def _ticked(ends: list[float], ticks: Sequence[float], texts: Sequence[str]) -> dict[str, Any]:
    """A logarithmic axis between these powers of ten."""
    return {
        "type": "log", "range": ends, "tickvals": ticks, "ticktext": texts, "tickangle": 0, "minor": {"ticks": ""}
    }  # fmt: skip


def _ticks(low: float, high: float, steps: Sequence[float]) -> list[float]:
    """Multiples of powers of ten around a range of them; not every power where there are too many."""
    every = max(1, math.ceil((high - low) / _MAX_TICKS)) if len(steps) == 1 else 1
    first = math.floor(low / every) * every
    return [s * 10.0**e for e in range(first, math.ceil(high) + 1, every) if abs(e) <= 307 for s in steps]


def height_at(axis: dict[str, Any], part: float) -> float:
    """The value at a part (0: the lower end, 1: the upper end) of a logarithmic axis."""
    low, high = axis["range"]
    return float(10.0 ** (low + part * (high - low)))


def foot(axis: dict[str, Any]) -> float:
    """A height just above the lower end of a logarithmic axis."""
    return height_at(axis, 0.035)
