"""A sweep whose parent or worker is killed again and again, at any call that it makes. No torch, so that it is quick.

    python kill_storm.py FOLDER KILLS SEED

Every session is a fork of this process, every worker a fork of a session; both talk over the real pipes and write the
real journal. A line of JSON after each session: who was killed so far, and the records that the journal holds.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from hyperbench.measure import tries
from hyperbench.measure.messages import Event, Lines, Message, Task, send
from hyperbench.measure.runner import session
from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.worker_process import WorkerProcess
from hyperbench.store import run_folder
from hyperbench.store.journal import Journal, read_journal
from tests.helpers.fake_worker import FakeWorker, Listener
from tests.helpers.made_runs import tiny

WORDS = ("shape.seq_len=64,128,256", "method=[math,hyper]", "protocol.rounds=2")
_MOST_UNITS = 7
#: The part of the kills that come between two pieces of a line.
_TEARS = 0.3
_MOST_CALLS = 2500
_real_write = os.write


class Fuse:
    """Kills this process after it has written a number of units: some calls and returns later, or within the next."""

    #: That of this process, if it has one.
    mine: Fuse | None = None

    def __init__(self, victim: str, log: Path, chance: random.Random) -> None:
        self._victim = victim
        self._log = log
        self._units = chance.randint(0, _MOST_UNITS)
        self._calls = chance.randint(0, _MOST_CALLS)
        self._tears = chance.random() < _TEARS

    def unit(self) -> None:
        """A unit is about to be written; after the last of them the calls count."""
        if self._units == 0 and not self._tears:
            sys.setprofile(self._burn)
        self._units -= 1

    def piece(self) -> None:
        """A piece of a line has been written."""
        if self._tears and self._units < 0:
            self._blow()

    def _burn(self, frame: FrameType, event: str, argument: Any) -> None:
        self._calls -= 1
        if self._calls < 0:
            sys.setprofile(None)
            self._blow()

    def _blow(self) -> None:
        fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _real_write(fd, f"{self._victim}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


class Forked:
    """A forked process, as far as the parent's end of a worker needs it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        """End it."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


class ForkedWorker(WorkerProcess):
    """A worker that is a fork, and none, on the pipes of a real one."""

    fuses: list[Fuse]

    def _launch(self, read_fd: int, write_fd: int, env: dict[str, str], log: Path) -> Any:
        fuse = self.fuses.pop() if self.fuses else None
        pid = os.fork()
        if pid:
            return Forked(pid)
        sys.setprofile(None)
        Fuse.mine = fuse
        try:
            kept = sorted((read_fd, write_fd))
            for start, stop in ((3, kept[0]), (kept[0] + 1, kept[1]), (kept[1] + 1, 256)):
                os.closerange(start, stop)
            serve(read_fd, write_fd)
        except BrokenPipeError:
            pass  # the parent was killed
        finally:
            os._exit(0)


def serve(read_fd: int, write_fd: int) -> None:
    """What a worker does, with made-up records."""
    send(write_fd, Message(Event.READY))
    lines = Lines()
    while data := os.read(read_fd, 1 << 16):
        for message in lines.feed(data):
            for said in (*FakeWorker()._script(Task.from_json(message)), Message(Event.DONE)):
                if Fuse.mine is not None:
                    Fuse.mine.unit()
                send(write_fd, said)


def write_in_pieces(fd: int, data: Any) -> int:
    """Write less than is wanted, as a disk or a pipe may: lines are torn between the pieces."""
    written = _real_write(fd, bytes(data)[: max(1, len(data) // 2)])
    if Fuse.mine is not None:
        Fuse.mine.piece()
    return written


def one_session(prepared: Prepared, folder: Path, log: Path, chance: random.Random) -> None:
    """`hyperbench run --resume`, with a fuse in the parent, and in half of the cases one in its first worker."""
    fuse = Fuse.mine = Fuse("parent", log, chance)
    ForkedWorker.fuses = [Fuse("worker", log, chance)] if chance.random() < 0.5 else []
    append = Journal.append

    def counted(journal: Journal, record: Any) -> None:
        fuse.unit()
        append(journal, record)

    Journal.append = counted  # type: ignore[method-assign]
    os.write = write_in_pieces
    fuse.unit()
    opened = open_folder(prepared, folder, resume=True)
    session.measure(prepared, opened, Listener(), spawn=ForkedWorker)


def main(folder: Path, kills: int, seed: str) -> None:
    """Kill until it is enough, then let the sweep come to its end."""
    import pandas  # noqa: F401  (the forks have it then)

    tries._MOST_TRIES = kills + 1  # these kills are not put down to what was being measured

    prepared, log = tiny(*WORDS), folder.with_name("killed")
    log.touch()
    for number in itertools.count():
        killed = log.read_text().split()
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = 1
            try:
                if len(killed) < kills:
                    one_session(prepared, folder, log, random.Random(f"{seed}:{number}"))
                else:
                    ForkedWorker.fuses = []
                    opened = open_folder(prepared, folder, resume=True)
                    session.measure(prepared, opened, Listener(), spawn=ForkedWorker)
                status = 0
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        path = folder / run_folder.JOURNAL
        records = read_journal(path) if path.exists() else []
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        print(json.dumps({
            "code": code, "killed": log.read_text().split(), "keys": [list(r.key) for r in records],
            "statuses": sorted({str(r.status) for r in records}), "lines": whole.decode(), "torn": data != whole,
        }), flush=True)  # fmt: skip
        if len(killed) >= kills:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
