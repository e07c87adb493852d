"""Means of a few examples with their 95 % intervals: pure functions, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from hyperbench.stats.power_law import student_t

_Z_95 = 1.959964


class Mean(NamedTuple):
    """A mean with its 95 % interval; without one, of a single example, `low` and `high` are NaN."""

    value: float
    low: float = math.nan
    high: float = math.nan


def mean(values: Sequence[float]) -> Mean:
    """The mean, its interval by Student's t over the examples. Raises ValueError if there is none."""
    if not values:
        raise ValueError("there is no mean of nothing")
    centre = statistics.fmean(values)
    if len(values) < 2:
        return Mean(centre)
    half = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(centre, centre - half, centre + half)


def ratio(logs: Sequence[float]) -> Mean:
    """The geometric mean of ratios from their logarithms, its interval by Student's t over the examples."""
    found = mean(logs)
    return Mean(*map(_exp, found))


def proportion(values: Sequence[float]) -> Mean:
    """The share of ones among zeros and ones, with Wilson's interval. Raises ValueError if there is none."""
    if not values:
        raise ValueError("there is no share of nothing")
    count, share, z2 = len(values), statistics.fmean(values), _Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Mean(share, max(0.0, centre - half), min(1.0, centre + half))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
