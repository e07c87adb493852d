"""Work that grows with the rows and no faster: a journal is read once, line by line, whatever is made of it."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hyperbench.analyze.compare.compare import compare
from hyperbench.analyze.compare.report import print_comparison
from hyperbench.analyze.export import export_run
from hyperbench.analyze.show import show_run
from hyperbench.store import journal_lines
from hyperbench.store.record_json import parsed
from tests.helpers.large_runs import ROWS_PER_SHAPE, write_large_run

ROWS = 8 * ROWS_PER_SHAPE


def show(run: Path) -> None:
    show_run(run, Console(file=io.StringIO(), width=200))


def compared(run: Path) -> None:
    print_comparison(compare(run, methods=("flash2", "hyper")), Console(file=io.StringIO(), width=200))


def exported(run: Path) -> None:
    for kind in ("csv", "markdown"):
        export_run(run, kind, run.with_name("export"))


COMMANDS = pytest.mark.parametrize(
    ("command", "reads"), [(show, 1), (compared, 1), (exported, 2)], ids=["show", "compare", "export"]
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of once, twice and four times as many rows."""
    folder = tmp_path_factory.mktemp("large")
    return {times: write_large_run(folder / f"run{times}" / "run", times * ROWS) for times in (1, 2, 4)}


@COMMANDS
def test_each_line_is_parsed_once(
    command: Callable[[Path], None], reads: int, runs: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(journal_lines, "parsed", lambda text: read.append(0) or parsed(text))
    command(runs[1])
    assert len(read) == ROWS * reads


def calls(command: Callable[[Path], None], run: Path) -> int:
    """Number of function calls that a command makes."""
    profile = cProfile.Profile()
    profile.runcall(command, run)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.slow
@COMMANDS
def test_twice_the_rows_are_twice_the_calls(command: Callable[[Path], None], reads: int, runs: dict[int, Path]) -> None:
    command(runs[1])  # what is imported and remembered is none of it
    one, two, four = (calls(command, runs[times]) for times in (1, 2, 4))
    assert four - two <= 2.3 * (two - one)
