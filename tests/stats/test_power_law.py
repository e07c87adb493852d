"""Fitted power laws: exact ones are found, noise is averaged, what has no logarithm is left out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.stats.power_law import power_law


@settings(max_examples=40)
@given(st.floats(-3, 3), st.floats(1e-3, 1e3), st.sets(st.integers(2, 20), min_size=2))
def test_a_power_law_is_found_again(exponent: float, factor: float, powers: set[int]) -> None:
    law = power_law((2.0**p, factor * 2.0 ** (p * exponent)) for p in powers)
    assert law is not None
    assert law.exponent == pytest.approx(exponent, abs=1e-9)
    assert law.factor == pytest.approx(factor, rel=1e-6)
    assert (law.least, law.most) == pytest.approx((exponent, exponent), abs=1e-9)
    assert law.at(64.0) == pytest.approx(factor * 64.0**exponent, rel=1e-6)


def test_the_exponents_of_single_steps_stand_around_the_fitted_one() -> None:
    law = power_law([(1.0, 1.0), (2.0, 4.0), (4.0, 8.0)])
    assert law is not None
    assert (law.least, law.exponent, law.most) == pytest.approx((1.0, 1.5, 2.0))


def test_what_has_no_logarithm_is_left_out_and_one_place_is_no_law() -> None:
    bad = [(8.0, 0.0), (16.0, -1.0), (32.0, math.inf), (64.0, math.nan), (0.0, 1.0), (math.nan, 1.0)]
    law = power_law([(1.0, 3.0), (2.0, 6.0), *bad])
    assert law is not None
    assert law.exponent == pytest.approx(1.0)
    assert power_law([(2.0, 1.0), (2.0, 5.0), *bad]) is None
    assert power_law([]) is None


def test_several_values_at_one_place_count_by_their_mean() -> None:
    law = power_law([(1.0, 1.0), (4.0, 2.0), (4.0, 8.0)])
    assert law is not None
    assert law.exponent == pytest.approx(1.0)
