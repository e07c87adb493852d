"""A method that is not causal in q is said to be so beside its numbers, wherever they are shown."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from hyperbench.analyze.caveats import causal_in_q, caveats
from hyperbench.analyze.export import export_run
from hyperbench.analyze.figures import builder
from hyperbench.analyze.plotting import errors
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.view import error_columns
from hyperbench.measure.work_items import CAUSAL_IN_Q
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import ErrorRow, Point, Record, Timing
from tests.helpers.figure_reading import footer
from tests.helpers.synthetic_runs import HYPER, MakeRun, grid, view_from

LENGTHS = (1024, 2048, 4096)
END = ": under the causal mask, later queries change earlier outputs."


def with_causality(records: list[Record], moved: dict[str, tuple[int, ...]]) -> list[Record]:
    """These records with the property at every causal point: 0 for these methods at these lengths, else 1."""
    points: dict[str, Point] = {r.point.point_id: r.point for r in records if r.point.is_causal}
    rows = [
        ErrorRow(p, seed, CAUSAL_IN_Q, float(p.seq_len not in moved.get(p.method, ())))
        for p in points.values()
        for seed in (0, 1)
    ]
    return [*records, *rows]


def a_run(moved: dict[str, tuple[int, ...]]) -> list[Record]:
    """Three methods, of which these are not causal in q at these lengths."""
    return with_causality(grid(LENGTHS, ("flash2", "hyper", "hyper_paper"), staged=True), moved)


EVERYWHERE = {"hyper_paper": LENGTHS}
NOTE = f"Not causal in q: hyper_paper{END}"


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["fig4", "times", "stages"])
def test_figures_say_it_in_their_footer(figure: str) -> None:
    assert NOTE in footer(builder(figure)(view_from(a_run(EVERYWHERE))))
    assert "Not causal" not in footer(builder(figure)(view_from(a_run({}))))


def test_the_hover_says_it_first() -> None:
    view = view_from(a_run(EVERYWHERE))
    for row in view.timings.to_dict("records"):
        lines = errors.error_lines({str(k): v for k, v in row.items()}, view)
        moved = row["is_causal"] and row["method"] == "hyper_paper"
        assert (lines[0] == "not causal in q: later queries change earlier outputs") == moved
        assert not any(CAUSAL_IN_Q in line for line in lines)


def test_the_terminal_and_the_summary_say_it(make_run: MakeRun) -> None:
    run = make_run(a_run(EVERYWHERE))
    console = Console(file=io.StringIO(), width=200, color_system=None)
    show_run(run, console)
    assert NOTE in console.file.getvalue()  # type: ignore[attr-defined]
    for row in run_summary(run)["rows"]:
        wanted = None if not row["is_causal"] else row["method"] != "hyper_paper"
        assert row["causal_in_q"] is wanted
        assert CAUSAL_IN_Q not in row["errors"]


@pytest.mark.parametrize("fmt", ["markdown", "latex"])
def test_exported_texts_say_it(fmt: str, make_run: MakeRun) -> None:
    (path,) = export_run(make_run(a_run(EVERYWHERE)), fmt, None)
    assert "Not causal in q: hyper\\_paper" in path.read_text(encoding="utf-8")


def test_exported_tables_hold_it_as_a_metric(make_run: MakeRun) -> None:
    paths = {p.stem: p for p in export_run(make_run(a_run(EVERYWHERE)), "csv", None)}
    lines = paths["errors"].read_text(encoding="utf-8").splitlines()
    assert sum(CAUSAL_IN_Q in line for line in lines) == 3 * len(LENGTHS) * 2


def test_where_it_depends_on_the_length_the_lengths_are_named() -> None:
    (note,) = caveats(view_from(a_run({"hyper_paper": (2048, 4096)})).timings)
    assert note == f"Not causal in q: hyper_paper (n = 2,048, 4,096){END}"


def test_where_it_depends_on_the_pairing_the_pairing_is_named() -> None:
    paired: list[Record] = []
    for pairing in ("rank", "bucket"):
        for r in grid((2048,), ("hyper",)):
            p = Point(**{**r.point.as_dict(), "hyper": {**HYPER, "pairing": pairing}})
            paired.append(dataclasses.replace(r, point=p))
    points = {r.point.point_id: r.point for r in paired if r.point.is_causal}
    paired += [ErrorRow(p, 0, CAUSAL_IN_Q, float(p.hyper["pairing"] == "bucket")) for p in points.values()]
    (note,) = caveats(view_from(paired).timings)
    assert note == f"Not causal in q: hyper (pairing=rank){END}"


def test_a_run_from_before_it_was_measured_is_shown_as_ever(full_run: Path) -> None:
    assert all(row["causal_in_q"] is None for row in run_summary(full_run)["rows"])
    view = view_from(grid(LENGTHS))
    assert caveats(view.timings) == []
    assert causal_in_q(view.timings.iloc[0].to_dict()) is None
    assert CAUSAL_IN_Q not in error_columns(view_from(a_run({})).timings)


@pytest.mark.parametrize("name", ["fig4", "pairing", "sampling", "min_seq_len"])
def test_committed_runs_without_it_are_read(name: str) -> None:
    root = Path(__file__).parents[2] / "results" / "reference"
    folders = sorted(p.parent for p in root.glob(f"*/{name}/journal.jsonl"))
    assert folders
    for folder in folders:
        known = CAUSAL_IN_Q in set(load_run(folder).errors["metric"])
        assert known or all(row["causal_in_q"] is None for row in run_summary(folder)["rows"])


def test_leaks_and_set_ups_are_told_wherever_numbers_are_shown(make_run: MakeRun, tmp_path: Path) -> None:
    def change(t: Timing) -> Timing:
        if t.point.method != "hyper":
            return t
        return dataclasses.replace(t, flags=("leaks",) if t.point.is_causal else (), setup_ms=float(t.point.seq_len))

    records = grid((1024, 2048), masks=(True,), change=change)
    run, view = make_run(records), view_from(records)
    leaks, setup = caveats(view.timings)
    assert leaks.startswith("Leaks: hyper (n = 1,024, 2,048): under the causal mask later keys or values change")
    assert setup == "Not in the times: the set-up of hyper (up to 2,048 ms)."
    below = footer(builder("times")(view))
    assert leaks in below
    assert setup in below
    console = Console(file=io.StringIO(), width=400, color_system=None)
    show_run(run, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert leaks in shown
    assert setup in shown
    assert "* leaks: hyper (6 rows)" in shown
    (page,) = export_run(run, "markdown", tmp_path)
    assert "Leaks: hyper" in page.read_text()
    rows = run_summary(run)["rows"]
    assert {row["flags"] for row in rows if row["method"] == "hyper" and row["is_causal"]} == {"leaks"}
    for row in view.timings.to_dict("records"):
        lines = errors.error_lines({str(k): v for k, v in row.items()}, view)
        assert lines[0].startswith("leaks: ") == (row["is_causal"] and row["method"] == "hyper")
    assert caveats(view_from(grid((1024,))).timings) == []
