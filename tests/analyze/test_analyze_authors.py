"""Numbers timed as the authors did are marked wherever they are shown, and flagged times carry a mark."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console
from synthetic_runs import MakeRun, grid, view_from

from hyperbench.analyze.authors import authors_digests
from hyperbench.analyze.digest import digests
from hyperbench.analyze.export import export_run, latex, markdown
from hyperbench.analyze.plot import plot_run
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.tables import flags_in
from hyperbench.analyze.text import milliseconds, ratio
from hyperbench.analyze.view import AS_PAPER, headline, provenance
from hyperbench.schema import Pass, Record, Timing
from hyperbench.stats import percentile

LENGTHS = (1024, 4096)


def paper_run() -> list[Record]:
    """A small grid timed by protocol=paper."""
    return grid(lengths=LENGTHS, change=lambda t: dataclasses.replace(t, protocol="paper"))


def flagged(t: Timing) -> Timing:
    """The same timing, of hyper's forward pass flagged."""
    marked = t.point.method == "hyper" and t.pass_ is Pass.FORWARD
    return dataclasses.replace(t, flags=("drift", "bimodal")) if marked else t


def shown(run: Any) -> str:
    """What a wide terminal shows."""
    console = Console(file=io.StringIO(), width=400, color_system=None)
    show_run(run, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_authors_numbers_are_20th_percentiles_and_their_sum() -> None:
    records = paper_run()
    samples = {
        (t.point.method, t.point.seq_len, t.point.is_causal, str(t.pass_)): percentile(t.samples_ms, 20.0)
        for t in records
        if isinstance(t, Timing)
    }
    tables = authors_digests(view_from(records))
    assert len(tables) == 2
    for table, is_causal in zip(tables, (False, True), strict=True):
        rows = {(row[0], int(row[1].replace(",", ""))): row[2:] for row in table.rows}
        assert set(rows) == {(m, n) for m in ("flash2", "hyper") for n in LENGTHS}
        for (method, n), (forward, speedup, both, of_sums) in rows.items():
            own, base = (
                [samples[m, n, is_causal, name] for name in ("forward", "backward")] for m in (method, "flash2")
            )
            assert (forward, both) == (milliseconds(own[0]), milliseconds(sum(own)))
            if method == "hyper":
                assert (speedup, of_sums) == (ratio(base[0] / own[0]), ratio(sum(base) / sum(own)))
            else:
                assert (speedup, of_sums) == ("", "")


def test_a_pass_that_is_missing_leaves_its_cells_empty() -> None:
    def change(t: Timing) -> Timing | None:
        return None if t.pass_ is Pass.BACKWARD else dataclasses.replace(t, protocol="paper")

    for table in authors_digests(view_from(grid(lengths=LENGTHS, change=change))):
        assert {row[-2:] for row in table.rows} == {("", "")}
        assert all(row[2] for row in table.rows)


def test_a_run_timed_as_the_authors_did_is_marked_wherever_it_is_shown(make_run: MakeRun, tmp_path: Any) -> None:
    run = make_run(paper_run())
    view = view_from(paper_run())
    for text in (shown(run), latex(view), markdown(view), " ".join(headline(view)), " ".join(provenance(view))):
        assert AS_PAPER in text
    page = plot_run(run, ["fig4"], ["html"], tmp_path / "out").paths[0]
    assert AS_PAPER in page.read_text(encoding="utf-8")


def test_no_other_run_is(full_run: Any) -> None:
    assert AS_PAPER not in shown(full_run)
    assert authors_digests(view_from(grid(lengths=LENGTHS))) == []


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

    (table,) = digests(view_from(grid(lengths=LENGTHS, masks=(False,), change=change)))
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
