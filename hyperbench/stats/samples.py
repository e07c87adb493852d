"""Statistics of timing samples: pure functions, no torch, no I/O. All times are in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Statistics of a list of samples: robust location, its 95 % interval and the spread, all in milliseconds."""

    n_samples: int
    median_ms: float
    ci_low_ms: float
    ci_high_ms: float
    p20_ms: float
    p80_ms: float
    min_ms: float
    mad_ms: float


def median(values: Sequence[float]) -> float:
    """The median; the mean of the middle two where their number is even. Raises ValueError if there is no value."""
    return percentile(values, 50.0)


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile by linear interpolation between order statistics. Raises ValueError outside 0..100 or if empty."""
    if not values:
        raise ValueError("a percentile of no samples does not exist")
    if not 0.0 <= percent <= 100.0:
        raise ValueError(f"percent={percent} is not within 0..100")
    return _of_ordered(sorted(values), percent)


def _of_ordered(ordered: Sequence[float], percent: float) -> float:
    position = (len(ordered) - 1) * percent / 100.0
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    fraction = position - below
    # Equal neighbours are returned as they are: a sum of two products may differ from them in the last bit.
    if ordered[below] == ordered[above]:
        return float(ordered[below])
    return float(ordered[below] * (1.0 - fraction) + ordered[above] * fraction)


def mad(values: Sequence[float]) -> float:
    """The median absolute deviation from the median (not scaled). Raises ValueError if there is no value."""
    return _mad(values, median(values))


def _mad(values: Sequence[float], centre: float) -> float:
    return median([abs(value - centre) for value in values])


@lru_cache(maxsize=4096)
def median_interval_rank(n_samples: int, confidence: float = CONFIDENCE) -> int:
    """The largest k (from 1) whose order statistics (k, n+1-k) cover the median with the wanted confidence; 0 if none.

    The coverage is 1 - 2 P(Binomial(n, 1/2) < k), whatever the distribution of the (independent) samples.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples={n_samples} must be positive")
    tail_allowed = (1.0 - confidence) / 2.0
    log_half_power = n_samples * math.log(0.5)
    tail, rank = 0.0, 0
    for successes in range(n_samples // 2 + 1):
        log_choose = math.lgamma(n_samples + 1) - math.lgamma(successes + 1) - math.lgamma(n_samples - successes + 1)
        tail += math.exp(log_choose + log_half_power)
        if tail > tail_allowed:
            break
        rank = successes + 1
    return rank


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The order-statistic interval of the median; (min, max) where there are too few samples for the confidence."""
    if not values:
        raise ValueError("an interval of no samples does not exist")
    ordered = sorted(values)
    rank = max(median_interval_rank(len(ordered), confidence), 1)
    return float(ordered[rank - 1]), float(ordered[-rank])


def summarise(samples_ms: Sequence[float]) -> Summary:
    """All statistics of a list of samples. Raises ValueError if there is none."""
    low, high = median_interval(samples_ms)
    ordered = sorted(samples_ms)
    centre = _of_ordered(ordered, 50.0)
    return Summary(
        n_samples=len(ordered), median_ms=centre, ci_low_ms=low, ci_high_ms=high,
        p20_ms=_of_ordered(ordered, 20.0), p80_ms=_of_ordered(ordered, 80.0),
        min_ms=float(ordered[0]), mad_ms=_mad(ordered, centre),
    )  # fmt: skip
