"""Statistics: the promised coverage on simulated samples, exact ranks, and the order of what a summary says."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.stats.samples import (
    mad,
    median,
    median_interval,
    median_interval_rank,
    percentile,
    summarise,
)

TRIALS = 2000
#: With fewer samples no pair of order statistics reaches 95 %; the interval is then (min, max) and covers less.
MIN_SAMPLES_FOR_INTERVAL = 6
Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
#: Distribution -> how it is drawn, and its true median.
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), math.log(2.0)),
    "heavy tail": (lambda rng, shape: rng.standard_cauchy(size=shape), 0.0),
    "lognormal": (lambda rng, shape: rng.lognormal(sigma=2.0, size=shape), 1.0),
    "bimodal": (lambda rng, shape: rng.normal(size=shape) + rng.choice([-9.0, 9.0, 9.0], size=shape), math.nan),
    "with ties": (lambda rng, shape: rng.integers(0, 5, size=shape).astype(float), 2.0),
}
samples = st.lists(st.floats(0, 1e12), min_size=1, max_size=80)


def bimodal_median() -> float:
    """The median of the bimodal distribution: where a third of one normal and two thirds of another make a half."""

    def cdf(x: float) -> float:
        normal = [0.5 * (1 + math.erf((x - centre) / math.sqrt(2))) for centre in (-9.0, 9.0)]
        return normal[0] / 3 + 2 * normal[1] / 3

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle) < 0.5 else (low, middle)
    return low


@pytest.mark.parametrize("count", [6, 7, 10, 25, 60, 200])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_interval_covers_the_median_as_often_as_it_says(name: str, count: int) -> None:
    draw, centre = DISTRIBUTIONS[name]
    centre = bimodal_median() if name == "bimodal" else centre
    drawn = draw(np.random.default_rng(count), (TRIALS, count))
    intervals = [median_interval(row) for row in drawn.tolist()]
    coverage = sum(low <= centre <= high for low, high in intervals) / TRIALS
    assert coverage >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / TRIALS)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_the_rank_is_the_largest_that_reaches_the_confidence(confidence: float) -> None:
    for count in range(1, 301):
        rank = median_interval_rank(count, confidence)
        # P(Binomial(n, 1/2) < k) in integers.
        below = sum(math.comb(count, successes) for successes in range(rank))
        wanted = (1 - Fraction(confidence)) / 2
        assert Fraction(below, 2**count) <= wanted
        if rank <= count // 2:
            assert Fraction(below + math.comb(count, rank), 2**count) > wanted
        assert 0 <= rank <= count // 2 + 1


@pytest.mark.parametrize("count", [1000, 5000, 20_000])
def test_the_rank_of_many_samples_is_that_of_the_normal_limit(count: int) -> None:
    assert median_interval_rank(count) == pytest.approx(count / 2 - 1.96 * math.sqrt(count) / 2, abs=2)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=MIN_SAMPLES_FOR_INTERVAL - 1))
def test_too_few_samples_give_their_range(values: list[float]) -> None:
    assert median_interval(values) == (min(values), max(values))
    assert median_interval_rank(len(values)) == 0


def test_six_samples_are_the_fewest_with_an_interval() -> None:
    assert median_interval_rank(MIN_SAMPLES_FOR_INTERVAL) == 1


@given(samples)
def test_a_summary_is_in_order(values: list[float]) -> None:
    found = summarise(values)
    assert found.n_samples == len(values)
    assert found.min_ms == min(values)
    assert found.min_ms <= found.ci_low_ms <= found.median_ms <= found.ci_high_ms <= max(values)
    slack = 1e-12 * max(values)
    assert found.min_ms - slack <= found.p20_ms <= found.median_ms + slack
    assert found.median_ms - slack <= found.p80_ms <= max(values) + slack
    assert 0 <= found.mad_ms <= max(values) - min(values)
    assert found.ci_low_ms in values
    assert found.ci_high_ms in values


@given(samples, st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert summarise(shuffled) == summarise(values)


@given(st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=80), st.integers(-20, 20))
def test_another_unit_changes_every_statistic_alike(values: list[float], power: int) -> None:
    factor = 2.0**power
    one, other = summarise(values), summarise([value * factor for value in values])
    for name in ("median_ms", "ci_low_ms", "ci_high_ms", "p20_ms", "p80_ms", "min_ms", "mad_ms"):
        assert getattr(other, name) == pytest.approx(getattr(one, name) * factor, rel=1e-9)


@given(st.floats(0, 1e12), st.integers(1, 40))
def test_equal_samples_have_no_spread(value: float, count: int) -> None:
    found = summarise([value] * count)
    assert {found.median_ms, found.ci_low_ms, found.ci_high_ms, found.p20_ms, found.p80_ms, found.min_ms} == {value}
    assert found.mad_ms == 0


@given(st.floats(0, 1e12))
def test_one_sample_is_everything(value: float) -> None:
    found = summarise([value])
    assert (found.median_ms, found.ci_low_ms, found.ci_high_ms, found.n_samples) == (value, value, value, 1)


def test_two_modes_make_a_wide_interval_around_the_median() -> None:
    found = summarise([1.0] * 10 + [9.0] * 10)
    assert (found.ci_low_ms, found.median_ms, found.ci_high_ms) == (1.0, 5.0, 9.0)
    assert (found.mad_ms, found.p20_ms, found.p80_ms) == (4.0, 1.0, 9.0)


@given(samples, st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-9, abs=1e-300)


@given(samples)
def test_median_and_mad_are_those_of_numpy(values: list[float]) -> None:
    centre = float(np.median(values))
    assert median(values) == pytest.approx(centre, rel=1e-12)
    assert mad(values) == pytest.approx(float(np.median(np.abs(np.array(values) - centre))), rel=1e-9, abs=1e-3)


@pytest.mark.parametrize("percent", [-0.1, 100.1, math.nan])
def test_a_percentile_outside_its_range_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match=r"0\.\.100"):
        percentile([1.0], percent)


@pytest.mark.parametrize("function", [median, mad, summarise, median_interval])
def test_no_samples_are_refused(function: Callable[[list[float]], object]) -> None:
    with pytest.raises(ValueError, match="no samples"):
        function([])


def test_a_rank_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        median_interval_rank(0)
