"""A run in the terminal and as JSON: nothing cut, nothing that JSON cannot hold."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hyperbench.analyze.format import PASS_LABELS
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.text_table import stage_tables, time_tables
from hyperbench.analyze.view import make_view
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import ErrorRow, Pass, Record, Status, Timing
from tests.helpers.synthetic_runs import (
    CPU_LENGTHS,
    HOSTILE,
    HYPER,
    PASSES,
    MakeRun,
    failed,
    grid,
    point,
    stages,
    timing,
)


def printed(run: Path, width: int) -> str:
    """The text of a run on a terminal of this width."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show_run(run, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return str(text)


def awkward() -> list[Record]:
    """A run with everything that can go wrong in it."""
    statuses = iter([Status.OOM, Status.SKIPPED_AFTER_OOM, Status.UNSUPPORTED, Status.TIMEOUT, Status.ERROR] * 10)

    def change(t: Timing) -> Timing | None:
        if t.point.seq_len == 4096:
            return failed(t.point, t.pass_, next(statuses), HOSTILE[2])
        if t.point.seq_len == 2048 and t.point.method == "flash2":
            return None
        return timing(t.point, t.pass_, 2.0, status=Status.THROTTLED) if t.pass_ is Pass.BACKWARD else t

    records = grid(lengths=(1024, 2048, 4096), change=change, staged=True)
    records += stages(point("hyper", 512, hyper=HYPER), lost={"sort": HOSTILE[2]})
    records += [timing(point("hyper", 512, hyper=HYPER), x, 1.0) for x in PASSES]
    p = point("hyper", 1024, hyper=HYPER)
    records += [ErrorRow(point=p, seed=7, metric="lse_max_abs", value=v) for v in (math.inf, math.nan)]
    return records


@pytest.mark.parametrize("width", [20, 40, 80, 120, 400])
def test_every_cell_is_shown_whole_on_any_terminal(make_run: MakeRun, width: int) -> None:
    run = make_run(awkward())
    seen = "".join(printed(run, width).split())
    view = make_view(load_run(run))
    for table in [*time_tables(view), *stage_tables(view)]:
        for row in table.rows:
            for cell in row:
                assert "".join(cell.split()) in seen
    assert "…" not in seen


def test_the_usual_run_is_a_table_on_eighty_columns(full_run: Path) -> None:
    starts = [line.split()[:2] for line in printed(full_run, 80).splitlines()]
    for n in CPU_LENGTHS:
        for pass_ in PASSES:
            # A line per length and pass, once for each masking.
            assert starts.count([f"{n:,}", PASS_LABELS[pass_]]) == 2


def test_rich_markup_in_a_message_is_printed_as_it_is(make_run: MakeRun) -> None:
    change: Any = lambda t: failed(t.point, t.pass_, Status.ERROR, "[red]not[/red] [/] a tag")  # noqa: E731
    text = printed(make_run(grid(lengths=(1024,), change=change)), 120)
    assert "error: [red]not[/red] [/] a tag (6 rows)" in text


def test_an_empty_run_says_so(make_run: MakeRun) -> None:
    run = make_run([])
    assert "no measurement yet" in printed(run, 80)
    assert run_summary(run)["rows"] == []


def test_a_summary_holds_every_row_and_is_strict_json(make_run: MakeRun) -> None:
    records = awkward()
    run = make_run(records, odd={"inf": math.inf, "list": [math.nan, 1]})
    summary = json.loads(json.dumps(run_summary(run), allow_nan=False))
    timed = {(r.point.point_id, str(r.pass_)): r for r in records if isinstance(r, Timing) and not r.stage}
    assert {(row["point_id"], row["pass"]) for row in summary["rows"]} == set(timed)
    assert len(summary["rows"]) == len(timed)
    for row in summary["rows"]:
        record = timed[row["point_id"], row["pass"]]
        assert row["status"] == record.status
        assert (row["median_ms"] is None) == (not record.samples_ms)
        assert row["n_samples"] == len(record.samples_ms)
    assert sum(summary["statuses"].values()) == len(timed)
    assert summary["points"] == len({r.point.point_id for r in timed.values()})
    assert summary["methods"] == ["flash2", "hyper"]


def test_a_summary_has_null_where_no_speedup_exists_and_keeps_infinite_errors(make_run: MakeRun) -> None:
    rows = run_summary(make_run(awkward()))["rows"]
    alone = [r for r in rows if r["method"] == "hyper" and r["seq_len"] == 2048]
    assert len(alone) == 2 * len(PASSES)
    assert all(r["speedup"] is None and r["baseline_status"] == "missing" for r in alone)
    p = point("hyper", 1024, hyper=HYPER)
    infinite = [r["errors"]["out_rel_fro"] for r in rows if r["point_id"] == p.point_id]
    assert all(0 < error < 1 for error in infinite)


def test_a_summary_uses_the_baseline_that_was_asked_for(full_run: Path) -> None:
    rows = run_summary(full_run, "hyper")["rows"]
    for row in rows:
        assert (row["speedup"] == pytest.approx(1.0)) == (row["method"] == "hyper")


def test_a_missing_run_is_one_line(tmp_path: Path) -> None:
    for ask in (lambda: printed(tmp_path / "no", 80), lambda: run_summary(tmp_path / "no")):
        with pytest.raises(ValueError, match="no run folder") as caught:
            ask()
        assert "\n" not in str(caught.value)
