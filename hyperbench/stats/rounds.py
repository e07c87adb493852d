"""Ratios of times over rounds, and what they allow to say: pure functions, no torch, no I/O.

A round is a fresh process. Samples of one process share its luck (addresses, clocks, caches), so the unit of evidence
is the round: each gives one median, and everything here is computed from those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperbench.stats.samples import CONFIDENCE

Array = NDArray[np.float64]

#: Two rounds say next to nothing of how much rounds differ; from three on the interval covers what it says.
MIN_ROUNDS = 3
RESAMPLES = 20_000
SEED = 20_240_507
#: Rounds that differ by less than this part are equal: that is the rounding of numbers, not a spread of times.
EQUAL_WITHIN = 1e-9
#: Ratios that are resampled together: what they take lies in a cache.
_ROWS_AT_ONCE = 4


class Verdict(StrEnum):
    """The verdict on B against A, from their rounds."""

    SAME = "same"
    FASTER = "faster"
    SLOWER = "slower"
    AMBIGUOUS = "ambiguous"


class Reason(StrEnum):
    """Reason of a verdict; only the first two come with one other than `ambiguous`."""

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


def judge(a_ms: Mapping[Any, float], b_ms: Mapping[Any, float], *, paired: bool, threshold: float) -> Judgement:
    """Judge the medians of two sides, by round (its key): B as fast as A within `threshold`, faster or slower.

    The interval of the ratio must lie wholly within 1/(1 + threshold) to 1 + threshold for `same`, and wholly beyond
    for `faster` and `slower`; whatever else is `ambiguous`. `paired`: rounds of equal keys were measured together, and
    the ratio is that of `paired_log_ratios`, over the rounds that both sides have.
    Raises ValueError if a side has no round.
    """
    if not a_ms or not b_ms:
        raise ValueError("a ratio of no rounds does not exist")
    if min(*a_ms.values(), *b_ms.values()) <= 0:
        return Judgement(Verdict.AMBIGUOUS, Reason.ZERO_TIME)
    few = min(len(a_ms), len(b_ms)) < MIN_ROUNDS
    unequal = len(a_ms) != len(b_ms) or (paired and set(a_ms) != set(b_ms))
    common = a_ms.keys() & b_ms.keys()
    log_a, log_b = (np.log([of[r] for r in sorted(common if paired else of)]) for of in (a_ms, b_ms))
    if paired:
        ratio, low, high = (float(value) for value in paired_log_ratios(log_a, log_b))
    elif few or unequal:
        ratio, low, high = float(log_b.mean() - log_a.mean()), math.nan, math.nan
    else:
        ratio, low, high = (float(value) for value in _log_ratios(log_a, log_b, paired=False))
    reason, verdict = Reason.TOO_FEW_ROUNDS if few else Reason.UNEQUAL_ROUNDS, Verdict.AMBIGUOUS
    if not few and not unequal:
        no_interval = (Verdict.AMBIGUOUS, Reason.ZERO_VARIANCE)
        verdict, reason = no_interval if math.isnan(low) else verdict_of(low, high, threshold)
    return Judgement(verdict, reason, *(None if math.isnan(value) else _exp(value) for value in (ratio, low, high)))


def paired_log_ratios(log_a: Array, log_b: Array) -> tuple[Array, Array, Array]:
    """The log of the ratio B over A of n paired rounds and its 95 % interval, from logs (..., n): three arrays (...).

    The ratio is the geometric mean over the rounds of the ratio within each; that of A over B is its inverse, to the
    ends of the interval. There is no interval (NaN) below MIN_ROUNDS rounds and where they do not differ, and no ratio
    without a round or with a time of zero.
    """
    return _log_ratios(log_a, log_b, paired=True)


def _log_ratios(log_a: Array, log_b: Array, *, paired: bool) -> tuple[Array, Array, Array]:
    """As `log_ratio_interval`, but NaN where there is none."""
    n = log_a.shape[-1]
    none = np.full(log_a.shape[:-1], np.nan)
    if n == 0:
        return none, none, none
    known = np.isfinite(log_a).all(-1) & np.isfinite(log_b).all(-1)
    centre = np.where(known, log_b.mean(-1) - log_a.mean(-1), np.nan)
    if n < MIN_ROUNDS:
        return centre, none, none
    compared = [log_a, log_b, *([log_b - log_a] if paired else [])]
    varies = known & (np.min([np.ptp(side, axis=-1) for side in compared], axis=0) >= EQUAL_WITHIN)
    low, high = none.copy(), none.copy()
    _, low[varies], high[varies] = log_ratio_interval(log_a[varies], log_b[varies], paired=paired)
    return centre, low, high


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
    log_a: Array, log_b: Array, *, paired: bool, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> tuple[Array, Array, Array]:
    """The log of the ratio B over A and its interval, from logs of (..., n) rounds a side: three arrays (...).

    The estimate is the mean of the logs of B minus that of A. The interval is a smoothed bootstrap-t over rounds: draw
    n rounds with replacement (pairs of them where `paired`, else from each side by itself), add normal noise of a
    kernel's width to each, divide the error of the mean by its standard error; the quantiles of that quotient, times
    the standard error of the rounds themselves, are how far the interval reaches. The draws have a fixed seed, and are
    such that the interval of A over B is exactly the mirror image, and the order of rounds does not matter.
    Raises ValueError on unequal numbers of rounds.
    """
    if log_a.shape != log_b.shape or log_a.shape[-1] < 2:
        raise ValueError(f"rounds of shapes {log_a.shape} and {log_b.shape} must be equal and at least two a side")
    sides = [log_b - log_a] if paired else [log_a, log_b]
    n, tail = log_a.shape[-1], (1.0 - confidence) / 2.0
    draws = _draws(n, paired, resamples)
    rows = [side.reshape(-1, n) for side in sides]
    parts = [
        _quotients([side[i : i + _ROWS_AT_ONCE] for side in rows], draws, tail)
        for i in range(0, len(rows[0]), _ROWS_AT_ONCE)
    ]
    low, high = np.concatenate([np.empty((2, 0)), *parts], axis=1).reshape(2, *log_a.shape[:-1])
    centre = log_b.mean(-1) - log_a.mean(-1)
    scale = np.sqrt(np.sum([side.var(-1) for side in sides], axis=0))
    return centre, centre - high * scale, centre - low * scale


@dataclass(frozen=True)
class _Draws:
    """R resamples of n rounds as two matrices: a row's mean and mean square are products with what `_features` gives.

    `mean` is (n + 1, R), how often each round was drawn and the mean of the noise added, `square` (2 n + 1, R); all are
    parts of n, and the noise is in units of the spread of the rounds.
    """

    mean: Array
    square: Array


def _quotients(sides: Sequence[Array], draws: Sequence[_Draws], tail: float) -> Array:
    """The lower and upper quantile of error over standard error of the resamples, for rows of rounds: (2, rows)."""
    moments = [_resampled(side, draw) for side, draw in zip(sides, draws, strict=True)]
    error, variance = (
        moments[0] if len(moments) == 1 else (moments[1][0] - moments[0][0], moments[0][1] + moments[1][1])
    )
    # The squares with their signs: only the few that the quantiles need are made roots.
    signed = np.abs(error)
    signed *= error
    signed /= variance
    last = signed.shape[-1] - 1
    ends = []
    for at in (tail * last, (1.0 - tail) * last):
        below, part = math.floor(at), at - math.floor(at)
        signed.partition(below, axis=-1)  # one rank at a time: numpy is several times quicker so
        next_above = signed[:, min(below + 1, last) :].min(-1)
        ends.append(_signed_root(signed[:, below]) * (1.0 - part) + _signed_root(next_above) * part)
    return np.array(ends)


def _signed_root(values: Array) -> Array:
    return np.sign(values) * np.sqrt(np.abs(values))


def _resampled(rounds: Array, draws: _Draws) -> tuple[Array, Array]:
    """The error of the mean of each resample (rows, R) and the variance among its n rounds, which is never zero."""
    centred = np.sort(rounds - rounds.mean(-1, keepdims=True), axis=-1)
    spread = rounds.std(-1, ddof=1)[:, None]
    mean = np.hstack([centred, spread]) @ draws.mean
    variance = np.hstack([np.square(centred), 2.0 * spread * centred, np.square(spread)]) @ draws.square
    variance -= np.square(mean)
    np.maximum(variance, np.square(1e-6 * spread), out=variance)
    return mean, variance


@lru_cache(maxsize=16)
def _draws(n: int, paired: bool, count: int) -> tuple[_Draws, ...]:
    """The draws for each side, `count` or one fewer.

    They come in twos: a pair's draw with its mirror image (the rounds from the other end, the noise of the other
    sign); two sides' draws with those in which the sides have changed places.
    """
    rng = np.random.default_rng(SEED)
    bandwidth = 1.06 * n**-0.2
    chosen = rng.integers(0, n, (2, count // 2, n))
    noise = bandwidth * rng.standard_normal((2, count // 2, n))
    if paired:
        return (_tabled(np.concatenate([chosen[0], n - 1 - chosen[0]]), np.concatenate([noise[0], -noise[0]])),)
    return tuple(_tabled(np.concatenate(chosen[order]), np.concatenate(noise[order])) for order in ([0, 1], [1, 0]))


def _tabled(chosen: NDArray[np.int64], noise: Array) -> _Draws:
    """Resamples given as indices of rounds and the noise of each (R, n)."""
    n = chosen.shape[1]
    one_hot = chosen[:, :, None] == np.arange(n)
    weights = one_hot.sum(axis=1) / n
    summed = (one_hot * noise[:, :, None]).sum(axis=1) / n
    mean = np.column_stack([weights, noise.mean(axis=1)])
    square = np.column_stack([weights, summed, np.square(noise).mean(axis=1)])
    return _Draws(np.ascontiguousarray(mean.T), np.ascontiguousarray(square.T))


def _exp(value: float) -> float:
    """The exponential; infinity where it is too large for a number."""
    return math.exp(value) if value < 709.0 else math.inf
