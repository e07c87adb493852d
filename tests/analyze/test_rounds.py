"""One row per point from its rounds, and speedups that are the same number wherever they are told."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.compare.compare import compare
from hyperbench.analyze.export import markdown
from hyperbench.analyze.rounds import add_speedup, combine_rounds
from hyperbench.analyze.show import run_summary
from hyperbench.analyze.view import make_view
from hyperbench.store import tables as columns
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Pass, Record, Status, Timing
from tests.helpers.synthetic_runs import HYPER, failed, grid, point, timing, write_run


def timings(records: list[Record]) -> pd.DataFrame:
    return columns.build(records, "run")["timings"]


BASE, OTHER = point("flash2", 1024), point("hyper", 1024, hyper=HYPER)


def in_rounds(base_ms: dict[int, float], other_ms: dict[int, float]) -> list[Record]:
    """A forward pass of a baseline and of a method, by round."""
    times = ((BASE, base_ms), (OTHER, other_ms))
    return [timing(p, Pass.FORWARD, ms, round=i) for p, by_round in times for i, ms in by_round.items()]


def hyper_row(records: list[Record]) -> dict[str, Any]:
    """The one row of the method that is no baseline."""
    (row,) = add_speedup(timings(records)).query("method == 'hyper'").to_dict("records")
    return row


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_join_keeps_every_row_whatever_is_missing(data: st.DataObject) -> None:
    everything = [r for r in grid(lengths=(1024, 2048)) if hasattr(r, "pass_")]
    kept = data.draw(st.lists(st.sampled_from(range(len(everything))), unique=True, min_size=1))
    lost = data.draw(st.sets(st.sampled_from(kept)))
    records: list[Any] = [
        failed(everything[i].point, everything[i].pass_) if i in lost else everything[i] for i in kept
    ]
    before = timings(records)
    after = add_speedup(before)
    keys = ["point_id", "pass", "round", "status"]
    pd.testing.assert_frame_equal(after[keys], before[keys])
    timed = {
        (r.point.is_causal, r.point.seq_len, r.pass_) for r in records if r.point.method == "flash2" and r.samples_ms
    }
    for row in after.to_dict("records"):
        has_both = (row["is_causal"], row["seq_len"], row["pass"]) in timed and row["status"] == "ok"
        assert pd.notna(row["speedup"]) == has_both


def test_speedup_is_the_ratio_of_medians_with_the_widest_interval() -> None:
    base, other = point("flash2", 1024), point("hyper", 1024, hyper=HYPER)
    table = add_speedup(timings([timing(base, Pass.FORWARD, 10.0), timing(other, Pass.FORWARD, 2.0)]))
    a, b = table.iloc[0], table.iloc[1]
    assert b["speedup"] == pytest.approx(a["median_ms"] / b["median_ms"])
    assert b["speedup_low"] == pytest.approx(a["ci_low_ms"] / b["ci_high_ms"])
    assert b["speedup_high"] == pytest.approx(a["ci_high_ms"] / b["ci_low_ms"])
    assert b["speedup_low"] < b["speedup"] < b["speedup_high"]


def test_a_missing_baseline_gives_null_and_says_missing() -> None:
    table = add_speedup(timings(grid(methods=("hyper",))))
    assert table["speedup"].isna().all()
    assert set(table["baseline_status"]) == {"missing"}


def test_a_baseline_without_memory_gives_null_and_keeps_its_reason() -> None:
    base, other = point("flash2", 1024), point("hyper", 1024, hyper=HYPER)
    table = add_speedup(timings([failed(base, Pass.FORWARD), timing(other, Pass.FORWARD, 1.0)]))
    assert pd.isna(table.iloc[1]["speedup"])
    assert table.iloc[1]["baseline_status"] == "oom"


def test_other_shapes_inputs_and_passes_never_serve_as_baseline() -> None:
    other = timing(point("hyper", 1024, hyper=HYPER), Pass.FORWARD, 1.0)
    strangers = [
        timing(point("flash2", 2048), Pass.FORWARD, 9.0),
        timing(point("flash2", 1024, is_causal=True), Pass.FORWARD, 9.0),
        timing(point("flash2", 1024, input="clustered"), Pass.FORWARD, 9.0),
        timing(point("flash2", 1024, dtype="bfloat16"), Pass.FORWARD, 9.0),
        timing(point("flash2", 1024), Pass.BACKWARD, 9.0),
        timing(point("flash2", 1024), Pass.FORWARD, 9.0, protocol="paper"),
    ]
    table = add_speedup(timings([other, *strangers]))
    assert pd.isna(table.iloc[0]["speedup"])


def test_an_ambiguous_baseline_is_refused() -> None:
    records = [timing(point("hyper", 1024, hyper={**HYPER, "block_size": b}), Pass.FORWARD, 1.0) for b in (64, 128)]
    with pytest.raises(ValueError, match="'hyper' has several rows"):
        add_speedup(timings(records), "hyper")


def test_rounds_become_their_median_with_the_hull_of_intervals() -> None:
    p = point("flash2", 1024)
    records = [timing(p, Pass.FORWARD, ms, round=i) for i, ms in enumerate((10.0, 14.0, 11.0))]
    records.append(failed(p, Pass.FORWARD, Status.TIMEOUT))
    records[-1] = dataclasses.replace(records[-1], round=3)
    before = timings(records)
    table = combine_rounds(before)
    assert len(table) == 1
    row = table.iloc[0]
    assert row["median_ms"] == before["median_ms"].median()
    assert (row["ci_low_ms"], row["ci_high_ms"]) == (before["ci_low_ms"].min(), before["ci_high_ms"].max())
    assert row["n_samples"] == 36
    assert "1 of 4 rounds have no timing (timeout)" in row["message"]


FIVE = {0: 10.0, 1: 12.0, 2: 9.0, 3: 31.0, 4: 10.5}


@pytest.mark.parametrize(
    ("base", "other"),
    [
        (FIVE, {0: 2.0, 1: 2.1, 2: 1.9, 3: 2.4, 4: 2.2}),
        (FIVE, {0: 2.0, 1: 2.1, 2: 1.9}),
        ({0: 10.0, 1: 14.0}, {0: 2.0, 1: 2.1, 2: 1.9}),
        ({0: 10.0}, {0: 2.0}),
        ({1: 10.0, 2: 11.0, 3: 12.0}, {0: 2.0, 2: 2.1, 3: 2.0}),
        (FIVE, dict.fromkeys(FIVE, 2.0)),
    ],
    ids=["five rounds", "three of five", "two", "one", "some rounds are not shared", "no variance"],
)
def test_one_speedup_is_one_number(base: dict[int, float], other: dict[int, float], tmp_path: Path) -> None:
    run = write_run(tmp_path, in_rounds(base, other))
    (row,) = (r for r in run_summary(run)["rows"] if r["method"] == "hyper")
    (compared,) = compare(run, methods=("hyper", "flash2")).rows
    assert row["speedup"] == pytest.approx(compared.judgement.ratio, rel=1e-12)
    shared = sorted(base.keys() & other.keys())
    assert row["speedup_rounds"] == len(shared)
    assert row["speedup"] == pytest.approx(math.exp(np.mean([math.log(base[r] / other[r]) for r in shared])))
    if len(shared) >= 3:
        told = [compared.judgement.low, compared.judgement.high]
        assert [row["speedup_low"], row["speedup_high"]] == [v if v is None else pytest.approx(v) for v in told]
    else:
        assert compared.judgement.low is None
        assert row["speedup_low"] < row["speedup"] < row["speedup_high"]
    mark = "†" if len(shared) < 3 else ""
    text = markdown(make_view(load_run(run)))
    (cell,) = re.findall(r"[0-9.]+× ?[^|]*?(?= \|)", text)
    assert cell.endswith(f"%{mark}") == (row["speedup_low"] is not None)
    assert ("below 3 rounds" in text) == bool(mark)


def test_few_rounds_have_the_hull_of_what_their_samples_allow() -> None:
    records = in_rounds({0: 10.0, 1: 14.0}, {0: 2.0, 1: 2.1})
    single = add_speedup(timings(records), per_round=True).query("method == 'hyper'")
    row = hyper_row(records)
    assert row["speedup_low"] == pytest.approx(single["speedup_low"].min())
    assert row["speedup_high"] == pytest.approx(single["speedup_high"].max())


def test_rounds_that_are_not_shared_have_no_speedup() -> None:
    row = hyper_row(in_rounds({0: 10.0}, {1: 2.0}))
    assert pd.isna(row["speedup"])
    assert row["baseline_median_ms"] > 0


def test_a_time_of_zero_has_no_speedup() -> None:
    for base, other in (({0: 0.0, 1: 1.0}, {0: 1.0, 1: 1.0}), ({0: 1.0}, {0: 0.0})):
        row = hyper_row(in_rounds(base, other))
        assert pd.isna([row["speedup"], row["speedup_low"], row["speedup_high"]]).all()


def test_slow_periods_that_both_share_make_no_interval_wide() -> None:
    slow = {r: ms * f for (r, ms), f in zip(FIVE.items(), (1, 1.5, 1, 1.6, 1.3), strict=True)}
    noise = (1.0, 1.01, 0.99, 1.005, 0.995)
    row = hyper_row(in_rounds(slow, {r: ms * x / 5 for (r, ms), x in zip(slow.items(), noise, strict=True)}))
    assert row["speedup"] == pytest.approx(5.0, rel=0.01)
    assert 4.8 < row["speedup_low"] < row["speedup"] < row["speedup_high"] < 5.2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rounds_are_combined_as_row_by_row(data: st.DataObject) -> None:
    made: list[Record] = []
    for p in (BASE, OTHER):
        for i in range(data.draw(st.integers(1, 4))):
            status = data.draw(st.sampled_from((Status.OK, Status.OK, Status.THROTTLED, Status.OOM, Status.TIMEOUT)))
            flags = tuple(data.draw(st.lists(st.sampled_from(("drift", "bimodal")), unique=True)))
            ms = data.draw(st.floats(0.1, 10))
            changes: dict[str, Any] = {
                "round": i,
                "status": status,
                "message": data.draw(st.sampled_from(("", "slow"))),
            }
            made.append(
                timing(p, Pass.FORWARD, ms, flags=flags, **changes)
                if status.has_timing
                else dataclasses.replace(failed(p, Pass.FORWARD), **changes)
            )
    frame = timings(made)
    combined = combine_rounds(frame)
    assert list(combined.columns) == list(frame.columns)
    assert combined.dtypes.to_dict() == frame.dtypes.to_dict()
    for row in combined.to_dict("records"):
        rounds = [r for r in made if isinstance(r, Timing) and r.point.point_id == row["point_id"]]
        timed = [r for r in rounds if r.samples_ms]
        assert row["n_samples"] == sum(len(r.samples_ms) for r in rounds)
        if timed:
            assert row["median_ms"] == pytest.approx(np.median([np.median(r.samples_ms) for r in timed]))
            assert row["status"] == ("throttled" if any(r.status is Status.THROTTLED for r in timed) else "ok")
        else:
            assert row["status"] == rounds[0].status
        flags = list(dict.fromkeys(flag for r in timed for flag in r.flags))
        assert row["flags"] == (",".join(flags) or None)
        failures = len(rounds) - len(timed)
        assert (f"{failures} of {len(rounds)} rounds have no timing" in row["message"]) == bool(timed and failures)
