"""Means with intervals, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from hyperbench.stats.means import mean, proportion, ratio


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
