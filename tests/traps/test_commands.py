"""Runs that come to harm, from the command line to what it says; their workers are none, and PyTorch is not asked."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperbench.commands import run as command
from hyperbench.measure import cpu_load
from hyperbench.measure.cpu_load import CpuTimes
from hyperbench.measure.messages import Event, Message, Task
from hyperbench.measure.runner.locks import DeviceLock
from hyperbench.store import run_folder
from hyperbench.store.files import atomic_write
from hyperbench.store.journal import read_journal
from hyperbench.store.provenance import available_cpus
from hyperbench.store.schema import Pass, Status, Timing
from tests.helpers.commands import Answer, Call
from tests.helpers.fake_worker import FakeWorker, Site, dies, hangs, said
from tests.helpers.made_runs import TINY, last_of, no_processes, tiny
from tests.helpers.quoted import Quote

SHORT = ("method=[math,hyper]", "passes=[forward]", "shape.seq_len=64,128,256")
TABLES = {f"{name}.{kind}" for name in ("timings", "errors") for kind in ("csv", "parquet")}


@pytest.fixture
def run(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`hyperbench run` of a tiny sweep into the folder `run`, with a worker that is none."""

    def start(*words: str, make: Callable[[], FakeWorker] = FakeWorker) -> Answer:
        no_processes(monkeypatch, make)
        return call("run", *last_of(*TINY, *SHORT, "out=run", *words))

    return start


def shown(call: Call) -> str:
    """What `hyperbench show` says of the run."""
    return call("show", "--run", "run").out


def keys() -> list[Any]:
    """The keys of all records of the run."""
    return [record.key for record in read_journal(Path("run") / run_folder.JOURNAL)]


FIRST = {"method": "hyper", "seq_len": 64}
KILLED = Quote("hyper: oom: check: the worker process was ended by SIGKILL, most likely for want of memory (1 row)")
NOT_TRIED = Quote("hyper: skipped_after_oom: not tried: it ran out of memory at seq_len=64 (2 rows)")
CRASHED = Quote("hyper: error: time: the worker process was ended by SIGSEGV (1 row)")
HUNG = Quote("hyper: timeout: time: took longer than 600 s (1 row)")


@pytest.mark.parametrize(
    ("fate", "quotes"),
    [
        (dies(-signal.SIGKILL, unit="check", **FIRST), (KILLED, NOT_TRIED)),
        (dies(-signal.SIGSEGV, unit="time", **FIRST), (CRASHED,)),
        (hangs(unit="time", **FIRST), (HUNG,)),
    ],
    ids=["killed", "crashed", "hangs"],
)
def test_the_end_of_a_worker_is_told_and_the_rest_is_measured(
    run: Callable[..., Answer], call: Call, fate: Any, quotes: tuple[Quote, ...]
) -> None:
    answer = run(make=lambda: FakeWorker(fate))
    assert answer.code == 1
    for quote in quotes:
        assert quote.stands_in(shown(call)), shown(call)
    assert set(keys()) == Site(tiny(*SHORT)).expected


class Poisoned(FakeWorker):
    """An error of CUDA at the first length of hyper: nothing that this process measures later could be trusted."""

    def _work(self, task: Task) -> Iterator[Message]:
        for message in self._script(task):
            yield message
            for item in task.items:
                point = item.point
                at_hyper = (point.method, point.seq_len, message.unit and message.unit.work) == ("hyper", 64, "time")
                if at_hyper and message.unit and message.unit.point_id == point.point_id:
                    words = "AcceleratorError: CUDA error: an illegal memory access was encountered"
                    yield said(Timing(point, Pass.FORWARD, "quick", task.round, Status.ERROR, message=words))
                    yield Message(Event.LEAVE)
                    return
        yield Message(Event.DONE)


def test_an_error_of_the_device_spoils_one_point_and_a_new_worker_takes_the_others(
    run: Callable[..., Answer], call: Call
) -> None:
    workers: list[FakeWorker] = []

    def make() -> FakeWorker:
        workers.append(Poisoned())
        return workers[-1]

    assert run(make=make).code == 1
    assert len(workers) == 2
    assert Quote("hyper: error: AcceleratorError: CUDA error: an illegal memory access was encountered (1 row)"
                 ).stands_in(shown(call))  # fmt: skip
    timings = run_folder.load_run(Path("run")).timings
    assert sorted(timings["status"]) == ["error", *["ok"] * 5]


class Interrupted(FakeWorker):
    """Ctrl-C comes while it works; it finishes what it is at."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def receive(self, timeout_s: float) -> Message:
        """The next message."""
        if self.interrupted:
            return Message(Event.STOPPED)
        self._left -= 1
        if self._left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().receive(timeout_s)


def test_ctrl_c_leaves_tables_of_what_was_finished(
    run: Callable[..., Answer], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    write = os.write

    def to_terminal(fd: int, data: Any) -> int:
        return heard.append(bytes(data).decode()) or len(data) if fd == 2 else write(fd, data)

    monkeypatch.setattr(os, "write", to_terminal)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        answer = run(make=lambda: Interrupted(40))
    finally:
        signal.signal(signal.SIGINT, before)
    assert answer.code == 130
    assert Quote("stopping after the current sample; Ctrl-C again stops at once").stands_in("".join(heard))
    assert Quote("interrupted; what was finished is kept: the same command with --resume goes on").stands_in(answer.out)
    kept = keys()
    assert 0 < len(kept) < len(Site(tiny(*SHORT)).expected)
    assert {path.name for path in Path("run").iterdir()} >= TABLES
    assert run("--resume").code == 0
    assert keys()[: len(kept)] == kept
    assert set(keys()) == Site(tiny(*SHORT)).expected


def test_a_disk_that_is_full_when_the_tables_are_due_costs_no_measurement(
    run: Callable[..., Answer], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(path: Path, write: Any) -> None:
        if path.name in TABLES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        atomic_write(path, write)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "atomic_write", full)
        answer = run()
    assert answer.code == 1
    assert answer.err.splitlines()[-1].startswith("hyperbench: cannot write")
    assert Quote("cannot write the tables of run: No space left on device; the journal holds everything that was "
                 "measured, and --resume makes the tables of it").stands_in(answer.err)  # fmt: skip
    assert "Traceback" not in answer.err
    kept = keys()
    assert set(kept) == Site(tiny(*SHORT)).expected
    assert "hyper" in shown(call)
    assert run("--resume").code == 0
    assert keys() == kept
    assert {path.name for path in Path("run").iterdir()} >= TABLES


def test_two_runs_on_one_device_do_not_take_each_others_time(run: Callable[..., Answer]) -> None:
    with DeviceLock("cpu"):
        answer = run()
    assert answer.code == 2
    assert Quote("device cpu is being measured by another hyperbench (process 7012); wait for it or end it: two runs "
                 "at once disturb each other's times").stands_in(answer.err)  # fmt: skip
    assert not Path("run").exists()
    assert run().code == 0


def test_a_machine_that_others_use_is_told_before_anything_is_measured(
    run: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = itertools.count()

    def times() -> CpuTimes:
        moment = 10.0 * next(moments)
        return CpuTimes(moment, 0.5 * moment * available_cpus(), 0.0)

    monkeypatch.setattr(cpu_load, "read_cpu_times", times)
    monkeypatch.setattr(command, "read_cpu_times", times)
    answer = run()
    assert Quote("warning: this machine is busy: others use 50% of its ...; times will scatter, and rows are flagged "
                 "busy_machine where this goes on during the samples").stands_in(answer.err)  # fmt: skip
    assert answer.err.index("busy") < answer.err.index("estimated time")


def measured_elsewhere(**changes: Any) -> None:
    """What the folder says of where its numbers come from; one measurement is missing."""
    path, journal = Path("run") / run_folder.ENVIRONMENT, Path("run") / run_folder.JOURNAL
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))


def test_a_run_does_not_go_on_in_another_environment(run: Callable[..., Answer]) -> None:
    assert run().code == 0
    measured_elsewhere(cpu_model="Another CPU", code="ffffffffffff")
    before = (Path("run") / run_folder.JOURNAL).read_bytes()
    answer = run("--resume")
    assert answer.code == 2
    quote = Quote(
        "out=run cannot go on: its numbers come from another cpu_model (Another CPU there, ... here) and code "
        "(... there, ... here); choose another out=DIR, or --fresh to measure all again"
    )
    assert quote.stands_in(answer.err)
    assert (Path("run") / run_folder.JOURNAL).read_bytes() == before


def test_a_folder_of_another_configuration_is_not_mixed_with_this_one(run: Callable[..., Answer]) -> None:
    assert run().code == 0
    before = (Path("run") / run_folder.JOURNAL).read_bytes()
    answer = run("shape.head_dim=16", "--resume")
    assert answer.code == 2
    assert Quote("out=run holds another configuration, which differs in shape.head_dim; choose another out=DIR, or "
                 "--fresh to replace it").stands_in(answer.err)  # fmt: skip
    answer = run()
    assert answer.code == 2
    assert Quote("out=run holds a run of this configuration; --resume continues it, --fresh replaces it").stands_in(
        answer.err
    )
    assert (Path("run") / run_folder.JOURNAL).read_bytes() == before


@pytest.mark.parametrize("words", [(), ("--resume",), ("--fresh",)])
def test_somebody_elses_folder_is_left_alone(run: Callable[..., Answer], call: Call, words: tuple[str, ...]) -> None:
    Path("thesis").mkdir()
    (Path("thesis") / "thesis.tex").write_text("years of work")
    answer = run("out=thesis", *words)
    assert answer.code == 2
    assert Quote("out=thesis is not empty and no run's folder; choose another out=DIR").stands_in(answer.err)
    answer = call("show", "--run", "thesis")
    assert answer.code == 2
    assert Quote("thesis is not a run folder: it has no config.yaml, environment.json, journal.jsonl").stands_in(
        answer.err
    )
    assert [path.name for path in Path("thesis").iterdir()] == ["thesis.tex"]


def test_a_damaged_line_is_told_by_each_command_and_measured_again(run: Callable[..., Answer], call: Call) -> None:
    assert run().code == 0
    path = Path("run") / run_folder.JOURNAL
    wanted = keys()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1][:-20] + b"\n", *lines[2:]]))
    before = path.read_bytes()
    said = Quote("journal.jsonl is damaged; what is left out: line 2: damaged record: ...; --resume measures it again")
    for answer in (call("show", "--run", "run"), call("compare", "run", "run")):
        assert answer.code in (0, 1)
        assert said.stands_in(answer.err)
        assert answer.err.startswith("warning: ")
    assert path.read_bytes() == before
    answer = run("--resume")
    assert answer.code == 0
    said = Quote("a damaged line of ... moved to journal.jsonl.damaged; what is missing now is measured again")
    assert said.stands_in(answer.err)
    assert (len(keys()), set(keys())) == (len(wanted), set(wanted))


def test_a_torn_last_line_costs_one_measurement(run: Callable[..., Answer], call: Call) -> None:
    assert run().code == 0
    path = Path("run") / run_folder.JOURNAL
    wanted = keys()
    path.write_bytes(path.read_bytes()[:-20])
    assert "hyper" in shown(call)
    assert run("--resume").code == 0
    assert keys() == wanted


def test_a_figure_mixes_no_configurations(run: Callable[..., Answer], call: Call) -> None:
    assert run("seed=0,1").code == 0
    answer = call("plot", "times", "--run", "run")
    assert answer.code == 2
    assert Quote("seed varies (0, 1) and this figure does not show it; choose one: seed=0").stands_in(answer.err)
    assert not (Path("run") / "figures").exists()


def test_the_authors_way_of_timing_is_labelled_wherever_it_is_shown(run: Callable[..., Answer], call: Call) -> None:
    quote = Quote("timed the authors' way (they state 20th percentiles, p20_ms): no result by itself")
    answer = run("protocol=paper")
    assert answer.code == 0
    assert quote.stands_in(answer.out)
    assert quote.stands_in(shown(call))
    assert call("export", "--run", "run", "--format", "markdown").code == 0
    assert "no result by itself" in Path("run/export/summary.md").read_text(encoding="utf-8")


def test_a_speedup_names_what_it_is_over_and_is_empty_where_that_is_not_there(
    run: Callable[..., Answer], call: Call
) -> None:
    assert run().code == 0
    assert Quote("baseline flash2 (not in this run)").stands_in(shown(call))
    assert not run_folder.load_run(Path("run")).timings["method"].eq("flash2").any()
    rows = json.loads(call("show", "--run", "run", "--json").out)["rows"]
    assert {(row["speedup"], row["baseline_status"]) for row in rows} == {(None, "missing")}
    over = call("show", "--run", "run", "--baseline", "math").out
    assert "speedup over math" in over
    answer = call("show", "--run", "run", "--baseline", "maths")
    assert answer.code == 2
    assert Quote("baseline 'maths' is no method of this run; allowed: math, hyper; did you mean 'math'?").stands_in(
        answer.err
    )
