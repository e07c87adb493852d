"""Tests of samples for drift and for two modes, which a median does not describe. Pure functions, no torch.

Both tests ask for an effect that matters as well as for significance: with many samples anything is significant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from hyperbench.stats.samples import median

#: A drift or a distance of two modes below this part of the median matters to nobody.
SMALLEST_EFFECT = 0.02
#: Two-sided level of the trend test.
_TREND_LEVEL = 0.01
_TREND_MIN_SAMPLES = 8
#: More samples than this are first made so many medians of neighbours.
_TREND_MOST = 120
#: A mode has at least this part of the samples, and at least so many samples; fewer are outliers.
_MODE_SHARE = 0.25
_MODE_MIN_SAMPLES = 3
_MODES_MIN_SAMPLES = 10
#: The means of two modes lie this many deviations apart, for many samples; the other term is over their number.
_MODE_DISTANCE = 4.5
_MODE_DISTANCE_FEW = 25.0


def has_drift(samples: Sequence[float]) -> bool:
    """True if samples in time order rise or fall: Mann-Kendall's test at 1 %, and thirds that differ by 2 % or more.

    Too few samples (below 8) have no drift that could be told from noise.
    """
    if len(samples) < _TREND_MIN_SAMPLES:
        return False
    third = len(samples) // 3
    change = abs(median(samples[-third:]) - median(samples[:third]))
    centre = median(samples)
    if centre <= 0 or change < SMALLEST_EFFECT * centre:
        return False
    return trend_p_value(_thinned(samples)) < _TREND_LEVEL


def trend_p_value(samples: Sequence[float]) -> float:
    """Two-sided p-value of Mann-Kendall's test of a monotonic trend, by the normal approximation, ties counted."""
    n = len(samples)
    score = sum(
        (later > earlier) - (later < earlier) for i, earlier in enumerate(samples) for later in samples[i + 1 :]
    )
    variance = (_pairs(n) - sum(map(_pairs, Counter(samples).values()))) / 18.0
    if score == 0 or variance <= 0:
        return 1.0
    z = (abs(score) - 1) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2.0))


def has_two_modes(samples: Sequence[float], resolution: float = 0.0) -> bool:
    """True if samples fall into two groups, each of a quarter of them or more, that lie far apart for their widths.

    The groups are those whose spread within is least; they count as two where the distance of their means is many times
    that spread (4.5 for many samples, more for few), and 2 % of the median and twice the clock's resolution or more.
    Below 10 samples it is never said.
    """
    n = len(samples)
    if n < _MODES_MIN_SAMPLES:
        return False
    ordered = sorted(samples)
    least = max(_MODE_MIN_SAMPLES, math.ceil(_MODE_SHARE * n))
    # Sums of the differences to the least sample, so that squares of large numbers do not cancel.
    sums, squares = [0.0], [0.0]
    for sample in ordered:
        shifted = sample - ordered[0]
        sums.append(sums[-1] + shifted)
        squares.append(squares[-1] + shifted * shifted)
    best_within, best_split = math.inf, least
    for split in range(least, n - least + 1):
        within = _spread(sums, squares, 0, split) + _spread(sums, squares, split, n)
        if within < best_within:
            best_within, best_split = within, split
    low = sums[best_split] / best_split
    high = (sums[n] - sums[best_split]) / (n - best_split)
    if median(ordered) <= 0 or high - low < max(SMALLEST_EFFECT * median(ordered), 2.0 * resolution):
        return False
    deviation = math.sqrt(max(best_within, 0.0) / n)
    return high - low > (_MODE_DISTANCE + _MODE_DISTANCE_FEW / n) * deviation


def _spread(sums: Sequence[float], squares: Sequence[float], start: int, stop: int) -> float:
    """Sum of squared deviations from the mean of the samples from start to stop."""
    total = sums[stop] - sums[start]
    return max(0.0, squares[stop] - squares[start] - total * total / (stop - start))


def _pairs(n: int) -> float:
    return float(n * (n - 1) * (2 * n + 5))


def _thinned(samples: Sequence[float]) -> Sequence[float]:
    if len(samples) <= _TREND_MOST:
        return samples
    edges = [i * len(samples) // _TREND_MOST for i in range(_TREND_MOST + 1)]
    return [median(samples[low:high]) for low, high in pairwise(edges)]
