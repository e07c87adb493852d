"""Real parents and real workers: killed, out of memory, crashed, interrupted; and a disk that is full."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hyperbench import cli
from hyperbench.store.journal import read_journal
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import ErrorRow, Timing
from tests.helpers.fake_worker import FakeWorker, Site
from tests.helpers.made_runs import TINY, last_of, no_processes, tiny

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[1] / "helpers" / "quick_run.py"
#: Far more than it takes; only a failure waits so long.
PATIENCE_S = 120
SHORT = ("method=[math,hyper]", "passes=[forward]", "shape.seq_len=64,128")


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`hyperbench run --resume` of a tiny sweep, under way."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), "run", *last_of(*TINY, *words), f"out={folder}", "--resume"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextmanager
def hanging(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A run that has come to a method that hangs; it does no more after the block."""
    pipe = folder.with_name("hangs")
    os.mkfifo(pipe)
    monkeypatch.setenv("HANGS_AT", str(pipe))
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    run = started(folder, "+method.hangs._target_=tests.helpers.greedy.hangs", *words)
    heard, _, _ = select.select([reader], [], [], PATIENCE_S)
    os.close(reader)
    pipe.unlink()
    if not heard:
        run.kill()
    assert heard, ended(run)
    yield run


def worker_of(process: subprocess.Popen[str]) -> int:
    """The worker of a run."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if f"PPid:\t{process.pid}\n" in status.read_text():
                return int(status.parent.name)
        except OSError:
            continue
    raise AssertionError("the run has no worker")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a run, and what else it said."""
    _, rest = process.communicate()
    return process.returncode, rest


# tests/measure/runner/test_processes.py kills a real parent and a real worker as well, test_kills.py forks of both.
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc")
def test_real_parents_and_workers_are_killed_and_every_point_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, words = tmp_path / "run", (*SHORT, "protocol.rounds=2")
    with hanging(folder, monkeypatch, *words) as run:
        run.kill()
        assert ended(run)[0] == -signal.SIGKILL
    kept = (folder / "journal.jsonl").read_bytes()
    with hanging(folder, monkeypatch, *words) as run:
        os.kill(worker_of(run), signal.SIGKILL)
        code, said = ended(run)
    assert code == 0, said
    assert (folder / "journal.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    keys = [
        r.key for r in read_journal(folder / "journal.jsonl")
        if isinstance(r, Timing) or (isinstance(r, ErrorRow) and r.metric != "lse_mean_abs")
    ]  # fmt: skip
    assert len(keys) == len(set(keys))
    assert set(keys) == Site(tiny("+method.hangs._target_=tests.helpers.greedy.hangs", *words)).expected
    assert set(load_run(folder).timings["status"]) == {"ok"}


def test_memory_that_runs_out_and_a_crash_are_rows_and_the_sweep_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = (
        "+method.greedy._target_=tests.helpers.greedy.wants_memory",
        "+method.aborts._target_=tests.helpers.greedy.aborts",
    )
    code, said = ended(
        started(folder, "method=[math]", *words, "passes=[forward]", "shape.seq_len=64,128,256", "error.seeds=[0]")
    )
    assert code == 1, said
    assert "Traceback" not in said
    rows = load_run(folder).timings.set_index(["method", "seq_len"])
    assert dict(rows["status"]) == {
        ("math", 64): "ok", ("math", 128): "ok", ("math", 256): "ok",
        ("greedy", 64): "ok", ("greedy", 128): "oom", ("greedy", 256): "skipped_after_oom",
        ("aborts", 64): "ok", ("aborts", 128): "error", ("aborts", 256): "ok",
    }  # fmt: skip
    assert "memory" in rows.loc[("greedy", 128), "message"]
    assert "seq_len=128" in rows.loc[("greedy", 256), "message"]
    assert "SIGABRT" in rows.loc[("aborts", 128), "message"]


@pytest.mark.slow
def test_pipes_that_methods_misuse_and_helpers_they_leave_are_rows_and_the_sweep_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    names = ("closes_descriptors", "writes_to_descriptors", "leaves_a_helper")
    words = [f"+method.{name}._target_=tests.helpers.greedy.{name}" for name in names]
    code, said = ended(
        started(folder, "method=[math]", *words, "passes=[forward]", "shape.seq_len=128,192", "error.seeds=[0]")
    )
    assert code == 1, said
    assert "Traceback" not in said
    rows = load_run(folder).timings.set_index(["method", "seq_len"])
    assert set(rows["status"].drop([(name, 128) for name in names])) == {"ok"}
    told = rows.loc[[(name, 128) for name in names]]
    assert set(told["status"]) == {"error"}
    assert [next(w for w in ("closed the pipe", "wrote to the pipe", "exit code 7") if w in message)
            for message in told["message"]] == ["closed the pipe", "wrote to the pipe", "exit code 7"]  # fmt: skip


def test_a_second_ctrl_c_ends_a_run_whose_sample_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with hanging(folder, monkeypatch, *SHORT) as run:
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        assert any("stopping after the current sample" in line for line in run.stderr)
        run.send_signal(signal.SIGINT)
        assert ended(run)[0] == 130
    assert set(load_run(folder).timings["seq_len"]) == {64}
    assert not (folder / "timings.csv").exists()


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file may be longer than this, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    no_processes(monkeypatch, FakeWorker)
    monkeypatch.setattr(sys, "argv", ["hyperbench", "run", *TINY, *SHORT, "out=run", "--resume", "--json"])
    for size in (6_000, 20_000):
        with files_end_at(size), pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "cannot write the journal run/journal.jsonl" in line
        assert "--resume" in line
        data = (tmp_path / "run" / "journal.jsonl").read_bytes()
        assert data.endswith(b"\n")
        assert size - 2_000 < len(data) <= size
    kept = read_journal(tmp_path / "run" / "journal.jsonl")
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    records = read_journal(tmp_path / "run" / "journal.jsonl")
    assert records[: len(kept)] == kept
    keys = [record.key for record in records]
    assert len(keys) == len(set(keys))
    assert set(keys) == Site(tiny(*SHORT)).expected


def test_tables_that_do_not_fit_are_one_line_and_are_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    no_processes(monkeypatch, FakeWorker)
    monkeypatch.setattr(sys, "argv", ["hyperbench", "run", *TINY, *SHORT, "out=run", "--resume", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with files_end_at(1_000), pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot write the tables of run" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
