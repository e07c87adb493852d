"""Numbers timed as the authors did are marked wherever they are shown, and flagged times carry a mark."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from hyperbench.analyze.authors import authors_digests
from hyperbench.analyze.export import export_run
from hyperbench.analyze.format import milliseconds, ratio
from hyperbench.analyze.joins import flags_in
from hyperbench.analyze.plot import plot_run
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.text_table import digests
from hyperbench.analyze.view import AS_PAPER
from hyperbench.stats.samples import median, percentile
from hyperbench.store.schema import Pass, Record, Timing
from tests.helpers.synthetic_runs import MakeRun, grid, view_from

LENGTHS = (1024, 4096)


def paper_run() -> list[Record]:
    """A small grid timed by protocol=paper."""
    return grid(lengths=LENGTHS, change=lambda t: dataclasses.replace(t, protocol="paper"))


def twice_as_slow(t: Timing) -> Timing:
    """The same timing with samples twice as long."""
    return dataclasses.replace(t, samples_ms=tuple(2 * ms for ms in t.samples_ms))


def flagged(t: Timing) -> Timing:
    """The same timing, of hyper's forward pass flagged."""
    marked = t.point.method == "hyper" and t.pass_ is Pass.FORWARD
    return dataclasses.replace(t, flags=("drift", "bimodal")) if marked else t


def shown(run: Any, beside: Any = None) -> str:
    """What a wide terminal shows."""
    console = Console(file=io.StringIO(), width=400, color_system=None)
    show_run(run, console, beside=beside)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_authors_numbers_are_20th_percentiles_and_their_sum_beside_the_medians_of_another_run() -> None:
    records = paper_run()
    samples = {
        (t.point.method, t.point.seq_len, t.point.is_causal, str(t.pass_)): t.samples_ms
        for t in records
        if isinstance(t, Timing)
    }
    # The other run is of the same points, and twice as slow.
    other = grid(lengths=LENGTHS, change=twice_as_slow)
    tables = authors_digests(view_from(records), view_from(other))
    assert len(tables) == 2
    for table, is_causal in zip(tables, (False, True), strict=True):
        rows = {(row[0], int(row[1].replace(",", ""))): row[2:] for row in table.rows}
        assert set(rows) == {(m, n) for m in ("flash2", "hyper") for n in LENGTHS}
        for (method, n), cells in rows.items():

            def p20(m: str, n: int = n, is_causal: bool = is_causal) -> list[float]:
                return [percentile(samples[m, n, is_causal, name], 20.0) for name in ("forward", "backward")]

            def medians(m: str, n: int = n, is_causal: bool = is_causal) -> list[float]:
                return [2 * median(samples[m, n, is_causal, name]) for name in ("forward", "forward_backward")]

            own, base = p20(method), p20("flash2")
            times = (own[0], medians(method)[0], sum(own), medians(method)[1])
            of_base = (base[0], medians("flash2")[0], sum(base), medians("flash2")[1])
            assert cells[::2] == tuple(milliseconds(t) for t in times)
            speedups = tuple(ratio(b / t) for t, b in zip(times, of_base, strict=True))
            assert cells[1::2] == (speedups if method == "hyper" else ("", "", "", ""))


def test_a_pass_that_is_missing_leaves_its_cells_empty() -> None:
    def change(t: Timing) -> Timing | None:
        return None if t.pass_ is Pass.BACKWARD else dataclasses.replace(t, protocol="paper")

    view = view_from(grid(lengths=LENGTHS, change=change))
    other = view_from(grid(lengths=LENGTHS[:1], change=lambda t: None if t.pass_ is Pass.FORWARD else t))
    for table in authors_digests(view, other):
        for row in table.rows:
            forward, _, other_forward, _, both, _, other_both, _ = row[2:]
            assert (forward != "", other_forward, both) == (True, "", "")
            assert (other_both != "") == (row[1] == "1,024")


def test_a_run_timed_as_the_authors_did_is_never_shown_alone(make_run: MakeRun, full_run: Any, tmp_path: Any) -> None:
    run = make_run(paper_run(), "as_paper")
    for show in (
        lambda: shown(run),
        lambda: run_summary(run),
        lambda: export_run(run, "latex", tmp_path / "out"),
        lambda: export_run(run, "markdown", tmp_path / "out"),
        lambda: plot_run(run, ["fig4"], ["html"], tmp_path / "out"),
    ):
        with pytest.raises(ValueError, match=f"{AS_PAPER}.*--beside DIR"):
            show()
    with pytest.raises(ValueError, match="that run, too, was timed as the authors did"):
        shown(run, beside=run)
    with pytest.raises(ValueError, match="it has no point of"):
        shown(run, beside=make_run(grid(lengths=(333,)), "elsewhere"))
    with pytest.raises(ValueError, match="--beside is for a run of protocol=paper"):
        shown(full_run, beside=run)
    assert not (tmp_path / "out").exists()
    # Tidy tables name the protocol in every row.
    assert {path.suffix for path in export_run(run, "csv", tmp_path / "out")} == {".csv"}


def test_beside_another_run_it_is_marked(make_run: MakeRun, tmp_path: Any) -> None:
    run, other = make_run(paper_run(), "as_paper"), make_run(grid(lengths=LENGTHS), "other")
    texts = [shown(run, other)]
    for fmt in ("latex", "markdown"):
        texts += [path.read_text(encoding="utf-8") for path in export_run(run, fmt, tmp_path, beside=other)]
    for text in texts:
        assert AS_PAPER in text
        assert "20th percentiles" in text
        assert "beside the medians of protocol" in text
    summary = run_summary(run, beside=other)
    assert summary["beside"]["run"] == str(other)
    assert len(summary["beside"]["rows"]) == len(summary["rows"])


def test_no_other_run_is(full_run: Any) -> None:
    assert AS_PAPER not in shown(full_run)


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
