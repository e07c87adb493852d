"""Means with intervals, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from hyperbench.stats.means import mean, proportion, ratio, weighted


def test_the_interval_of_a_mean_is_students() -> None:
    # Mean 2, standard deviation 1, t = 4.303: 4.303 / sqrt(3).
    assert mean([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.4843, 4.4843), abs=1e-3)
    single = mean([5.0])
    assert single.value == 5.0
    assert math.isnan(single.low)
    assert math.isnan(single.high)


def test_a_ratio_is_the_geometric_mean() -> None:
    found = ratio([math.log(2.0), math.log(8.0)])
    assert found.value == pytest.approx(4.0)
    assert found.low < 2.0 < 8.0 < found.high
    assert ratio([1e4]).value == math.inf


@pytest.mark.parametrize(
    ("ones", "count", "low", "high"), [(0, 5, 0.0, 0.4345), (5, 5, 0.5655, 1.0), (3, 10, 0.1078, 0.6032)]
)
def test_the_interval_of_a_share_is_wilsons(ones: int, count: int, low: float, high: float) -> None:
    values = [1.0] * ones + [0.0] * (count - ones)
    assert proportion(values) == pytest.approx((ones / count, low, high), abs=1e-3)


def test_there_is_no_mean_of_nothing() -> None:
    for function in (mean, ratio, proportion):
        with pytest.raises(ValueError, match="of nothing"):
            function([])


def test_a_weighted_sum_has_the_interval_of_welch() -> None:
    one, other = [1.0, 3.0, 5.0], [10.0, 10.5, 11.0, 11.5]
    found = weighted([(0.5, mean(one), 3), (0.5, mean(other), 4)])
    assert found.value == pytest.approx((3.0 + 10.75) / 2)
    # Variances of the halves of the two means: 4 / 3 / 4 and 5 / 12 / 4 / 4; 2.3 degrees of freedom, two in whole ones.
    a, b = 4 / 3 / 4, 5 / 12 / 4 / 4
    assert int((a + b) ** 2 / (a**2 / 2 + b**2 / 3)) == 2
    assert found.high - found.value == pytest.approx(4.303 * math.sqrt(a + b), rel=1e-3)
    assert math.isnan(weighted([(0.5, mean(one), 3), (0.5, mean([1.0]), 1)]).low)
    assert weighted([(1.0, mean([2.0, 2.0]), 2)]) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="no mean of nothing"):
        weighted([])
