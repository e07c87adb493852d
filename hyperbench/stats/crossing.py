"""The length from which a method is faster than another, from its speedups at some lengths and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Crossings that lie outside of the lengths that were measured.
BELOW_ALL, ABOVE_ALL = 0.0, math.inf


@dataclass(frozen=True)
class Crossing:
    """The length from which a speedup stays above 1, and the interval in which it lies, in tokens.

    Each is BELOW_ALL where the speedup (or that end of its interval) is above 1 at every length, ABOVE_ALL where it is
    not at the longest one; `low` and `high` are NaN where a length has no interval.
    """

    at: float
    low: float
    high: float


def crossing(
    lengths: Sequence[int], speedups: Sequence[float], lows: Sequence[float], highs: Sequence[float]
) -> Crossing:
    """The crossing of speedups whose intervals are from `lows` to `highs`.

    Its interval is between the crossings of the upper and of the lower ends: it holds the true one wherever all
    intervals hold their true speedups. Raises ValueError as crossing_length does.
    """
    ends = [crossing_length(lengths, side) if all(map(_is_place, side)) else math.nan for side in (highs, lows)]
    return Crossing(crossing_length(lengths, speedups), *ends)


def crossing_length(lengths: Sequence[int], speedups: Sequence[float]) -> float:
    """The length from which speedups stay above 1 up to the longest length, interpolated in log-log.

    BELOW_ALL if they are above 1 at each length, ABOVE_ALL if not at the longest. Raises ValueError without a length,
    or on a speedup that is not positive and finite.
    """
    places = sorted(zip(lengths, speedups, strict=True))
    if not places or not all(_is_place(value) for _, value in places):
        raise ValueError(f"speedups={list(speedups)} must be at least one, positive and finite")
    slower = [i for i, (_, value) in enumerate(places) if value <= 1.0]
    if not slower:
        return BELOW_ALL
    if slower[-1] == len(places) - 1:
        return ABOVE_ALL
    (near, below), (far, above) = places[slower[-1]], places[slower[-1] + 1]
    part = -math.log(below) / (math.log(above) - math.log(below))
    return float(near * (far / near) ** part)


def _is_place(value: float) -> bool:
    return math.isfinite(value) and value > 0.0
