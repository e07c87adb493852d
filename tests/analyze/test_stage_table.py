"""Stages as a reader sees them: rounds combined, sums only where every stage has a time, the table printed whole."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hyperbench.analyze.format import plain
from hyperbench.analyze.joins import records
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.stage_table import missing_stages, stages_in
from hyperbench.analyze.text_table import stage_tables
from hyperbench.stats.samples import median
from hyperbench.store.record_json import from_json
from hyperbench.store.schema import ALL_STAGES, Pass, Record, Status
from tests.helpers.made_records import a_stage
from tests.helpers.synthetic_runs import HYPER, MakeRun, errors, grid, point, stages, timing, view_from

POINT = point("hyper", 4096, hyper=HYPER)
CAUSAL = point("hyper", 4096, is_causal=True, hyper=HYPER)


def run_of(*found: Record) -> list[Record]:
    """Stages, and a forward pass of 10 ms at every point."""
    places = {r.point.point_id: r.point for r in found}
    return [*(timing(p, Pass.FORWARD, 10.0) for p in places.values()), *found]


@pytest.mark.slow
@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-3, 1e3), min_size=1))
def test_shares_are_parts_of_the_sum_and_add_up_to_one(parts: dict[str, float]) -> None:
    table = view_from(run_of(*stages(POINT, parts))).stages
    assert table["share"].sum() == pytest.approx(1.0)
    assert table["sum_ms"].nunique() == 1
    assert table["sum_ms"].iloc[0] == pytest.approx(table["median_ms"].sum())
    assert table["forward_ms"].tolist() == pytest.approx([10.0] * len(parts), rel=0.05)


def test_without_a_stage_there_is_no_sum_and_the_reason_is_told() -> None:
    lost = stages(POINT, lost={"sort": "no memory"})
    killed = [r for r in stages(CAUSAL) if r.stage in ("hash", "sort")]
    view = view_from(run_of(*lost, *killed, *stages(point("hyper", 8192, hyper=HYPER))))
    assert view.stages.dropna(subset="sum_ms")["seq_len"].unique().tolist() == [8192]
    assert missing_stages(view.stages) == {
        POINT.point_id: ["stage sort: error: no memory"],
        CAUSAL.point_id: ["not all stages were timed"],
    }
    assert view.stages.loc[view.stages["sum_ms"].isna(), "share"].isna().all()


def test_a_method_without_stages_has_its_reason_and_no_sum() -> None:
    exact = point("flash2", 4096)
    none = a_stage(exact, ALL_STAGES, status=Status.UNSUPPORTED, message="it tells none")
    view = view_from(run_of(none, *stages(POINT)))
    assert missing_stages(view.stages) == {exact.point_id: ["unsupported: it tells none"]}
    assert set(view.stages.dropna(subset="sum_ms")["method"]) == {"hyper"}


def test_several_rounds_are_one_row_of_medians_within_their_hull() -> None:
    rounds = [dataclasses.replace(r, round=i, samples_ms=(2.0 + i,)) for i in range(3) for r in stages(POINT)]
    table = view_from(run_of(*rounds)).stages
    assert len(table) == len(stages(POINT))
    for row in records(table):
        assert (row["median_ms"], row["ci_low_ms"], row["ci_high_ms"], row["n_samples"]) == (3.0, 2.0, 4.0, 3)


def test_a_round_without_a_time_is_told_and_takes_none_with_it() -> None:
    first = stages(POINT)
    second = [dataclasses.replace(r, round=1) for r in stages(POINT, lost={"hash": "slow"})]
    table = view_from(run_of(*first, *second)).stages
    row = table[table["stage"] == "hash"].iloc[0]
    assert row["median_ms"] == median(first[0].samples_ms)
    assert row["message"] == "1 of 2 rounds have no timing (error)."
    assert table["sum_ms"].notna().all()


def marked(name: str, *flags: str, **changes: Any) -> list[Record]:
    """The stages of a point, one of them flagged."""
    return [dataclasses.replace(r, flags=flags, **changes) if r.stage == name else r for r in stages(POINT)]


def test_flags_of_all_rounds_stand_in_the_row_and_a_throttled_round_marks_it() -> None:
    second = marked("attend", "drift", "throttled", round=1, status=Status.THROTTLED)
    table = view_from(run_of(*marked("attend", "bimodal"), *second)).stages
    found = {row["stage"]: (plain(row["flags"]), row["status"]) for row in records(table)}
    assert found.pop("attend") == ("bimodal,drift,throttled", "throttled")
    assert set(found.values()) == {("", "ok")}
    assert table["sum_ms"].notna().all()


def test_a_flagged_stage_is_marked_in_the_table_and_counted_by_show(make_run: MakeRun) -> None:
    found = run_of(*marked("attend", "throttled", status=Status.THROTTLED))
    (table,) = stage_tables(view_from(found))
    cells = dict(zip(table.columns, table.rows[0], strict=True))
    assert "*" in cells["attend"]
    assert cells["attend"].endswith("(throttled)")
    assert not any("*" in cells[name] for name in ("hash", "sort", "sample"))
    run = make_run([*found, *errors(POINT)])
    text = io.StringIO()
    show_run(run, Console(file=text, width=200))
    assert "* throttled: stages of hyper (1 row)" in text.getvalue()
    assert [row["flags"] for row in run_summary(run)["stages"] if row["stage"] == "attend"] == ["throttled"]


def test_stages_stand_in_the_order_of_the_pass_those_of_the_library_first() -> None:
    own = stages(point("mine", 4096), {"z_first": 1.0, "a_last": 2.0})
    table = view_from(run_of(*own, *stages(CAUSAL), *stages(point("hyper", 512, hyper=HYPER), {"exact": 1.0}))).stages
    assert stages_in(table) == [
        "exact", "hash", "sort", "sample", "attend", "leaves", "merge", "z_first", "a_last",
    ]  # fmt: skip


def test_records_of_the_first_version_of_the_schema_are_read() -> None:
    old = {"kind": "stage", "point": POINT.as_dict(), "status": "ok"}
    hashed, attended = {**old, "stage": "hash", "median_ms": 1.0}, {**old, "stage": "attend", "median_ms": 3.0}
    table = view_from(run_of(from_json(hashed), from_json(attended))).stages
    assert table["share"].tolist() == [0.25, 0.75]
    assert table["position"].isna().all()


def test_a_table_has_a_row_per_length_and_every_stage_in_it() -> None:
    view = view_from(grid(lengths=(1024, 2048), staged=True))
    found = {table.title: table for table in stage_tables(view)}
    assert set(found) == {"stages of hyper, without causal masking", "stages of hyper, with causal masking"}
    causal = found["stages of hyper, with causal masking"]
    assert causal.columns[3:] == ("hash", "sort", "sample", "attend", "leaves", "merge")
    assert [row[0] for row in causal.rows] == ["1,024", "2,048"]
    assert all("%" in cell for row in causal.rows for cell in row[3:])
    assert stage_tables(view_from(grid(lengths=(1024,)))) == []


def test_a_table_names_what_has_no_time() -> None:
    (table,) = stage_tables(view_from(run_of(*stages(POINT, lost={"sort": "no memory"}))))
    assert table.rows[0][2] == "not whole"
    assert table.columns[3:] == ("hash", "sample", "attend")


def test_an_input_that_varies_is_a_column_of_the_table() -> None:
    points = [point("hyper", 1024, hyper=HYPER, input=name) for name in ("gaussian", "clustered")]
    (table,) = stage_tables(view_from(run_of(*(r for p in points for r in stages(p)))))
    assert table.columns[:2] == ("n", "input")
    assert sorted(row[1] for row in table.rows) == ["clustered", "gaussian"]


def test_the_stages_of_a_summary_are_strict_json(make_run: MakeRun) -> None:
    run = make_run([*run_of(*stages(POINT, lost={"sort": "no memory"})), *errors(POINT)])
    rows = json.loads(json.dumps(run_summary(run), allow_nan=False))["stages"]
    assert [(row["stage"], row["status"], row["median_ms"] is None) for row in rows] == [
        ("hash", "ok", False), ("sort", "error", True), ("sample", "ok", False), ("attend", "ok", False),
    ]  # fmt: skip


@pytest.mark.slow
def test_the_reference_runs_of_before_hold_no_stages_and_are_still_read() -> None:
    root = Path(__file__).resolve().parents[2] / "results" / "reference"
    for folder in sorted(path.parent for path in root.glob("*/*/journal.jsonl")):
        summary = run_summary(folder)
        assert summary["rows"] or summary["scores"]
        assert isinstance(pd.DataFrame(summary["stages"]), pd.DataFrame)
