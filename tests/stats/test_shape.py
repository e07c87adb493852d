"""Flags of samples, by simulation: rare on steady noise of one mode, whatever its shape, and sure on clear cases."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.stats.shape import has_drift, has_two_modes, trend_p_value

Noise = Callable[[random.Random], float]
#: Steady noise of one mode around 1.
NOISES: dict[str, Noise] = {
    "normal": lambda r: 1 + 0.02 * r.gauss(0, 1),
    "skewed": lambda r: 1 + 0.05 * r.expovariate(1),
    "heavy tail": lambda r: 1 + 0.03 * r.lognormvariate(0, 1),
    "flat": lambda r: 1 + 0.2 * r.random(),
    "rare outliers": lambda r: 1 + 0.01 * r.gauss(0, 1) + 0.5 * (r.random() < 0.05),
}


def rate(test: Callable[[list[float]], bool], make: Callable[[random.Random], list[float]], times: int) -> float:
    """The share of made samples for which a test is true."""
    generator = random.Random(0)
    return sum(test(make(generator)) for _ in range(times)) / times


@pytest.mark.parametrize("n", [10, 15, 40, 200])
@pytest.mark.parametrize("noise", NOISES)
def test_steady_samples_of_one_mode_are_rarely_flagged(noise: str, n: int) -> None:
    def make(r: random.Random) -> list[float]:
        return [NOISES[noise](r) for _ in range(n)]

    times = 400 if n < 100 else 60
    assert rate(has_two_modes, make, times) <= 0.05
    assert rate(has_drift, make, times) <= 0.03


@pytest.mark.parametrize(("n", "power"), [(12, 0.8), (20, 0.9), (50, 0.98)])
def test_two_clear_modes_are_seen(n: int, power: float) -> None:
    def make(r: random.Random) -> list[float]:
        return [1 + 0.01 * r.gauss(0, 1) + 0.15 * (r.random() < 0.5) for _ in range(n)]

    assert rate(has_two_modes, make, 200) >= power


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize(("n", "power"), [(10, 0.95), (50, 0.99), (300, 0.99)])
def test_a_clear_drift_is_seen(n: int, power: float, direction: int) -> None:
    def make(r: random.Random) -> list[float]:
        return [1 + 0.01 * r.gauss(0, 1) + direction * 0.1 * i / n for i in range(n)]

    assert rate(has_drift, make, 60) >= power


def test_the_order_of_samples_matters_to_drift_alone() -> None:
    rising = [1 + 0.01 * i for i in range(40)]
    assert has_drift(rising)
    shuffled = random.Random(3).sample(rising, len(rising))
    assert not has_drift(shuffled)
    halves = [1.0] * 20 + [1.2] * 20
    assert has_two_modes(halves)
    assert has_two_modes(random.Random(3).sample(halves, len(halves)))


def test_what_matters_to_nobody_is_not_flagged() -> None:
    assert not has_drift([1 + 0.0001 * i for i in range(100)])
    assert not has_two_modes([1.0, 1.01] * 20)


def test_steps_of_the_clock_are_no_modes() -> None:
    samples = [0.010, 0.011] * 20
    assert has_two_modes(samples)
    assert not has_two_modes(samples, resolution=0.001)


@pytest.mark.parametrize("few", [[], [1.0], [1.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
def test_few_samples_say_nothing(few: list[float]) -> None:
    assert not has_drift(few)
    assert not has_two_modes(few)


def test_the_trend_test_is_that_of_mann_and_kendall() -> None:
    # n = 10 without ties, all pairs in order: S = 45, variance 125, z = 44 / sqrt(125), two-sided.
    assert trend_p_value(list(range(10))) == pytest.approx(8.303e-5, rel=1e-3)
    assert trend_p_value([1.0] * 10) == 1.0
    assert trend_p_value([1.0, 2.0, 2.0, 1.0]) == 1.0


@given(st.lists(st.floats(0.0, 1e9), max_size=60))
def test_a_doubled_unit_changes_nothing(samples: list[float]) -> None:
    doubled = [2.0 * sample for sample in samples]
    assert has_drift(doubled) == has_drift(samples)
    assert has_two_modes(doubled) == has_two_modes(samples)
