"""Ratios of times over rounds, and what they allow to say: pure functions, no torch, no I/O.

A round is a fresh process. Samples of one process share its luck (addresses, clocks, caches), so the unit of evidence
is the round: each gives one median, and everything here is computed from those.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hyperbench.stats import CONFIDENCE

Array = NDArray[np.float64]

#: With fewer rounds a side, resampling has too few distinct outcomes for a 95 % interval.
MIN_ROUNDS = 5
#: Up to so many distinct resamples all are taken, with their probabilities; beyond, RANDOM_RESAMPLES are drawn.
MAX_EXHAUSTIVE = 20_000
RANDOM_RESAMPLES = 9_999
SEED = 20_240_507
#: Rounds that differ by less than this part are equal: that is the rounding of numbers, not a spread of times.
EQUAL_WITHIN = 1e-9


class Verdict(StrEnum):
    """What the rounds say of B against A."""

    SAME = "same"
    FASTER = "faster"
    SLOWER = "slower"
    AMBIGUOUS = "ambiguous"


class Reason(StrEnum):
    """Why a verdict is what it is; only the first two come with one other than `ambiguous`."""

    INTERVAL_WITHIN_THRESHOLD = "interval_within_threshold"
    INTERVAL_BEYOND_THRESHOLD = "interval_beyond_threshold"
    INTERVAL_STRADDLES_THRESHOLD = "interval_straddles_threshold"
    TOO_FEW_ROUNDS = "too_few_rounds"
    UNEQUAL_ROUNDS = "unequal_rounds"
    ZERO_VARIANCE = "zero_variance"
    ZERO_TIME = "zero_time"
    DIFFERENT_PROTOCOL = "different_protocol"
    THROTTLED = "throttled_on_one_side"
    NO_TIMING = "no_timing"
    NO_TIMING_IN_A = "no_timing_in_a"
    NO_TIMING_IN_B = "no_timing_in_b"
    MISSING_IN_A = "missing_in_a"
    MISSING_IN_B = "missing_in_b"


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason, and the time of B over that of A with its 95 % interval, null where there is none."""

    verdict: Verdict
    reason: Reason
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


def judge(a_ms: Mapping[int, float], b_ms: Mapping[int, float], *, paired: bool, threshold: float) -> Judgement:
    """What the medians of two sides, by round, say: is B as fast as A within `threshold` (relative), faster, slower?

    The interval of the ratio must lie wholly within 1/(1 + threshold) to 1 + threshold for `same`, and wholly beyond
    for `faster` and `slower`; whatever else is `ambiguous`. `paired`: equal round numbers were measured together.
    Raises ValueError if a side has no round.
    """
    if not a_ms or not b_ms:
        raise ValueError("a ratio of no rounds does not exist")
    if min(*a_ms.values(), *b_ms.values()) <= 0:
        return Judgement(Verdict.AMBIGUOUS, Reason.ZERO_TIME)
    log_a = np.log([a_ms[round_] for round_ in sorted(a_ms)])
    log_b = np.log([b_ms[round_] for round_ in sorted(b_ms)])
    ratio = _exp(float(log_b.mean() - log_a.mean()))
    if min(len(a_ms), len(b_ms)) < MIN_ROUNDS:
        return Judgement(Verdict.AMBIGUOUS, Reason.TOO_FEW_ROUNDS, ratio)
    if len(a_ms) != len(b_ms) or (paired and set(a_ms) != set(b_ms)):
        return Judgement(Verdict.AMBIGUOUS, Reason.UNEQUAL_ROUNDS, ratio)
    spreads = [np.ptp(log_a), np.ptp(log_b), *([np.ptp(log_b - log_a)] if paired else [])]
    if min(spreads) < EQUAL_WITHIN:
        return Judgement(Verdict.AMBIGUOUS, Reason.ZERO_VARIANCE, ratio)
    _, lows, highs = log_ratio_interval(log_a, log_b, paired=paired)
    low, high = float(lows), float(highs)
    verdict, reason = verdict_of(low, high, threshold)
    return Judgement(verdict, reason, ratio, _exp(low), _exp(high))


def verdict_of(low: float, high: float, threshold: float) -> tuple[Verdict, Reason]:
    """The verdict on an interval of the log ratio; `threshold` is relative, 0.01 for 1 %."""
    limit = math.log1p(threshold)
    if -limit <= low and high <= limit:
        return Verdict.SAME, Reason.INTERVAL_WITHIN_THRESHOLD
    if high < -limit:
        return Verdict.FASTER, Reason.INTERVAL_BEYOND_THRESHOLD
    if low > limit:
        return Verdict.SLOWER, Reason.INTERVAL_BEYOND_THRESHOLD
    return Verdict.AMBIGUOUS, Reason.INTERVAL_STRADDLES_THRESHOLD


def log_ratio_interval(
    log_a: Array, log_b: Array, *, paired: bool, confidence: float = CONFIDENCE, resamples: int = RANDOM_RESAMPLES
) -> tuple[Array, Array, Array]:
    """The log of the ratio B over A and its interval, from logs of (..., n) rounds a side: three arrays (...).

    The estimate is the mean of the logs of B minus that of A. The interval is the symmetric bootstrap-t over rounds:
    resample rounds (pairs of them where `paired`, else each side by itself), divide the error of each resample by its
    own standard error, and take the `confidence` quantile of the absolute value as the number of standard errors to
    either side. All resamples are taken where there are few; else `resamples` are drawn with a fixed seed.
    Raises ValueError on unequal numbers of rounds.
    """
    if log_a.shape != log_b.shape or log_a.shape[-1] < 2:
        raise ValueError(f"rounds of shapes {log_a.shape} and {log_b.shape} must be equal and at least two a side")
    sides = [log_b - log_a] if paired else [log_a, log_b]
    centre = sides[0].mean(-1) if paired else log_b.mean(-1) - log_a.mean(-1)
    variance = np.sum([side.var(-1) for side in sides], axis=0)
    error, variances, probabilities = _resampled(sides, resamples)
    # A resample without spread has no standard error: it counts as infinitely far away, which widens the interval.
    has_spread = variances > 1e-12 * variance[..., None]
    distance = np.full(error.shape, np.inf)
    np.divide(np.abs(error), np.sqrt(variances), out=distance, where=has_spread)
    reach = _quantile(distance, probabilities, confidence) * np.sqrt(variance)
    return centre, centre - reach, centre + reach


def _resampled(sides: list[Array], count: int) -> tuple[Array, Array, Array]:
    """Errors of the resampled log ratio, their variances (..., R), and the probability of each of the R resamples."""
    n = sides[0].shape[-1]
    weights, probabilities = _weights(n, len(sides), count)
    means, variances = [], []
    for side, weight in zip(sides, weights, strict=True):
        centred = side - side.mean(-1, keepdims=True)
        mean = centred @ weight.T
        means.append(mean)
        variances.append(np.maximum(np.square(centred) @ weight.T - np.square(mean), 0.0))
    if len(sides) == 1:
        return means[0], variances[0], probabilities
    if len(probabilities) == len(weights[0]):
        return means[1] - means[0], variances[0] + variances[1], probabilities
    # Every resample of one side with every one of the other.
    flat = (*sides[0].shape[:-1], len(probabilities))
    error = (means[1][..., None, :] - means[0][..., :, None]).reshape(flat)
    return error, (variances[1][..., None, :] + variances[0][..., :, None]).reshape(flat), probabilities


@lru_cache(maxsize=16)
def _weights(n: int, num_sides: int, count: int) -> tuple[tuple[Array, ...], Array]:
    """For each side the parts (R, n) that the n rounds have in a resample, and the probabilities of the resamples.

    All R = C(2n - 1, n) distinct resamples a side, the probabilities then over all their combinations; or, where these
    are more than MAX_EXHAUSTIVE, `count` drawn ones.
    """
    distinct = math.comb(2 * n - 1, n)
    if distinct**num_sides <= MAX_EXHAUSTIVE:
        chosen = itertools.combinations_with_replacement(range(n), n)
        counts = np.array([np.bincount(rounds, minlength=n) for rounds in chosen])
        ways = [math.factorial(n) // math.prod(math.factorial(int(c)) for c in row) for row in counts]
        single = np.array(ways, dtype=float) / n**n
        joint = single if num_sides == 1 else np.outer(single, single).ravel()
        return (counts / n,) * num_sides, joint
    rng = np.random.default_rng(SEED)
    drawn = tuple(rng.multinomial(n, [1.0 / n] * n, size=count) / n for _ in range(num_sides))
    return drawn, np.full(count, 1.0 / count)


def _quantile(values: Array, probabilities: Array, level: float) -> Array:
    """The smallest value that is reached with a probability of at least `level`, along the last axis."""
    order = np.argsort(values, axis=-1)
    reached = np.cumsum(probabilities[order], axis=-1)
    index = np.minimum((reached < level - 1e-12).sum(-1, keepdims=True), values.shape[-1] - 1)
    return np.take_along_axis(np.take_along_axis(values, order, -1), index, -1)[..., 0]


def _exp(value: float) -> float:
    """The exponential; infinity where it is too large for a number."""
    return math.exp(value) if value < 709.0 else math.inf
