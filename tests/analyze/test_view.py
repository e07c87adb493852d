"""The view: nothing lost on the way from the tables, filters that say what there is, provenance that is complete."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.view import (
    MAIN_ERROR,
    View,
    error_columns,
    headline,
    make_view,
    meanings,
    parameters,
    provenance,
    reason,
    require_timings,
)
from hyperbench.store import tables
from hyperbench.store.run_folder import Run, load_run
from hyperbench.store.schema import ErrorRow, Pass, Record, Status
from tests.helpers.synthetic_runs import (
    ENVIRONMENT,
    HYPER,
    PASSES,
    MakeRun,
    errors,
    failed,
    grid,
    hyper_ms,
    point,
    sweep,
    timing,
    view_from,
)


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 71)))
def test_every_row_of_the_run_is_in_the_view_whatever_failed(lost: set[int]) -> None:
    records = grid(lengths=(1024, 2048, 4096, 8192, 16_384, 32_768))
    timed = [r for r in records if hasattr(r, "pass_")]
    ids = {id(timed[i]) for i in lost}
    kept = [failed(r.point, r.pass_) if id(r) in ids else r for r in records]  # type: ignore[union-attr]
    frame = view_from(kept).timings
    assert sorted(zip(frame["point_id"], frame["pass"], strict=True)) == sorted(
        (r.point.point_id, str(r.pass_)) for r in timed
    )
    assert frame["median_ms"].notna().sum() == len(timed) - len(lost)


def test_errors_stand_beside_the_times_of_their_point_and_no_other() -> None:
    frame = view_from(grid(lengths=(1024, 2048))).timings
    hyper = frame[frame["method"] == "hyper"]
    assert hyper.groupby("seq_len")[MAIN_ERROR].nunique().eq(1).all()
    assert hyper[MAIN_ERROR].nunique() == 2
    assert frame.loc[frame["method"] == "flash2", MAIN_ERROR].isna().all()
    assert set(error_columns(frame)) == {"out_rel_fro", "dq_rel_fro", "out_rel_op", "mean_v_rel_fro", "zero_rel_fro"}


def test_methods_are_in_the_order_of_the_run_without_the_baseline() -> None:
    records = grid(lengths=(1024,), methods=("uniform", "flash2", "hyper"))
    assert view_from(records).methods == ["uniform", "hyper"]
    assert view_from(records, "hyper").methods == ["uniform", "flash2"]


def test_methods_are_in_the_order_of_the_configuration_whatever_was_measured_first() -> None:
    forward = grid(lengths=(1024, 2048))
    backward = [*(r for r in forward if r.point.seq_len == 2048), *(r for r in forward if r.point.seq_len == 1024)]
    mixed = sorted(backward, key=lambda r: r.point.method != "hyper")
    assert list(view_from(mixed).timings["method"].unique()) == ["flash2", "hyper"]
    assert len(view_from(mixed).timings) == len(view_from(forward).timings)


def test_a_filter_keeps_the_baseline(make_run: MakeRun) -> None:
    run = load_run(make_run(sweep("block_size", (128, 256))))
    view = make_view(run, where={"block_size": ["128"]})
    assert set(view.timings["method"]) == {"flash2", "hyper"}
    assert set(view.timings["block_size"].dropna()) == {128}


@pytest.mark.parametrize(("dim", "value"), [("seq_len", "7"), ("method", "hypr"), ("is_causal", "true")])
def test_a_filter_that_matches_nothing_is_one_line_with_what_there_is(make_run: MakeRun, dim: str, value: str) -> None:
    run = load_run(make_run(grid(lengths=(1024,), masks=(False,))))
    with pytest.raises(ValueError, match=f"{dim}={value} is not in this run; there is: ") as caught:
        make_view(run, where={dim: [value]})
    assert "\n" not in str(caught.value)


def test_an_empty_run_is_a_view_without_rows() -> None:
    view = view_from([])
    assert view.timings.empty
    assert view.methods == []
    with pytest.raises(DoesNotFitError, match="no timing yet"):
        require_timings(view)


def test_a_run_of_failures_says_which() -> None:
    view = view_from(grid(lengths=(1024,), change=lambda t: failed(t.point, t.pass_, Status.TIMEOUT)))
    with pytest.raises(DoesNotFitError, match="timeout"):
        require_timings(view)


@pytest.mark.parametrize(
    ("value", "status", "message", "told"),
    [
        (None, Status.OOM, "no memory", "oom: no memory"),
        (None, Status.TIMEOUT, "", "timeout"),
        (math.nan, Status.OK, "", "not a number"),
    ],
)
def test_a_draw_without_an_error_keeps_its_reason(value: Any, status: Status, message: str, told: str) -> None:
    p = point("hyper", 1024, hyper=HYPER)
    draw = ErrorRow(point=p, seed=9, metric=MAIN_ERROR, value=value, status=status, message=message)
    view = view_from([timing(p, Pass.FORWARD, 1.0), draw])
    assert view.error_reasons == {p.point_id: told}


def complete(view: View) -> str:
    """The provenance of a view as one text."""
    return " | ".join(provenance(view))


@pytest.mark.parametrize(
    "part",
    [
        "Intel Xeon, 2 cores (cpu, 2 threads)",
        "float32, batch=1, heads=1, head_dim=64",
        "hyper: b=256 m=256 r=7 leaf=1,024 stratified sampling bucket pairing",
        "baseline flash2 = torch-2.13.0-sdpa-flash-cpu",
        "protocol strict",
        "input gaussian (seed 0)",
        "commit 0123456789",
    ],
)
def test_provenance_names_everything_that_made_the_numbers(full_view: View, part: str) -> None:
    assert part in provenance(full_view)


def test_provenance_tells_what_is_not_known() -> None:
    nothing = dict.fromkeys(ENVIRONMENT)
    view = view_from(grid(lengths=(1024,), methods=("hyper",)), **nothing)
    assert "machine not recorded (cpu)" in provenance(view)
    assert "baseline flash2 (not in this run)" in provenance(view)
    assert "commit not recorded" in provenance(view)


def test_provenance_tells_of_uncommitted_changes_and_of_shared_keys() -> None:
    view = view_from(grid(lengths=(1024,), heads=4, kv_heads=1), dirty=True)
    assert "commit 0123456789, dirty" in provenance(view)
    assert "kv_heads=1" in complete(view)


def test_what_is_on_an_axis_is_not_repeated() -> None:
    view = view_from(sweep("block_size", (128, 256)))
    assert "b=128|256" in complete(view)
    assert "b=" not in " | ".join(provenance(view, ("block_size",)))
    assert "heads=" not in " | ".join(provenance(view, ("heads",)))


def test_parameters_are_those_of_the_method_alone() -> None:
    frame = view_from(grid(lengths=(1024,), methods=("flash2", "hyper"))).timings
    assert parameters(frame, "flash2") == ""
    assert parameters(frame, "hyper", without=("sampling", "pairing")) == "b=256 m=256 r=7 leaf=1,024"


def test_parameters_of_any_method_are_named_with_their_values() -> None:
    hypers = [{"window": w, "rate": 0.5, "block_size": 64, "exact_rows": True} for w in (1024, 64)]
    records = [timing(point("mine", 1024, hyper=h), Pass.FORWARD, 1.0) for h in hypers]
    assert parameters(view_from(records).timings, "mine") == "b=64 window=64|1,024 rate=0.5 exact_rows=true"


def test_kinds_of_methods_are_those_of_the_configuration_as_far_as_they_are_known() -> None:
    kinds = {"flash2": None, "zero": "trivial", "top_k": "oracle", "mine": "<b>best</b>", "other": ["trivial"]}
    config = {"method": {name: {"kind": kind} for name, kind in kinds.items()}}
    view = make_view(Run(Path("run"), config, {}, **tables.build(grid(lengths=(1024,)), "run")))
    assert view.kinds == {"zero": "trivial", "top_k": "oracle"}


def test_the_headline_says_what_is_compared_and_calls_exact_only_what_is() -> None:
    records = grid(lengths=(1024,))
    what, where = headline(view_from(records))
    assert what == "hyper: HyperAttention; flash2: exact attention, torch-2.13.0-sdpa-flash-cpu"
    assert where == "Intel Xeon, 2 cores; float32; gaussian input"
    assert "exact attention" not in headline(view_from(records, "hyper"))[0].partition("hyper:")[2]


def test_letters_are_explained_where_they_occur() -> None:
    (note,) = meanings(view_from(grid(lengths=(1024,))))
    assert [part.partition(":")[0] for part in note.split("; ")] == ["b", "m", "r", "leaf"]
    assert meanings(view_from(grid(lengths=(1024,), methods=("flash2",)))) == []


def test_a_reason_is_given_for_every_row_that_is_not_in_order_and_for_no_other() -> None:
    base, p, alone = point("flash2", 1024), point("hyper", 1024, hyper=HYPER), point("hyper", 2048, hyper=HYPER)
    records: list[Record] = [failed(base, Pass.FORWARD, Status.OOM, "no memory")]
    records += [timing(base, Pass.BACKWARD, 9.0), *errors(p)]
    records += [timing(p, x, hyper_ms(p, x)) for x in PASSES[:2]]
    records += [timing(p, PASSES[2], 1.0, status=Status.THROTTLED), timing(alone, Pass.FORWARD, 1.0)]
    records += [failed(alone, Pass.BACKWARD, Status.ERROR, "")]
    told = {(r["method"], r["seq_len"], r["pass"]): reason(r) for r in view_from(records).timings.to_dict("records")}
    assert told == {
        ("flash2", 1024, "forward"): "oom: no memory",
        ("flash2", 1024, "backward"): "",
        ("hyper", 1024, "forward"): "baseline oom: no memory",
        ("hyper", 1024, "backward"): "",
        ("hyper", 1024, "forward_backward"): "throttled; baseline missing",
        ("hyper", 2048, "forward"): "baseline missing",
        ("hyper", 2048, "backward"): "error",
    }


def test_a_view_does_not_change_the_run(make_run: MakeRun) -> None:
    run = load_run(make_run(grid(lengths=(1024, 2048))))
    before = run.timings.copy(deep=True)
    make_view(run, where={"seq_len": ["1024"]})
    pd.testing.assert_frame_equal(run.timings, before)
