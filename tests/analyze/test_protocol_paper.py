"""A run of protocol=paper is labelled wherever it is shown."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from hyperbench.analyze.export import export_run, latex_escape, markdown_escape
from hyperbench.analyze.figures import builder
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.view import AS_PAPER, make_view
from hyperbench.stats.samples import percentile
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Record, Timing
from tests.helpers.figure_reading import shown as letters
from tests.helpers.synthetic_runs import MakeRun, grid

LENGTHS = (1024, 4096)


def paper_run() -> list[Record]:
    """A small grid timed by protocol=paper."""
    return grid(lengths=LENGTHS, staged=True, change=lambda t: dataclasses.replace(t, protocol="paper"))


def printed(run: Path) -> str:
    """The text of a run on a wide terminal."""
    console = Console(file=io.StringIO(), width=400, color_system=None)
    show_run(run, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_every_table_and_figure_has_the_label_once_in_its_title(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(paper_run())
    # Times without and with causal masking, and the stages of both.
    assert printed(run).count(AS_PAPER) == 4
    for fmt, escape in (("latex", latex_escape), ("markdown", markdown_escape)):
        (path,) = export_run(run, fmt, tmp_path)
        assert path.read_text(encoding="utf-8").count(escape(AS_PAPER)) == 4
    view = make_view(load_run(run))
    for name in ("fig4", "times", "stages"):
        assert letters(builder(name)(view).layout.title.subtitle.text).count(AS_PAPER) == 1


@pytest.mark.parametrize("chosen", [{}, {"method": ["hyper"]}])
def test_a_run_of_another_protocol_has_no_label(full_run: Path, chosen: dict[str, list[str]]) -> None:
    assert "result by itself" not in printed(full_run)
    assert not make_view(load_run(full_run), where=chosen).as_paper


def test_the_authors_numbers_are_in_the_rows(make_run: MakeRun) -> None:
    records = paper_run()
    timed = [t for t in records if isinstance(t, Timing) and not t.stage]
    samples = {(t.point.point_id, str(t.pass_)): t.samples_ms for t in timed}
    for row in run_summary(make_run(records))["rows"]:
        assert row["protocol"] == "paper"
        assert row["p20_ms"] == percentile(samples[row["point_id"], row["pass"]], 20.0)
