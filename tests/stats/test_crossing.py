"""The crossing of power laws is where they cross; it moves against the speedups, and what lies outside is said."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.stats.crossing import ABOVE_ALL, BELOW_ALL, crossing, crossing_length

LENGTHS = (1024, 2048, 4096, 8192)
speedups_of = st.lists(st.floats(0.1, 10.0), min_size=len(LENGTHS), max_size=len(LENGTHS))


@given(st.floats(0.1, 3.0), st.floats(1025.0, 8191.0))
def test_speedups_that_grow_as_a_power_cross_where_they_are_one(power: float, at: float) -> None:
    speedups = [(n / at) ** power for n in LENGTHS]
    assert crossing_length(LENGTHS, speedups) == pytest.approx(at)
    # The order of the lengths says nothing.
    assert crossing_length(LENGTHS[::-1], speedups[::-1]) == pytest.approx(at)


@given(speedups_of)
def test_from_the_crossing_on_every_speedup_is_above_one(speedups: list[float]) -> None:
    at = crossing_length(LENGTHS, speedups)
    assert all(s > 1.0 for n, s in zip(LENGTHS, speedups, strict=True) if n > at)
    if at == ABOVE_ALL:
        assert speedups[-1] <= 1.0
    elif at == BELOW_ALL:
        assert min(speedups) > 1.0
    else:
        # It is no later than it has to be.
        last = max(n for n, s in zip(LENGTHS, speedups, strict=True) if s <= 1.0)
        assert last <= at <= 2 * last


@given(speedups_of, st.floats(0.0, 0.9), st.floats(0.0, 0.9))
def test_the_interval_holds_the_crossing_and_opens_where_its_ends_do_not_cross(
    speedups: list[float], down: float, up: float
) -> None:
    lows, highs = ([s * math.exp(shift) for s in speedups] for shift in (-down, up))
    found = crossing(LENGTHS, speedups, lows, highs)
    assert found.low <= found.at * (1 + 1e-9)
    assert found.at <= found.high * (1 + 1e-9)
    assert (found.low == BELOW_ALL) == (min(highs) > 1.0)
    assert (found.high == ABOVE_ALL) == (lows[-1] <= 1.0)


def test_a_speedup_of_one_is_no_gain() -> None:
    assert crossing_length([1024, 4096], [1.0, 2.0]) == 1024.0
    assert crossing_length([1024, 4096], [2.0, 1.0]) == ABOVE_ALL
    assert crossing_length([1024, 2048, 4096], [2.0, 0.5, 2.0]) == pytest.approx(math.sqrt(2048 * 4096))


def test_a_length_without_an_interval_leaves_the_crossing_without_one() -> None:
    found = crossing([1024, 4096], [0.5, 2.0], [0.4, math.nan], [0.6, 2.5])
    assert (found.at, found.low) == (pytest.approx(2048.0), pytest.approx(1681.9, abs=0.1))
    assert math.isnan(found.high)


@pytest.mark.parametrize("speedups", [[], [0.0], [math.nan], [math.inf], [-1.0]])
def test_what_is_no_speedup_is_refused(speedups: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        crossing_length(LENGTHS[: len(speedups)], speedups)
