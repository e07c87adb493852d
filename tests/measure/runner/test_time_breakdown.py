"""The account of a run's time: every second is somewhere, and overhead is what was no measuring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.measure.runner.time_breakdown import PRODUCTIVE, Account, part_of
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
    account = Account(clock, began_s=-1.0)
    for part, seconds in steps:
        account.switch(part)
        clock.s += seconds
    report = account.report()
    assert report["wall_s"] == pytest.approx(clock.s + 1.0)
    assert sum(report["spent_s"].values()) == pytest.approx(report["wall_s"])
    measured_s = sum(seconds for part, seconds in steps if part in PRODUCTIVE)
    assert report["overhead"] == pytest.approx(1.0 - measured_s / report["wall_s"], abs=1e-3)


def test_only_the_calls_themselves_are_samples() -> None:
    clock = Clock()
    account = Account(clock)
    account.switch("sampling")
    clock.s = 10.0
    account.sampled(a_timing(samples_ms=(2000.0, 1000.0), warmup_ms=(1500.0,)))
    report = account.report()
    assert report["spent_s"] == {"sampling": 5.5, "samples": 4.5, "prepare": 0.0}
    assert report["overhead"] == 0.55


def test_a_report_may_be_followed_by_more() -> None:
    clock = Clock()
    account = Account(clock)
    account.report()
    clock.s = 2.0
    account.switch("errors")
    clock.s = 3.0
    assert account.report()["spent_s"] == {"prepare": 2.0, "errors": 1.0}
    assert account.report()["overhead"] == pytest.approx(2 / 3, abs=1e-4)


def test_of_the_gate_only_what_gives_errors_is_measuring() -> None:
    assert part_of("errors") == part_of("reference") == "errors"
    assert "errors" in PRODUCTIVE
    for unit in ("check", "inputs", "prepare", "time", "anything"):
        assert part_of(unit) not in PRODUCTIVE
