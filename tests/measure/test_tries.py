"""A unit of work that takes parent and worker down is passed over after two tries; orderly ends count for none."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hyperbench.measure.messages import Message, Unit, Work
from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.session import measure
from hyperbench.measure.tries import FILE, Tries
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Pass
from tests.helpers.fake_worker import FakeWorker, Listener
from tests.helpers.made_runs import tiny

FIRST, SECOND = Unit(Work.TIME, "p", Pass.FORWARD), Unit(Work.STAGES, "p", stage="hash")
WORDS = ("shape.seq_len=64,128", "method=[math,hyper]", "passes=[forward]")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The place of the file."""
    return tmp_path / FILE


def killed_at(path: Path, *units: Unit, ends: bool = False) -> Tries:
    """A session that begins these units, as it would be found after a kill."""
    tries = Tries(path)
    for unit in units:
        tries.begin(0, "g", unit)
    if ends:
        tries.end()
    return tries


def test_a_unit_that_was_begun_twice_and_never_ended_is_given_up(path: Path) -> None:
    killed_at(path, FIRST, SECOND)
    assert killed_at(path, FIRST, SECOND).given_up(0, "g") == []
    tries = Tries(path)
    assert tries.given_up(0, "g") == [SECOND]
    assert tries.given_up(1, "g") == tries.given_up(0, "h") == []


def test_turns_are_put_down_to_the_unit_that_went_on(path: Path) -> None:
    for _ in range(2):
        killed_at(path, *[FIRST, SECOND] * 3, FIRST)
    assert Tries(path).given_up(0, "g") == [FIRST]


def test_a_try_is_kept_until_the_unit_is_gone_past(path: Path) -> None:
    killed_at(path, FIRST)
    killed_at(path, SECOND)  # killed before it came so far
    killed_at(path, FIRST)
    assert Tries(path).given_up(0, "g") == [FIRST]
    killed_at(path, FIRST, ends=True)
    killed_at(path, FIRST)
    assert Tries(path).given_up(0, "g") == []


def test_orderly_ends_count_for_none(path: Path) -> None:
    for _ in range(3):
        killed_at(path, FIRST).close()
        assert not path.exists()
        killed_at(path, FIRST, ends=True)
    tries = Tries(path)
    assert tries.given_up(0, "g") == []
    tries.close()
    tries.begin(0, "g", FIRST)  # as a worker goes on for a moment
    tries.close()
    assert not path.exists()


def test_a_damaged_file_counts_for_what_is_left_of_it(path: Path) -> None:
    for _ in range(2):
        killed_at(path, FIRST)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        Tries(path).close()
    path.write_bytes(b"\xff" + whole)
    assert Tries(path).given_up(0, "g") == []


def test_going_on_in_turns_waits_for_no_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = killed_at(path, FIRST, SECOND)
    monkeypatch.setattr(os, "fsync", lambda fd: pytest.fail("it waits for the disk"))
    for unit in [FIRST, SECOND] * 100:
        tries.begin(0, "g", unit)


class Killer(FakeWorker):
    """A worker that takes its parent along while it times the shorter point of hyper, or asks it to end there."""

    number = signal.SIGKILL
    at_it = False

    def receive(self, timeout_s: float) -> Message:
        """The next message, unless that is the end."""
        if self.at_it:
            os.kill(os.getpid(), self.number)
        message = super().receive(timeout_s)
        if message.unit and message.unit.work is Work.TIME:
            (point,) = (i.point for i in self.tasks[-1].items if i.point.point_id == message.unit.point_id)
            self.at_it = (point.method, point.seq_len) == ("hyper", 64)
        return message


class Asker(Killer):
    """The same, and it asks its parent to end, and ends it before it has."""

    number = signal.SIGTERM

    def receive(self, timeout_s: float) -> Message:
        """The next message, unless that is the end."""
        try:
            return super().receive(timeout_s)
        finally:
            if self.interrupted:
                os.kill(os.getpid(), signal.SIGKILL)


def ended(folder: Path, worker: type[FakeWorker]) -> int:
    """How a session in a process of its own ends."""
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        measure(
            tiny(*WORDS), open_folder(tiny(*WORDS), folder, resume=True), Listener(), spawn=lambda env, log: worker()
        )
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_requeued_run_goes_past_what_took_it_down_twice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert [ended(folder, Asker) for _ in range(3)] == [-9] * 3  # asked to end: no fault of the unit
    assert [ended(folder, Killer) for _ in range(3)] == [-9, -9, 0]
    rows = load_run(folder).passes.set_index(["method", "seq_len"])
    assert rows.loc[("hyper", 64), "status"] == "oom"
    assert rows.loc[("hyper", 64), "message"].startswith(
        "time: the run ended here twice, its own process together with"
    )
    assert rows.loc[("hyper", 128), "status"] == "skipped_after_oom"
    assert set(rows.loc["math", "status"]) == {"ok"}
    assert not (folder / FILE).exists()


def test_a_signal_while_a_unit_is_noted_removes_the_file_and_disturbs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for the disk is most of the time that noting takes: that is where a signal comes."""
    tries = Tries(path)
    wait = os.fsync

    def signalled(fd: int) -> None:
        tries.withdraw()
        wait(fd)

    monkeypatch.setattr(os, "fsync", signalled)
    tries.begin(0, "g", FIRST)
    tries.end()
    assert not path.exists()
    tries.close()
    assert not path.exists()
