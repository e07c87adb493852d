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


def weighted(parts: Sequence[tuple[float, Mean, int]]) -> Mean:
    """The sum of independent means by their weights, its interval by Welch's and Satterthwaite's degrees of freedom.

    A part is a weight, a mean with its interval by Student's t, and the number of its examples; where one is of a
    single example there is no interval. Raises ValueError if there is none.
    """
    if not parts:
        raise ValueError("there is no mean of nothing")
    value = math.fsum(weight * part.value for weight, part, _ in parts)
    if any(count < 2 or math.isnan(part.high) for _, part, count in parts):
        return Mean(value)
    variances = [
        ((weight * (part.high - part.value) / student_t(count - 1)) ** 2, count - 1) for weight, part, count in parts
    ]
    total = math.fsum(variance for variance, _ in variances)
    if not total:
        return Mean(value, value, value)
    degrees = total**2 / math.fsum(variance**2 / n for variance, n in variances)
    half = student_t(max(1, int(degrees))) * math.sqrt(total)
    return Mean(value, value - half, value + half)


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
