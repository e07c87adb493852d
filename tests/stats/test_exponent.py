"""Exponents of power laws: exact where the law is, within their intervals where there is noise, else refused."""

from __future__ import annotations

import math
import random

import pytest

from hyperbench.stats.power_law import exponent

LENGTHS = [float(2**e) for e in range(9, 14)]


@pytest.mark.parametrize("power", [-1.0, 0.0, 0.5, 2.0])
def test_a_power_law_has_its_exponent_and_an_interval_without_width(power: float) -> None:
    found = exponent(LENGTHS, [3.0 * n**power for n in LENGTHS])
    assert found == pytest.approx((power, power, power), abs=1e-9)


def test_the_interval_contains_the_true_exponent_as_often_as_it_says() -> None:
    chance = random.Random(0)
    hits = 0
    for _ in range(1000):
        low, high = exponent(LENGTHS, [n**0.7 * math.exp(chance.gauss(0.0, 0.2)) for n in LENGTHS])[1:]
        hits += low <= 0.7 <= high
    assert 930 <= hits <= 970


@pytest.mark.parametrize(
    ("lengths", "values"),
    [
        ([1.0, 2.0], [1.0, 2.0]),
        ([1.0, 2.0, 3.0], [1.0, 2.0]),
        ([1.0, 2.0, 3.0], [1.0, 0.0, 2.0]),
        ([1.0, 2.0, 3.0], [1.0, math.inf, 2.0]),
        ([1.0, 2.0, 3.0], [1.0, math.nan, 2.0]),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]),
    ],
)
def test_no_exponent_is_made_up(lengths: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match="an exponent needs"):
        exponent(lengths, values)
