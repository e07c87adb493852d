"""The breakdown of a run's time: every second is somewhere, and overhead is what was no measuring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.measure.messages import Work
from hyperbench.measure.runner.outcome import PRODUCTIVE, TimeBreakdown, part_of
from tests.helpers.made_records import a_timing

parts = st.sampled_from(["prepare", "workers", "errors", "checks", "sampling", "tables", "stages"])


class Clock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@given(st.lists(st.tuples(parts, st.integers(0, 100)), max_size=10))
def test_the_parts_add_up_to_the_whole(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    time = TimeBreakdown(clock, began_s=-1.0)
    for part, seconds in steps:
        time.switch(part)
        clock.s += seconds
    report = time.report()
    assert report["wall_s"] == pytest.approx(clock.s + 1.0)
    assert sum(report["spent_s"].values()) == pytest.approx(report["wall_s"])
    measured_s = sum(seconds for part, seconds in steps if part in PRODUCTIVE)
    assert report["overhead"] == pytest.approx(1.0 - measured_s / report["wall_s"], abs=1e-3)


def test_only_the_calls_themselves_are_samples() -> None:
    clock = Clock()
    time = TimeBreakdown(clock)
    time.switch("sampling")
    clock.s = 10.0
    time.sampled(a_timing(samples_ms=(2000.0, 1000.0), warmup_ms=(1500.0,)))
    report = time.report()
    assert report["spent_s"] == {"sampling": 5.5, "samples": 4.5, "prepare": 0.0}
    assert report["overhead"] == 0.55


def test_a_report_may_be_followed_by_more() -> None:
    clock = Clock()
    time = TimeBreakdown(clock)
    time.report()
    clock.s = 2.0
    time.switch("errors")
    clock.s = 3.0
    assert time.report()["spent_s"] == {"prepare": 2.0, "errors": 1.0}
    assert time.report()["overhead"] == pytest.approx(2 / 3, abs=1e-4)


def test_of_the_gate_only_what_gives_errors_is_measuring() -> None:
    assert part_of(Work.ERRORS) == part_of(Work.REFERENCE) == "errors"
    assert "errors" in PRODUCTIVE
    for work in (Work.START, Work.CHECK, Work.INPUTS, Work.PREPARE, Work.TIME):
        assert part_of(work) not in PRODUCTIVE
