"""Flagged times carry a mark, and the flags are listed with what they mean."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from hyperbench.analyze.export import export_run
from hyperbench.analyze.format import flags_in
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.text_table import time_tables
from hyperbench.store.schema import Pass, Timing
from tests.helpers.synthetic_runs import MakeRun, grid, view_from

LENGTHS = (1024, 4096)


def flagged(t: Timing) -> Timing:
    """The same timing, of hyper's forward pass flagged."""
    marked = t.point.method == "hyper" and t.pass_ is Pass.FORWARD
    return dataclasses.replace(t, flags=("drift", "bimodal")) if marked else t


def shown(run: Any) -> str:
    """The text of a run on a wide terminal."""
    console = Console(file=io.StringIO(), width=400, color_system=None)
    show_run(run, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_flagged_times_are_marked_and_the_flags_listed(make_run: MakeRun) -> None:
    run = make_run(grid(lengths=LENGTHS, masks=(False,), change=flagged))
    text = shown(run)
    assert "* drift: hyper (2 rows)" in text
    assert "* bimodal: hyper (2 rows)" in text
    assert "% *" not in text
    assert text.count("%*") == 2
    rows = run_summary(run)["rows"]
    assert {row["flags"] for row in rows if row["method"] == "hyper" and row["pass"] == "forward"} == {"drift,bimodal"}
    assert {row["flags"] for row in rows if row["pass"] != "forward"} == {None}
    assert "*" not in shown(make_run(grid(lengths=LENGTHS), "other")).replace("**", "")


def test_a_flagged_baseline_is_marked_too() -> None:
    def change(t: Timing) -> Timing:
        return dataclasses.replace(t, flags=("busy_machine",)) if t.point.method == "flash2" else t

    (table,) = time_tables(view_from(grid(lengths=LENGTHS, masks=(False,), change=change)))
    column = table.columns.index("flash2")
    assert all(row[column].endswith("*") for row in table.rows)
    assert not any(row[table.columns.index("hyper")].endswith("*") for row in table.rows)


def test_a_flag_of_any_round_stays(make_run: MakeRun) -> None:
    def change(t: Timing) -> Timing:
        return dataclasses.replace(t, round=1, flags=("throttled",))

    records = [*grid(lengths=LENGTHS, change=flagged), *(t for t in grid(lengths=LENGTHS, change=change))]
    rows = run_summary(make_run(records))["rows"]
    for row in rows:
        ours = row["method"] == "hyper" and row["pass"] == "forward"
        assert row["flags"] == ("drift,bimodal,throttled" if ours else "throttled")


@pytest.mark.parametrize(
    ("cells", "flags"),
    [([], []), ([None, float("nan"), ""], []), (["a,b", None, "b,c"], ["a", "b", "c"])],
)
def test_flags_are_read_from_cells(cells: list[Any], flags: list[str]) -> None:
    assert flags_in(cells) == flags


def test_exports_hold_the_flags(make_run: MakeRun, tmp_path: Any) -> None:
    run = make_run(grid(lengths=LENGTHS, change=flagged))
    (timings, *_) = export_run(run, "csv", tmp_path / "out")
    assert '"drift,bimodal"' in timings.read_text()
