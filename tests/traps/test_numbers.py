"""Samples, tables and figures that would mislead: what is taken, what is left out, and which words say so."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hyperbench.analyze.joins import check_single
from hyperbench.analyze.rounds import add_speedup, combine_rounds
from hyperbench.analyze.show import run_summary
from hyperbench.measure import work_items
from hyperbench.measure.worker.timing.sampler import Sampler, interleave
from hyperbench.store import tables
from hyperbench.store.journal import Journal
from hyperbench.store.schema import StopReason
from tests.helpers import several_runs
from tests.helpers.fake_clock import standing
from tests.helpers.made_runs import tiny
from tests.helpers.measured_group import Measured, odd
from tests.helpers.quoted import Quote

PROTOCOL = dataclasses.replace(
    tiny().config.protocol, target_half_width=0.01, min_samples=10, max_samples=500, slow_min_samples=2,
    warmup_min_calls=3, warmup_min_s=0.0, warmup_max_s=60.0, skip_warmup_above_s=1.0,
)  # fmt: skip


def sampled(times_ms: Iterable[float], budget_s: float = 60.0) -> Sampler:
    """What is kept of calls that take these times, one after the other."""
    left = iter(times_ms)
    found = Sampler(lambda: next(left), standing(), PROTOCOL, budget_s)
    interleave([found], 0.1)
    return found


def then(first: Iterable[float], rest: float) -> Iterator[float]:
    """These times, then the same one without end."""
    yield from first
    while True:
        yield rest


def test_a_slow_first_call_is_no_sample() -> None:
    found = sampled(then([900.0], 1.0))
    assert found.warmup_ms[0] == 900.0
    assert set(found.samples_ms) == {1.0}


def test_calls_that_still_get_faster_are_no_samples() -> None:
    found = sampled(then([100.0 * 0.9**i for i in range(30)], 4.0))
    assert max(found.samples_ms) < 1.2 * min(found.samples_ms)
    assert len(found.warmup_ms) > 20


def test_a_wide_spread_alone_makes_nobody_wait() -> None:
    # Times of a kernel that vary by a tenth: the median is known to a hundredth long before the spread is small.
    draw = random.Random(0)
    found = sampled(draw.gauss(20.0, 2.0) for _ in range(10_000))
    assert found.stop_reason in (StopReason.PRECISION, StopReason.MAX_SAMPLES)
    assert 10 <= len(found.samples_ms) <= 500


def test_a_slow_call_is_sampled_more_than_once_and_says_why_not_more_often() -> None:
    found = sampled(then([], 40_000.0), budget_s=5.0)
    assert len(found.samples_ms) == 2
    assert found.stop_reason is StopReason.BUDGET
    assert found.note == Quote("2 of 10 samples: a call takes 40 s and the budget is 5 s")


def test_a_row_outlives_its_baseline_and_says_what_became_of_it() -> None:
    baseline = odd("no_memory", method="flash2")
    frame = tables.build(Measured(baseline, odd("exact")).records, "run")["timings"]
    rows = add_speedup(frame, "flash2")
    kept = rows[rows["method"] == "exact"]
    assert len(kept) == 3
    assert kept["median_ms"].notna().all()
    assert kept["speedup"].isna().all()
    assert set(kept["baseline_status"]) == {"oom"}
    assert kept["baseline_message"].str.contains("can't allocate memory").all()


def test_a_round_without_a_time_is_counted_where_rounds_are_combined() -> None:
    first, second = (Measured(odd("exact"), round_=r, passes=("forward",)).records for r in (0, 1))
    lost = Measured(odd("no_memory", method="exact"), round_=2, passes=("forward",)).timings("exact")["forward"]
    third = dataclasses.replace(lost, point=odd("exact").point)
    frame = tables.build([*first, *second, third], "run")["timings"]
    (message,) = combine_rounds(frame)["message"]
    assert message.startswith(Quote("1 of 3 rounds have no timing (oom)."))


@pytest.mark.parametrize(
    ("name", "values"),
    [("input", ("gaussian", "clustered")), ("seed", (0, 1)), ("dtype", ("float32", "float64")), ("heads", (2, 4))],
)
def test_what_makes_times_differ_is_part_of_the_point_and_never_mixed(name: str, values: tuple[Any, Any]) -> None:
    items = [odd("exact", **{name: value}) for value in values]
    assert len({one.point.point_id for one in items}) == len(work_items.groups_of([one.point for one in items])) == 2
    records = [r for one in items for r in Measured(one, passes=("forward",)).records]
    frame = tables.build(records, "run")["timings"]
    with pytest.raises(ValueError, match=f"{name} varies"):
        check_single(frame, ("method", "is_causal", "pass", "seq_len"))


def test_work_done_and_work_of_exact_attention_are_two_numbers() -> None:
    free, causal = (Measured(odd("exact", exact=True, is_causal=m)).timings("exact")["forward"] for m in (False, True))
    assert causal.exact_equivalent_flops == pytest.approx(free.exact_equivalent_flops / 2)  # type: ignore[operator]
    unknown = Measured(odd("exact")).timings("exact")["forward"]
    assert unknown.executed_flops is None
    assert pd.notna(unknown.exact_equivalent_flops)


def test_rows_of_several_runs_and_conditions_are_told_apart(tmp_path: Path) -> None:
    parts = (("one", several_runs.records(1.0, threads=2)), ("two", several_runs.records(3.0, threads=8)))
    run = several_runs.put_together(tmp_path, *parts)
    differing = run_summary(run)["differing"]
    assert Quote("run_id differs within these rows: one (12 rows), two (12 rows)") in differing
    assert Quote("threads differs within these rows: 2 (12 rows), 8 (12 rows)") in differing
    with pytest.raises(ValueError, match="several runs") as caught:
        Journal(run / "journal.jsonl").__enter__()
    assert Quote("holds the journals of several runs").stands_in(str(caught.value))
