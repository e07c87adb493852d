"""Warm-up, stopping and turns, by a clock that stands still between calls: every expectation is exact."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.config.types import ProtocolConfig
from hyperbench.measure.worker.timing.sampler import Sampler, interleave
from hyperbench.measure.worker.timing.stopping import StoppingRule
from hyperbench.stats.samples import median, median_interval, summarise
from hyperbench.stats.shape import has_two_modes
from hyperbench.store.schema import StopReason
from tests.helpers.fake_clock import FakeClock, standing

PROTOCOL = ProtocolConfig(
    name="test",
    description="",
    rounds=1,
    target_half_width=0.01,
    min_samples=10,
    max_samples=40,
    budget_s={"forward": 1.0},
    slow_min_samples=2,
    warmup_min_calls=3,
    warmup_min_s=0.0,
    warmup_max_s=1.0,
    skip_warmup_above_s=1.0,
    slices=5,
    timeout_s=60.0,
)


def sampler(
    times: Iterable[float | Exception], budget_s: float = 1.0, clock: FakeClock | None = None, **changes: Any
) -> Sampler:
    """A sampler of a call that takes these milliseconds, one after the other, or raises."""
    left: Iterator[float | Exception] = iter(times)

    def call() -> float:
        value = next(left)
        if isinstance(value, Exception):
            raise value
        return value

    return Sampler(call, clock or standing(), dataclasses.replace(PROTOCOL, **changes), budget_s)


def forever(*values: float) -> Iterator[float]:
    """These values, then the last one without end."""
    yield from values
    while True:
        yield values[-1]


def measured(times: Iterable[float | Exception], budget_s: float = 1.0, **changes: Any) -> Sampler:
    """A sampler that has run to its end."""
    found = sampler(times, budget_s, **changes)
    interleave([found], 0.01)
    return found


def relative_half_width(samples_ms: list[float]) -> float:
    """Half the width of the interval of the median, relative to the median."""
    found = summarise(samples_ms)
    return 0.5 * (found.ci_high_ms - found.ci_low_ms) / found.median_ms if found.median_ms > 0 else 0.0


@pytest.mark.parametrize(("min_calls", "calls"), [(0, 6), (1, 6), (3, 6), (6, 6), (9, 9)])
def test_warm_up_makes_its_calls_and_sees_two_windows(min_calls: int, calls: int) -> None:
    found = sampler(forever(1.0), warmup_min_calls=min_calls)
    found.warm_up()
    assert found.warmup_ms == [1.0] * calls
    assert found.samples_ms == []


def test_warm_up_lasts_its_time() -> None:
    found = sampler(forever(62.5), warmup_min_s=0.75)
    found.warm_up()
    # The first call is not counted: it may load what the others use.
    assert len(found.warmup_ms) == 1 + 12


def test_warm_up_goes_on_while_calls_get_faster() -> None:
    falling = [100.0 * 0.9**i for i in range(15)]
    found = sampler(forever(*falling, 10.0), warmup_max_s=100.0)
    found.warm_up()
    assert found.warmup_ms[:15] == falling
    assert found.warmup_ms[-3:] == [10.0] * 3
    assert len(found.warmup_ms) <= 15 + 6


def test_warm_up_sees_a_slow_rise_of_calls_of_microseconds() -> None:
    clock = standing()

    def call() -> float:
        return 0.02 * (1.3 - 0.3 * min(1.0, clock.now_s() / 0.4))

    found = Sampler(call, clock, dataclasses.replace(PROTOCOL, warmup_min_s=0.05), 1.0)
    found.warm_up()
    assert 0.4 < clock.now_s() < 0.85
    found.take(1e9)
    assert median(found.samples_ms) == pytest.approx(0.02, rel=1e-3)


def test_warm_up_ends_after_its_longest_time_however_calls_fall() -> None:
    found = sampler((100.0 * 0.97**i for i in range(1000)), warmup_max_s=1.0)
    found.warm_up()
    assert sum(found.warmup_ms[1:-1]) < 1000.0 <= sum(found.warmup_ms[1:])


def test_calls_that_get_slower_are_warm() -> None:
    found = sampler(10.0 * 1.1**i for i in range(1000))
    found.warm_up()
    assert len(found.warmup_ms) == 6


def test_a_slow_first_call_is_kept_and_not_repeated_for_warmth() -> None:
    found = measured(forever(3000.0, 2000.0), budget_s=1.0)
    assert found.warmup_ms == []
    assert found.samples_ms == [3000.0, 2000.0]
    assert found.stop_reason is StopReason.BUDGET


@pytest.mark.parametrize(("first_ms", "kept"), [(1500.0, False), (3000.0, False), (3500.0, True)])
def test_a_slow_first_call_is_a_sample_only_where_another_costs_too_much(first_ms: float, kept: bool) -> None:
    found = measured(forever(first_ms, 1400.0), budget_s=1.0, keep_first_above_s=3.0)
    assert found.warmup_ms == ([] if kept else [first_ms])
    assert found.samples_ms == ([first_ms, 1400.0] if kept else [1400.0, 1400.0])


def test_steady_calls_stop_by_precision_as_soon_as_they_may() -> None:
    found = measured(forever(1.0))
    assert (found.stop_reason, len(found.samples_ms)) == (StopReason.PRECISION, 10)
    assert found.note == ""


def test_precision_is_the_half_width_of_the_interval() -> None:
    times = [1.0 + 0.05 * (i % 3) for i in range(60)]
    found = measured(forever(*[1.0] * 6, *times, 1.05), target_half_width=0.02, max_samples=100, budget_s=100.0)
    assert found.stop_reason is StopReason.PRECISION
    assert relative_half_width(found.samples_ms) <= 0.02
    # It is looked at each time there are half as many samples more.
    assert len(found.samples_ms) == 49
    assert all(relative_half_width(found.samples_ms[:size]) > 0.02 for size in (10, 15, 22, 33))


@pytest.mark.parametrize("spread", [0.02, 0.03, 0.05])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_covers_the_median_when_it_ends_the_sampling_itself(spread: float, skewed: bool) -> None:
    # Looking after every sample gives 91 to 93 % here.
    random, hits, runs = Random(1), 0, 700
    true_ms = 1.0 + spread * math.log(2.0) if skewed else 1.0
    for _ in range(runs):
        call = partial(_skewed if skewed else random.gauss, *((random, spread) if skewed else (1.0, spread)))
        found = Sampler(call, standing(), dataclasses.replace(PROTOCOL, max_samples=500), 100.0)
        found.take(1e9)
        low_ms, high_ms = median_interval(found.samples_ms)
        hits += low_ms <= true_ms <= high_ms
    assert hits >= 0.93 * runs


def _skewed(random: Random, spread: float) -> float:
    return 1.0 + spread * random.expovariate(1.0)


def test_restless_calls_stop_at_the_most_samples() -> None:
    times = [1.0 if i % 2 else 2.0 for i in range(100)]
    found = measured(forever(*times), budget_s=1000.0)
    assert (found.stop_reason, len(found.samples_ms)) == (StopReason.MAX_SAMPLES, 40)


@pytest.mark.parametrize(("call_ms", "count"), [(100.0, 10), (150.0, 6), (400.0, 2), (900.0, 2)])
def test_the_budget_ends_before_it_is_exceeded(call_ms: float, count: int) -> None:
    found = measured(forever(call_ms), budget_s=1.0, target_half_width=1e-12, min_samples=12, max_samples=12)
    assert (found.stop_reason, len(found.samples_ms)) == (StopReason.BUDGET, count)


def test_a_slow_call_gets_its_fewest_samples_and_a_note() -> None:
    found = measured(forever(900.0), budget_s=1.0, slow_min_samples=3)
    assert len(found.samples_ms) == 3
    assert found.note == "3 of 10 samples: a call takes 0.9 s and the budget is 1 s"


@given(
    st.lists(st.floats(0.001, 5000), min_size=40, max_size=40),
    st.floats(0.01, 20),
    st.integers(1, 12),
    st.integers(0, 30),
    st.integers(1, 15),
)
def test_sampling_ends_with_a_reason_that_holds(
    times: list[float], budget_s: float, fewest: int, more: int, slow: int
) -> None:
    most = fewest + more
    found = measured(
        forever(*times, 1.0), budget_s, min_samples=fewest, max_samples=most, slow_min_samples=slow, warmup_min_calls=1
    )
    count, spent_ms = len(found.samples_ms), sum(found.samples_ms)
    half_width = relative_half_width(found.samples_ms)
    assert min(slow, fewest) <= count <= most
    if found.stop_reason is StopReason.PRECISION:
        assert count >= fewest
        assert half_width <= PROTOCOL.target_half_width
    elif found.stop_reason is StopReason.MAX_SAMPLES:
        assert count == most
    else:
        assert spent_ms + summarise(found.samples_ms).median_ms > budget_s * 1e3
    assert bool(found.note) == (count < fewest)


@pytest.mark.parametrize("at", [0, 2, 7, 12])
def test_a_failure_ends_the_call_and_is_kept(at: int) -> None:
    error = RuntimeError("out of luck")
    found = measured([*[1.0] * at, error])
    assert found.failure is error
    assert found.done
    assert found.stop_reason is None
    assert len(found.warmup_ms) + len(found.samples_ms) == at
    assert found.note == ""


def test_ctrl_c_is_no_failure_of_the_call() -> None:
    def interrupted() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sampler(interrupted, standing(), PROTOCOL, 1.0).warm_up()


def test_a_turn_lasts_its_slice_and_takes_one_sample_at_least() -> None:
    found = sampler(forever(10.0), budget_s=100.0, target_half_width=1e-12, min_samples=20)
    found.take(0.035)
    assert len(found.samples_ms) == 4
    found.take(0.001)
    assert len(found.samples_ms) == 5


def test_methods_take_turns_so_that_drift_meets_all_alike() -> None:
    clock, turns = standing(), list[int]()
    pair = [
        sampler((1.0 if i % 2 else 2.0 for i in range(1000)), 0.1, clock, max_samples=500),
        sampler((5.0 if i % 2 else 10.0 for i in range(1000)), 0.1, clock, max_samples=500),
    ]
    interleave(pair, 0.02, turns.append)
    # Warm-up of each, then turn by turn, until the budgets of 100 ms are spent in slices of 20 ms.
    assert turns[:2] == [0, 1]
    assert turns[2:] == [0, 1] * 5
    assert all(90.0 <= sum(s.samples_ms) <= 110.0 for s in pair)


def test_the_others_go_on_when_one_fails_or_is_done() -> None:
    turns = list[int]()
    group = [sampler([1.0, RuntimeError("no")]), sampler(forever(1.0)), sampler(forever(*[1.0, 2.0] * 40))]
    interleave(group, 0.005, turns.append)
    assert [s.done for s in group] == [True, True, True]
    assert group[0].failure is not None
    assert len(group[1].samples_ms) == 10
    assert turns.count(0) == 1


def test_no_methods_need_no_turns() -> None:
    interleave([], 1.0)


def test_each_turn_is_framed_and_ends_before_the_result_is_taken() -> None:
    heard = list[tuple[str, int]]()
    group = [sampler(forever(1.0)), sampler([RuntimeError("no")])]
    interleave(
        group, 1.0,
        lambda i: heard.append(("turn", i)), lambda i: heard.append(("done", i)), lambda i: heard.append(("rest", i)),
    )  # fmt: skip
    assert heard == [("turn", 0), ("rest", 0), ("turn", 1), ("rest", 1), ("done", 1),
                     ("turn", 0), ("rest", 0), ("done", 0)]  # fmt: skip


class TestSpread:
    """Precision must wait until the samples are spread over some time: a fast call is not judged by one moment."""

    def test_samples_of_a_fast_call_lie_over_the_whole_time_and_are_no_more_than_allowed(self) -> None:
        clock = standing()
        found = sampler(forever(0.02), clock=clock, min_spread_s=0.1, max_samples=500)
        while not found.done:
            found.take(1.0)
        assert found.stop_reason is StopReason.PRECISION
        assert clock.now_s() == pytest.approx(0.1, rel=0.05)
        assert 250 <= len(found.samples_ms) <= 500

    def test_a_step_that_few_milliseconds_would_miss_shows_in_the_flags(self) -> None:
        def samples(min_spread_s: float) -> list[float]:
            clock = standing()
            found = Sampler(
                lambda: 0.02 if clock.now_s() > 0.05 else 0.026, clock,
                dataclasses.replace(PROTOCOL, min_spread_s=min_spread_s), 1.0,
            )  # fmt: skip
            interleave([found], 0.25)
            return found.samples_ms

        assert has_two_modes(samples(0.1))
        assert not has_two_modes(samples(0.0))

    def test_a_call_that_takes_its_time_anyway_is_made_no_more_often(self) -> None:
        assert len(measured(forever(11.0), min_spread_s=0.1).samples_ms) == 10

    def test_the_budget_comes_first(self) -> None:
        found = measured(forever(1.0), budget_s=0.05, min_spread_s=10.0)
        assert found.stop_reason is StopReason.BUDGET

    def test_fast_calls_take_turns_and_those_of_others_count(self) -> None:
        turns, clock = list[int](), standing()
        pair = [sampler(forever(1.0), clock=clock, min_spread_s=0.1, slices=4, max_samples=500) for _ in range(3)]
        interleave(pair, 0.25, turns.append)
        warmed_up, began_s = turns[:3], 3 * 6e-3
        assert warmed_up == [0, 1, 2]
        assert turns[3:9] == [0, 1, 2] * 2
        assert 0.1 <= clock.now_s() - began_s < 0.2


def test_what_a_clock_does_around_its_calls_is_paid_from_the_budget() -> None:
    found = sampler(forever(1.0), 0.5, standing(around_ms=9.0), target_half_width=1e-12, min_samples=40)
    found.take(1e9)
    assert len(found.samples_ms) == 40
    found = sampler(forever(1.0), 0.3, standing(around_ms=9.0), target_half_width=1e-12, min_samples=40)
    found.take(1e9)
    assert (found.stop_reason, len(found.samples_ms)) == (StopReason.BUDGET, 30)


class TestFixedTime:
    """Load for a fixed time: no precision ends it, and the calls between two samples are made all the same."""

    def test_precision_does_not_end_it_and_the_budget_does(self) -> None:
        found = measured(forever(1.0), budget_s=0.5, fixed_time=True, max_samples=10_000)
        assert (found.stop_reason, len(found.samples_ms)) == (StopReason.BUDGET, 500)

    def test_of_many_calls_the_samples_are_spread_over_the_whole_time(self) -> None:
        times = [1.0 + i for i in range(100)]
        found = measured(forever(*[1.0] * 6, *times), budget_s=sum(times) / 1e3, fixed_time=True, max_samples=20)
        assert 15 <= len(found.samples_ms) <= 20
        assert found.samples_ms[0] == times[0]
        assert found.samples_ms[-1] >= times[-10]
        assert found.samples_ms == sorted(found.samples_ms)

    def test_a_slow_call_is_made_as_often_as_it_must_be(self) -> None:
        found = measured(forever(900.0), budget_s=0.1, fixed_time=True, min_samples=1, slow_min_samples=1)
        assert (found.stop_reason, found.samples_ms) == (StopReason.BUDGET, [900.0])

    def test_it_is_time_that_passes_and_not_that_of_the_calls_alone(self) -> None:
        clock = standing(around_ms=4.0)
        sampler(forever(1.0), 0.5, clock, fixed_time=True).take(1e9)
        assert clock.now_s() == pytest.approx(0.5, rel=0.02)

    def test_only_calls_that_are_no_samples_are_said_to_be_load(self) -> None:
        clock = standing()
        options = {"fixed_time": True, "max_samples": 20, "warmup_min_s": 0.1, "warmup_max_s": 0.1}
        found = sampler(forever(1.0), 0.5, clock, **options)
        found.warm_up()
        found.take(1e9)
        load = clock.loads
        assert load[: len(found.warmup_ms)] == [False, *[True] * (len(found.warmup_ms) - 1)]
        samples = load[len(found.warmup_ms) :]
        assert samples.count(False) == len(found.samples_ms)
        assert samples[0] is False

    def test_one_is_brought_to_its_end_right_after_its_warm_up_before_the_next_begins(self) -> None:
        turns, clock = list[int](), standing()
        group = [sampler(forever(ms), 0.2, clock, fixed_time=True) for ms in (1.0, 2.0)]
        interleave(group, 0.05, turns.append, in_turns=False)
        assert turns == sorted(turns)
        assert all(s.done for s in group)
        assert set(turns) == {0, 1}

    @pytest.mark.parametrize(("call_s", "calls"), [(1.0, 11), (6.0, 3), (30.0, 1)])
    def test_slow_calls_are_under_load_for_as_long_before_they_count(self, call_s: float, calls: int) -> None:
        found = measured(
            forever(call_s * 1e3), budget_s=30.0, fixed_time=True, warmup_min_calls=1, warmup_min_s=10.0,
            warmup_max_s=10.0, skip_warmup_above_s=10.0, keep_first_above_s=1e9,
        )  # fmt: skip
        assert len(found.warmup_ms) == calls

    def test_a_long_warm_up_is_not_kept_whole(self) -> None:
        found = sampler(forever(1.0), fixed_time=True, warmup_min_s=5.0, warmup_max_s=5.0)
        found.warm_up()
        assert len(found.warmup_ms) == 1000


def test_the_time_of_the_host_is_kept_beside_each_sample_where_the_clock_tells() -> None:
    clock = standing(host_ms=0.0)

    def call() -> float:
        clock.host_ms = 3.0 + clock.now_ms
        return 1.0

    found = Sampler(call, clock, PROTOCOL, 1.0)
    interleave([found], 0.01)
    assert len(found.host_ms) == len(found.samples_ms)
    assert found.host_ms == sorted(found.host_ms)
    assert measured(forever(1.0)).host_ms == []


def test_something_else_comes_before_each_call_and_is_paid_from_the_budget() -> None:
    clock, order = standing(), list[str]()

    def call() -> float:
        order.append("call")
        return 1.0

    def between() -> None:
        order.append("between")
        clock.now_ms += 9.0

    config = dataclasses.replace(PROTOCOL, target_half_width=1e-12, min_samples=100, max_samples=500)
    found = Sampler(call, clock, config, 0.6, between)
    interleave([found], 0.01)
    assert order == ["between", "call"] * (len(order) // 2)
    assert set(found.samples_ms) == {1.0}
    assert len(found.samples_ms) == 60


def test_nothing_comes_before_calls_that_are_load_alone() -> None:
    clock, others = standing(), list[float]()
    options = {"fixed_time": True, "max_samples": 20, "warmup_min_s": 0.1, "warmup_max_s": 0.1}
    config = dataclasses.replace(PROTOCOL, **options)
    found = Sampler(lambda: 1.0, clock, config, 0.5, lambda: others.append(clock.now_ms))
    interleave([found], 0.1, in_turns=False)
    assert len(others) == clock.loads.count(False) < 25
    assert len(clock.loads) > 500


class TestTheStoppingRule:
    """By itself, without a call, a clock or turns."""

    def test_equal_samples_suffice_as_soon_as_they_are_spread(self) -> None:
        rule = StoppingRule(PROTOCOL, 1.0)
        for count in range(1, 11):
            rule.add(1.0)
            reasons = [rule.reason(float(count), is_spread=is_spread) for is_spread in (False, True)]
            assert reasons == [None, StopReason.PRECISION if count == 10 else None]

    def test_the_budget_counts_the_call_that_would_come_next(self) -> None:
        rule = StoppingRule(PROTOCOL, 1.0)
        for sample_ms in (300.0, 300.0):
            rule.add(sample_ms)
        assert rule.reason(700.0, is_spread=True) is None
        assert rule.reason(701.0, is_spread=True) is StopReason.BUDGET
        assert rule.note == "2 of 10 samples: a call takes 0.3 s and the budget is 1 s"
