"""The output of `run` beside its progress: the grid and why, every point of a dry run, the outcome as plain data."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hyperbench.commands import run as command
from hyperbench.measure.runner.outcome import Outcome
from hyperbench.store.record_json import to_json
from hyperbench.store.run_folder import Run, load_run
from hyperbench.store.schema import ALL_STAGES, ErrorRow, Record, Status
from tests.helpers.commands import Answer, Call
from tests.helpers.fake_worker import FakeWorker
from tests.helpers.made_records import a_point, a_stage, a_timing
from tests.helpers.made_runs import TINY, no_processes, prepared


def a_console() -> tuple[Console, io.StringIO]:
    """A console that writes into a text."""
    text = io.StringIO()
    return Console(file=text, width=160), text


def run_of(folder: Path, *written: Record) -> Run:
    """A run of these records, read from its folder."""
    (folder / "config.yaml").write_text("a: 1\n")
    (folder / "environment.json").write_text("{}")
    (folder / "journal.jsonl").write_text("".join(json.dumps(to_json(record)) + "\n" for record in written))
    return load_run(folder)


def failed(status: Status) -> Record:
    """A timing of a status that carries none."""
    return a_timing(a_point(seq_len=7), status=status, samples_ms=(), stop_reason=None, message="for a reason")


def test_the_output_says_which_grid_was_taken_and_why() -> None:
    console, text = a_console()
    command.print_grid(prepared("sweep=fig4"), console)
    said = text.getvalue()
    for part in ("sweep fig4 on cpu", "sees no CUDA GPU", "42 points", "1,024 to 65,536", "heads 1", "float32"):
        assert part in said


def test_a_dry_run_holds_every_point_and_adds_up() -> None:
    run = prepared("sweep=smoke")
    data = command.dry_run_data(run)
    json.dumps(data)
    assert [p["point_id"] for p in data["points"]] == [point.point_id for point in run.points]
    assert data["estimate_s"] == pytest.approx(sum(p["estimate_s"] for p in data["points"]), abs=1e-3 * len(run.points))
    assert (data["sweep"], data["device"], data["protocol"]) == ("smoke", "cpu", "quick")
    console, text = a_console()
    command.print_dry_run(run, console)
    lines = text.getvalue().splitlines()
    assert len(lines) >= len(run.points) + 2
    assert lines[-1].startswith("12 points, estimated time ")
    assert sum("block_size=256" in line for line in lines) == 6


def test_a_dry_run_counts_the_points_whose_stages_are_timed_and_their_time() -> None:
    words = ("shape.seq_len=2048,4096", "is_causal=false,true", "method=hyper", "passes=[forward]")
    with_stages, without = prepared(*words, "stages=true"), prepared(*words)
    data, plain = command.dry_run_data(with_stages), command.dry_run_data(without)
    assert (data["stages"], plain["stages"]) == (4, 0)
    assert all(a["estimate_s"] > b["estimate_s"] for a, b in zip(data["points"], plain["points"], strict=True))
    console, text = a_console()
    command.print_dry_run(with_stages, console)
    assert "4 points, stages of the forward pass at 4 of them, estimated time " in text.getvalue()


def test_the_outcome_is_plain_data(tmp_path: Path) -> None:
    run = run_of(tmp_path, a_timing(), a_timing(round=1), failed(Status.OOM))
    data = json.loads(json.dumps(command.outcome_data(run, Outcome(Counter({Status.OK: 1}), interrupted=True))))
    assert data.pop("verdicts") == []  # there is no baseline beside it
    assert data == {
        "run": str(tmp_path),
        "rows": {"ok": 2, "oom": 1},
        "measured_now": {"ok": 1},
        "interrupted": True,
    }


@pytest.mark.parametrize("status", [status for status in Status if not status.has_timing])
def test_only_what_should_have_worked_is_a_failure(tmp_path: Path, status: Status) -> None:
    assert not command.has_failures(run_of(tmp_path, a_timing(), a_timing(round=1, status=Status.THROTTLED)))
    assert command.has_failures(run_of(tmp_path, a_timing(), failed(status))) == (status is not Status.UNSUPPORTED)


def test_an_error_that_could_not_be_measured_is_a_failure(tmp_path: Path) -> None:
    row = ErrorRow(a_point(), 0, "out_rel_fro", None, Status.ERROR, "no reference")
    assert command.has_failures(run_of(tmp_path, a_timing(), row))


@pytest.mark.parametrize("status", [status for status in Status if not status.has_timing])
def test_a_stage_that_could_not_be_timed_is_a_failure_unless_the_method_tells_none(
    tmp_path: Path, status: Status
) -> None:
    row = a_stage(a_point(), ALL_STAGES, status=status, message="for a reason")
    run = run_of(tmp_path, a_timing(), row)
    assert command.has_failures(run) == (status is not Status.UNSUPPORTED)
    outcome = Outcome(Counter({Status.OK: 1}), stage_statuses=Counter({status: 1}))
    assert command.outcome_data(run, outcome)["stages_now"] == {str(status): 1}


def test_the_end_of_a_run_says_what_to_do_next(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for written in ([], [a_timing(), failed(Status.OOM)]):
        console, text = a_console()
        command.print_outcome(run_of(folder, *written), Outcome(interrupted=True), console)
        assert f"hyperbench plot --run '{folder}'" in text.getvalue()
        assert "--resume" in text.getvalue()


def test_a_run_that_no_table_can_show_is_measured_all_the_same(tmp_path: Path) -> None:
    """Two points of the baseline that differ only in a parameter which no table has."""
    twice = [a_timing(a_point(method="flash2", hyper={"mine": i})) for i in (1, 2)]
    run, (console, text) = run_of(tmp_path, *twice), a_console()
    command.print_outcome(run, Outcome(), console)
    assert "the tables cannot be printed: baseline 'flash2' has several rows" in text.getvalue()
    assert "next: hyperbench plot" in text.getvalue()
    data = command.outcome_data(run, Outcome())
    assert data["verdicts"] == []
    assert "baseline 'flash2' has several rows" in data["no_verdicts"]


@pytest.fixture
def run(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`hyperbench run` of one point, with a worker that is none."""
    no_processes(monkeypatch, FakeWorker)
    return lambda *words: call("run", *TINY, "method=[math]", "passes=[forward]", "shape.seq_len=64", *words)


def test_resume_where_there_is_no_run_says_that_one_begins(run: Callable[..., Answer]) -> None:
    begins = "new holds no run yet: a new one begins\n"
    assert begins in run("out=new", "--resume").err
    assert begins not in run("out=new", "--resume").err
    assert "begins" not in run("out=other").err


def test_a_run_is_in_the_home_folder_where_a_tilde_says_so(
    run: Callable[..., Answer], call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for flags in ((), ("--resume",)):
        assert run("out=~/run", *flags).code == 0
    assert (tmp_path / "home" / "run" / "timings.csv").is_file()
    assert call("show", "--run", "~/run").code == 0
    assert call("export", "--run", "~/run", "--out", "~/out").code == 0
    assert call("compare", "~/run", "~/run").code == 0
    assert (tmp_path / "home" / "out" / "timings.csv").is_file()
    assert run("out=./~/run").code == 0
    assert (tmp_path / "~" / "run" / "timings.csv").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "~"}


@pytest.mark.parametrize("name", ["timings.csv", "errors.parquet", "worker.log"])
def test_what_cannot_be_written_at_the_end_is_told_before_anything_is_measured(
    run: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert run("out=run").code == 0
    Path("run", name).unlink(missing_ok=True)
    Path("run", name).mkdir()
    no_processes(monkeypatch, lambda: pytest.fail("measured"))
    answer = run("out=run", "--resume", "--retry-failed")
    assert answer.code == 2
    assert answer.err.splitlines()[-1] == (
        f"hyperbench: run/{name} is no regular file, and one is to be written there; move it away"
    )


def test_a_folder_of_figures_that_takes_none_is_told_before_anything_is_measured(run: Callable[..., Answer]) -> None:
    assert run("out=run").code == 0
    Path("run", "figures").write_text("no folder")
    answer = run("out=run", "--resume")
    assert answer.code == 2
    assert "run/figures cannot be written to: Not a directory" in answer.err
