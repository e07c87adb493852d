"""Journals of several runs in one folder, put together by hand: told apart, and never joined."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hyperbench.analyze.compare.compare import compare
from hyperbench.analyze.plot import plot_run
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.store.environment import sealed
from hyperbench.store.files import StoreError
from hyperbench.store.journal import Journal
from tests.helpers.several_runs import LENGTHS, put_together, records
from tests.helpers.synthetic_runs import write_run


def printed(run: Path) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_run(run, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_speedup_is_of_rows_of_one_run(tmp_path: Path) -> None:
    alone = {r["seq_len"]: r["speedup"] for r in run_summary(write_run(tmp_path / "a", records(1.0)))["rows"]
             if r["method"] == "hyper" and r["pass"] == "forward"}  # fmt: skip
    both = put_together(tmp_path / "both", ("one", records(1.0)), ("two", records(3.0)))
    rows = [r for r in run_summary(both)["rows"] if r["method"] == "hyper" and r["pass"] == "forward"]
    assert len(rows) == 2 * len(LENGTHS)
    for row in rows:
        assert row["speedup"] == pytest.approx(alone[row["seq_len"]])
        assert set(row["errors"]) == {"out_rel_fro", "dq_rel_fro", "out_rel_op", "mean_v_rel_fro", "zero_rel_fro"}
    times = {r["point_id"].partition("/")[0]: r["median_ms"] for r in rows if r["seq_len"] == LENGTHS[0]}
    assert times["two"] == pytest.approx(3 * times["one"])


def test_a_baseline_of_another_run_is_none(tmp_path: Path) -> None:
    parts = (("one", records(1.0, ("flash2",))), ("two", records(1.0, ("hyper",))))
    rows = [r for r in run_summary(put_together(tmp_path, *parts))["rows"] if r["method"] == "hyper"]
    assert rows
    assert all(r["speedup"] is None and r["baseline_status"] == "missing" for r in rows)


def test_what_differs_within_the_rows_is_said(tmp_path: Path) -> None:
    here = {"threads": 2, "machine": "Some CPU, 2 cores", "torch": "2.13.0"}
    there = {"threads": 8, "machine": "Another CPU, 64 cores", "torch": "2.12.0"}
    run = put_together(tmp_path / "run", ("one", records(1.0, **here)), ("two", records(1.0, **there)))
    shown = printed(run)
    lines = run_summary(run)["differing"]
    for line in (
        "run_id differs within these rows: one (12 rows), two (12 rows)",
        "threads differs within these rows: 2 (12 rows), 8 (12 rows)",
        "machine differs within these rows: Some CPU, 2 cores (12 rows), Another CPU, 64 cores (12 rows)",
        "torch differs within these rows: 2.13.0 (12 rows), 2.12.0 (12 rows)",
    ):
        assert line in lines
        assert line in shown
        assert any(line.partition(":")[0] in warning for warning in compare(run, methods=("flash2", "hyper")).warnings)
    same = put_together(tmp_path / "same", ("one", records(1.0, **here)))
    assert run_summary(same)["differing"] == []
    assert compare(same, methods=("flash2", "hyper")).warnings == ()


def test_figures_ask_which_run(tmp_path: Path) -> None:
    run = put_together(tmp_path / "run", ("one", records(1.0)), ("two", records(3.0)))
    with pytest.raises(ValueError, match="run_id varies"):
        plot_run(run, ["times"], "html", tmp_path / "figures")
    paths = plot_run(run, ["times", "run_id=two"], "html", tmp_path / "figures")[0]
    assert len(paths) == 1


def test_such_a_folder_is_not_continued(tmp_path: Path) -> None:
    run = put_together(tmp_path / "run", ("one", records(1.0)), ("two", records(3.0)))
    with pytest.raises(StoreError, match=r"the journals of several runs \(one, two\)"):
        Journal(run / "journal.jsonl").__enter__()


def test_the_journal_of_another_run_alone_is_refused(tmp_path: Path) -> None:
    run = put_together(tmp_path / "run", ("one", records(1.0)))
    (run / "environment.json").write_text(json.dumps(sealed({"run_id": "three"})))
    with pytest.raises(StoreError, match="the journal of run one, not of run three"):
        run_summary(run)
