"""Ratios over rounds: promised coverage, few false alarms under noise between processes, no verdict unearned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.stats.rounds import MIN_ROUNDS, Array, Reason, Verdict, judge, log_ratio_interval, verdict_of

TRIALS = 1600
#: Relative spread of a process's own luck, and of the samples within one process.
BETWEEN, WITHIN = 0.02, 0.01
PAIRED = pytest.mark.parametrize("paired", [False, True], ids=["unpaired", "paired"])
times = st.floats(0.01, 1e4)


def logs_of_samples(rng: np.random.Generator, rounds: int, samples: int, between: float, within: float) -> Array:
    """Logs of samples, (TRIALS, rounds, samples): each round has an offset of its own."""
    offsets = rng.normal(0.0, between, (TRIALS, rounds, 1))
    return np.asarray(offsets + rng.normal(0.0, within, (TRIALS, rounds, samples)))


def logs_of_medians(rng: np.random.Generator, rounds: int, between: float = BETWEEN, within: float = WITHIN) -> Array:
    """Logs of the rounds' medians of ten samples, (TRIALS, rounds)."""
    return np.asarray(np.median(logs_of_samples(rng, rounds, 10, between, within), axis=-1))


def intervals(a: Array, b: Array, paired: bool) -> tuple[Array, Array]:
    """Lower and upper ends, in portions that fit into memory."""
    parts = [
        log_ratio_interval(a[i : i + 100], b[i : i + 100], paired=paired, resamples=4000) for i in range(0, len(a), 100)
    ]
    return np.concatenate([low for _, low, _ in parts]), np.concatenate([high for _, _, high in parts])


def pooled_t_test(a: Array, b: Array) -> Array:
    """True if a t-test over all samples, as if they were independent, calls the two sides different at 5 %."""
    pooled = [side.reshape(len(side), -1) for side in (a, b)]
    count = pooled[0].shape[1]
    error = np.sqrt(sum(side.var(axis=1, ddof=1) for side in pooled) / count)
    # The quantile of Student's t for 98 degrees of freedom; more of them change its second digit alone.
    assert count == 50
    return np.asarray(np.abs(pooled[1].mean(axis=1) - pooled[0].mean(axis=1)) > 1.984 * error)


@PAIRED
@pytest.mark.parametrize("rounds", [3, 5, 10])
def test_the_interval_covers_the_true_ratio_as_often_as_it_says(rounds: int, paired: bool) -> None:
    rng = np.random.default_rng(rounds)
    truth = math.log(1.05)
    low, high = intervals(logs_of_medians(rng, rounds), logs_of_medians(rng, rounds) + truth, paired)
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


@PAIRED
def test_there_are_few_false_alarms_where_pooled_samples_give_many(paired: bool) -> None:
    rng = np.random.default_rng(11)
    # Processes differ by half of what samples within one do, and a test over pooled samples is wrong every fourth time.
    a, b = (logs_of_samples(rng, 5, 10, 0.005, 0.01) for _ in range(2))
    assert 0.20 <= np.mean(pooled_t_test(a, b)) <= 0.30
    low, high = intervals(np.median(a, axis=-1), np.median(b, axis=-1), paired)
    assert np.mean((low > 0) | (high < 0)) <= 0.06
    assert alarms(low, high) <= 0.01


@PAIRED
def test_there_are_few_false_alarms_where_processes_differ_by_more_than_the_threshold(paired: bool) -> None:
    rng = np.random.default_rng(12)
    a, b = (logs_of_samples(rng, 5, 10, BETWEEN, WITHIN) for _ in range(2))
    assert np.mean(pooled_t_test(a, b)) >= 0.40
    assert alarms(*intervals(np.median(a, axis=-1), np.median(b, axis=-1), paired)) <= 0.05


def alarms(low: Array, high: Array) -> float:
    """The share of intervals that make a verdict of faster or slower, at a threshold of 1 %."""
    changed = {Verdict.FASTER, Verdict.SLOWER}
    return float(np.mean([verdict_of(x, y, 0.01)[0] in changed for x, y in zip(low, high, strict=True)]))


@PAIRED
@pytest.mark.parametrize(("rounds", "between", "power"), [(5, 0.01, 0.9), (10, 0.02, 0.9), (5, 0.02, 0.5)])
def test_a_true_change_of_five_percent_is_seen(rounds: int, between: float, power: float, paired: bool) -> None:
    rng = np.random.default_rng(13)
    a, b = (logs_of_medians(rng, rounds, between) for _ in range(2))
    low, high = intervals(a, b + math.log(1.05), paired)
    found = [verdict_of(x, y, 0.01)[0] for x, y in zip(low, high, strict=True)]
    assert np.mean([v is Verdict.SLOWER for v in found]) >= power
    assert Verdict.FASTER not in found


def test_luck_that_both_sides_of_a_round_share_does_not_count() -> None:
    rng = np.random.default_rng(14)
    shared = rng.normal(0.0, 0.2, (TRIALS, 5))
    a, b = (shared + logs_of_medians(rng, 5, 0.002, 0.002) for _ in range(2))
    low, _ = intervals(a, b + math.log(1.05), paired=True)
    assert np.mean(low > math.log(1.01)) >= 0.99


def rounds_of(values: list[float]) -> dict[int, float]:
    """Medians by round number."""
    return dict(enumerate(values))


SPREAD = [1.0, 1.01, 0.99, 1.02, 0.98]


@PAIRED
@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([1.0], [2.0], Reason.TOO_FEW_ROUNDS),
        (SPREAD, [2.0], Reason.TOO_FEW_ROUNDS),
        (SPREAD[: MIN_ROUNDS - 1], [2 * x for x in SPREAD[: MIN_ROUNDS - 1]], Reason.TOO_FEW_ROUNDS),
        (SPREAD, [2 * x for x in [*SPREAD, 1.0]], Reason.UNEQUAL_ROUNDS),
        (SPREAD, [2.0] * 5, Reason.ZERO_VARIANCE),
        ([1.0] * 5, [2 * x for x in SPREAD], Reason.ZERO_VARIANCE),
        ([1.0] * 5, [1.0] * 5, Reason.ZERO_VARIANCE),
        ([0.0, *SPREAD[1:]], SPREAD, Reason.ZERO_TIME),
        (SPREAD, [0.0] * 5, Reason.ZERO_TIME),
    ],
)
def test_what_cannot_be_judged_gets_a_reason_and_no_verdict(
    a: list[float], b: list[float], reason: Reason, paired: bool
) -> None:
    found = judge(rounds_of(a), rounds_of(b), paired=paired, threshold=0.01)
    assert (found.verdict, found.reason, found.low, found.high) == (Verdict.AMBIGUOUS, reason, None, None)
    assert (found.ratio is None) == (reason is Reason.ZERO_TIME)


def test_pairs_that_all_have_one_ratio_have_no_spread_whatever_the_rounding() -> None:
    a = {i: 0.1 * 1.7**i for i in range(5)}
    found = judge(a, {i: 1.1 * x for i, x in a.items()}, paired=True, threshold=0.01)
    assert (found.verdict, found.reason) == (Verdict.AMBIGUOUS, Reason.ZERO_VARIANCE)


def test_rounds_that_do_not_meet_are_no_pairs() -> None:
    b = {i + 1: 2 * x for i, x in enumerate(SPREAD)}
    assert judge(rounds_of(SPREAD), b, paired=True, threshold=0.01).reason is Reason.UNEQUAL_ROUNDS
    assert judge(rounds_of(SPREAD), b, paired=False, threshold=0.01).verdict is Verdict.SLOWER


def test_a_ratio_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        judge({}, {0: 1.0}, paired=False, threshold=0.01)


@pytest.mark.parametrize(("n", "m"), [(5, 6), (1, 1)])
def test_an_interval_needs_equal_numbers_of_rounds_and_two(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="equal and at least two"):
        log_ratio_interval(np.zeros(n), np.zeros(m), paired=False)


@PAIRED
@given(a=st.lists(times, min_size=5, max_size=5), b=st.lists(times, min_size=5, max_size=5), threshold=st.floats(0, 1))
def test_the_other_way_round_the_ratio_is_the_inverse(
    a: list[float], b: list[float], threshold: float, paired: bool
) -> None:
    one = judge(rounds_of(a), rounds_of(b), paired=paired, threshold=threshold)
    other = judge(rounds_of(b), rounds_of(a), paired=paired, threshold=threshold)
    assert one.ratio is not None
    assert other.ratio == pytest.approx(1 / one.ratio)
    assert (one.low is None) == (other.low is None)
    if one.low is not None and one.high is not None and other.low is not None and other.high is not None:
        assert one.low <= one.ratio <= one.high
        assert other.low == pytest.approx(1 / one.high)
        assert other.high == pytest.approx(1 / one.low)


@PAIRED
@given(a=st.permutations(SPREAD), b=st.permutations([1.1 * x for x in SPREAD]), unit=st.floats(1e-3, 1e3))
def test_units_do_not_matter(a: list[float], b: list[float], unit: float, paired: bool) -> None:
    def asked(factor: float) -> Any:
        return judge(
            rounds_of([factor * x for x in a]), rounds_of([factor * x for x in b]), paired=paired, threshold=0.01
        )

    one, other = asked(1.0), asked(unit)
    assert other.ratio == pytest.approx(one.ratio)
    assert other.reason is one.reason
    if one.low is not None:
        assert other.low == pytest.approx(one.low, rel=1e-6)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_a_verdict_follows_from_where_the_interval_lies(low: float, width: float, threshold: float) -> None:
    verdict, reason = verdict_of(low, low + width, threshold)
    smallest, largest = math.exp(low), math.exp(low + width)
    limit = 1 + threshold
    inside = 1 / limit * (1 - 1e-12) <= smallest and largest <= limit * (1 + 1e-12)
    outside = largest < 1 / limit * (1 + 1e-12) or smallest > limit * (1 - 1e-12)
    if verdict is Verdict.SAME:
        assert inside
    elif verdict is Verdict.AMBIGUOUS:
        assert reason is Reason.INTERVAL_STRADDLES_THRESHOLD
        assert not (1 / limit * (1 + 1e-12) <= smallest and largest <= limit * (1 - 1e-12))
    else:
        assert outside
        assert (verdict is Verdict.SLOWER) == (low > 0)
    # From the other side a faster B is a slower one.
    mirrored = {Verdict.FASTER: Verdict.SLOWER, Verdict.SLOWER: Verdict.FASTER}
    assert verdict_of(-(low + width), -low, threshold) == (mirrored.get(verdict, verdict), reason)


@PAIRED
@pytest.mark.parametrize("rounds", [5, 12])
def test_many_comparisons_at_once_are_those_one_by_one_and_repeatable(rounds: int, paired: bool) -> None:
    rng = np.random.default_rng(15)
    a, b = rng.normal(0.0, 0.02, (2, 4, rounds))
    at_once = log_ratio_interval(a, b, paired=paired)
    for i in range(len(a)):
        for all_of_them, one in zip(at_once, log_ratio_interval(a[i], b[i], paired=paired), strict=True):
            assert float(one) == pytest.approx(float(all_of_them[i]), rel=1e-9, abs=1e-12)


@PAIRED
def test_more_confidence_is_a_wider_interval(paired: bool) -> None:
    a, b = np.log(SPREAD), np.log([1.1, 1.08, 1.13, 1.1, 1.12])
    widths = []
    for confidence in (0.5, 0.8, 0.95):
        centre, low, high = log_ratio_interval(a, b, paired=paired, confidence=confidence)
        assert low < centre < high
        widths.append(float(high - low))
    assert widths == sorted(widths)


@given(st.lists(st.floats(0, 1e300), min_size=5, max_size=5), st.lists(st.floats(0, 1e300), min_size=5, max_size=5))
def test_any_times_at_all_have_an_answer(a: list[float], b: list[float]) -> None:
    for paired in (False, True):
        found = judge(dict(enumerate(a)), dict(enumerate(b)), paired=paired, threshold=0.01)
        if found.low is not None and found.ratio is not None and found.high is not None:
            assert found.low <= found.ratio <= found.high
