"""The choice of a setting: that of a look at every one of them, and nothing that was not measured."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.analyze.tuned import (
    Measured,
    Setting,
    choice_lines,
    choose,
    setting_line,
    settings_of,
    settings_table,
    widest_pass,
)
from hyperbench.store.schema import ErrorRow, Pass, Record, Status
from tests.helpers.synthetic_runs import HYPER, failed, point, timing, view_from


def a_setting(b: int, ms: float | None, error: float | None, *, spread: float = 0.0, reason: str = "") -> Setting:
    """A setting with intervals of half a `spread` on either side."""

    def around(value: float | None) -> Measured | None:
        return None if value is None else Measured(value, value * (1 - spread / 2), value * (1 + spread / 2))

    speedup = None if ms is None else around(10.0 / ms)
    return Setting({"block_size": b}, around(ms), speedup, around(error), reason)


numbers = st.none() | st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])
some_settings = st.lists(st.tuples(numbers, numbers), max_size=8).map(
    lambda pairs: [a_setting(b, ms, error, spread=0.1) for b, (ms, error) in enumerate(pairs)]
)


@given(some_settings, st.sampled_from([0.26, 0.27, 1.0, 1.1, 9.0]))
def test_the_choice_is_that_of_a_look_at_every_setting(settings: list[Setting], limit: float) -> None:
    choice = choose(settings, limit)
    within = [s for s in settings if s.time_ms and s.error and s.error.high <= limit]
    assert sorted(map(id, choice.within)) == sorted(map(id, within))
    assert (choice.fastest is None) == (not within)
    if choice.fastest is not None and choice.fastest.time_ms is not None and choice.fastest.error is not None:
        least_ms = min(s.time_ms.value for s in within if s.time_ms)
        assert choice.fastest.time_ms.value == least_ms
        equal = [s.error.high for s in within if s.time_ms and s.error and s.time_ms.value == least_ms]
        assert choice.fastest.error.high == min(equal)
    known = [s.error.high for s in settings if s.time_ms and s.error]
    assert (choice.least_error and choice.least_error.error and choice.least_error.error.high) == (
        min(known, default=None)
    )
    assert {id(s) for s in choice.unmeasured} == {id(s) for s in settings if not (s.time_ms and s.error)}


def test_the_upper_end_of_the_error_counts() -> None:
    choice = choose([a_setting(1, 1.0, 0.099, spread=0.1), a_setting(2, 2.0, 0.09, spread=0.1)], 0.1)
    assert choice.fastest is not None
    assert choice.fastest.values == {"block_size": 2}


def test_settings_whose_times_cannot_be_told_apart_are_named() -> None:
    settings = [a_setting(b, ms, 0.1, spread=0.1) for b, ms in ((1, 1.0), (2, 1.05), (3, 1.5))]
    choice = choose(settings, 1.0)
    assert [s.values["block_size"] for s in choice.as_fast] == [2]
    assert "as fast within noise: block_size=2" in choice_lines(choice, "hyper", "flash2", 1.0)


def test_that_none_is_within_the_limit_is_told_with_the_best_there_is() -> None:
    settings = [a_setting(1, 1.0, 0.5), a_setting(2, 2.0, 0.3), a_setting(3, None, None, reason="oom: too large")]
    lines = choice_lines(choose(settings, 0.1), "hyper", "flash2", 0.1)
    assert lines[0] == "no setting of hyper has an error of at most 0.1 here; the least has block_size=2"
    assert "error 0.300 (at most 0.300)" in lines[1]
    assert lines[2] == "1 setting could not be measured: oom: too large"
    assert choice_lines(choose(settings[2:], 0.1), "hyper", "flash2", 0.1) == [
        "no setting of hyper was measured",
        lines[2],
    ]


def test_a_setting_that_exact_attention_outruns_is_no_gain() -> None:
    slow = [a_setting(1, 20.0, 0.01, spread=0.1)]
    assert "flash2 is faster: here no setting within the limit pays" in choice_lines(
        choose(slow, 1.0), "hyper", "flash2", 1
    )
    assert not any(
        "pays" in line for line in choice_lines(choose([a_setting(1, 5.0, 0.01)], 1.0), "hyper", "flash2", 1)
    )


def a_run(passes: tuple[Pass, ...] = (Pass.FORWARD,), **hyper: Any) -> list[Record]:
    """Two settings of hyper beside flash2; one of them could not be timed."""
    records: list[Record] = [timing(point("flash2", 4096), pass_, 8.0) for pass_ in passes]
    for b, ms in ((64, 2.0), (128, 4.0), (256, None)):
        p = point("hyper", 4096, hyper={**HYPER, "block_size": b, **hyper})
        for pass_ in passes:
            records.append(failed(p, pass_) if ms is None else timing(p, pass_, ms))
        status = Status.OK if ms else Status.OOM
        records += [
            ErrorRow(p, seed, "out_rel_fro", (0.1 + 0.01 * seed) * b / 64 if ms else None, status) for seed in (0, 1, 2)
        ]
    return records


def test_settings_are_read_from_a_run_with_their_numbers() -> None:
    one, two, lost = settings_of(view_from(a_run()), "hyper", ["block_size", "sampling"])
    assert one.values == {"block_size": 64, "sampling": "stratified"}
    assert (one.time_ms and one.time_ms.value) == pytest.approx(2.0, rel=0.01)
    assert (two.speedup and two.speedup.value) == pytest.approx(2.0, rel=0.01)
    assert one.error == pytest.approx((0.11, 0.10, 0.12)), "the median over the seeds, and all of them"
    assert (lost.time_ms, lost.error) == (None, None)
    assert "out of memory" in lost.reason
    assert setting_line(lost, "flash2") == f"not measured: {lost.reason}"


def test_speed_is_that_of_the_widest_pass() -> None:
    assert widest_pass(view_from(a_run())) == "forward"
    view = view_from(a_run((Pass.FORWARD, Pass.BACKWARD, Pass.FORWARD_BACKWARD)))
    assert widest_pass(view) == "forward_backward"
    assert len(settings_of(view, "hyper", ["block_size"])) == 3
    with pytest.raises(ValueError, match="no timing"):
        widest_pass(view_from([]))


def test_a_table_shows_the_fastest_settings() -> None:
    choice = choose([a_setting(b, float(b), 0.1) for b in range(1, 31)], 1.0)
    table = settings_table(choice, "flash2")
    assert [row[0] for row in table.rows] == [f"block_size={b}" for b in range(1, 13)]
    assert table.title.endswith("18 more)")
    assert table.rows[0][1:] == ("1.00 ms", "10.0×", "0.100", "0.100")
