"""Workers that end badly: ended with all that they have started, within seconds, and told as what they were."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperbench.child import command, limited
from hyperbench.measure.messages import LOST_PIPE, Event, Message, send
from hyperbench.measure.runner import worker_process
from hyperbench.measure.runner.failures import failure_of
from hyperbench.measure.runner.worker_process import WorkerGone, WorkerProcess, WorkerTimeout, bound_log
from hyperbench.store.schema import Cause, Status
from tests.helpers.scripted_worker import Scripted

#: Far more than it takes; only a failure waits so long.
PATIENCE_S = 60.0


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that starts a worker of some lines; it is ended with the test."""
    monkeypatch.setattr(worker_process, "_LOOK_S", 0.05)
    monkeypatch.setattr(worker_process, "_GRACE_S", 0.5)
    workers: list[WorkerProcess] = []

    def start(script: str) -> WorkerProcess:
        monkeypatch.setattr(Scripted, "script", script)
        workers.append(Scripted({}, tmp_path / "log"))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


def is_gone(pid: int) -> bool:
    """True once a process is no more than a zombie."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        try:
            if ") Z" in Path(f"/proc/{pid}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def helper_of(log: Path) -> int:
    """The process that a worker has started."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        lines = [line for line in log.read_text().splitlines() if line.startswith("helper ")]
        if lines:
            return int(lines[0].split()[1])
        time.sleep(0.02)
    raise AssertionError("no helper was started")


def test_a_helper_that_holds_the_pipe_hides_no_death(started: Any, tmp_path: Path) -> None:
    worker = started("say(READY); helper(); time.sleep(0.2); os._exit(3)")
    assert worker.receive(PATIENCE_S) == Message(Event.READY)
    helper = helper_of(tmp_path / "log")
    with pytest.raises(WorkerGone, match="ended with exit code 3"):
        worker.receive(PATIENCE_S)
    assert is_gone(helper)


def test_what_a_worker_left_behind_ends_with_it(started: Any, tmp_path: Path) -> None:
    worker = started("say(READY); helper(); time.sleep(600)")
    worker.receive(PATIENCE_S)
    helper = helper_of(tmp_path / "log")
    worker.end()
    assert is_gone(helper)
    assert worker._process.returncode == -9


def test_the_last_words_of_a_worker_are_heard(started: Any) -> None:
    worker = started("say(READY * 3); os._exit(0)")
    assert [worker.receive(PATIENCE_S).event for _ in range(3)] == [Event.READY] * 3
    with pytest.raises(WorkerGone, match="exit code 0"):
        worker.receive(PATIENCE_S)


@pytest.mark.parametrize("script", ["os.closerange(3, 256); time.sleep(600)", f"os._exit({LOST_PIPE})"])
def test_a_worker_whose_pipe_was_closed_is_ended_and_told_so(started: Any, script: str) -> None:
    worker = started(f"say(READY); {script}")
    worker.receive(PATIENCE_S)
    with pytest.raises(WorkerGone, match="the measured code closed the pipe") as gone:
        worker.receive(PATIENCE_S)
    assert failure_of(gone.value).status is Status.ERROR
    assert failure_of(gone.value).cause is Cause.CRASH
    # The same is said again, to whoever asks.
    with pytest.raises(WorkerGone, match="the measured code closed the pipe"):
        worker.receive(0.0)


@pytest.mark.parametrize(
    "script",
    [
        "say('hello\\n')", "say(b'\\xff\\x00\\n')", "say('3\\n')", "say('{}\\n')", "say('[' * 100000 + '\\n')",
        "say(READY.replace('ready', 'steady'))", "say('x' + READY)", "say(READY[:20] + '\\n')",
    ],
)  # fmt: skip
def test_garbage_on_the_pipe_comes_after_what_was_said_before_it_and_ends_the_worker(started: Any, script: str) -> None:
    worker = started(f"say(READY); {script}; time.sleep(600)")
    assert worker.receive(PATIENCE_S) == Message(Event.READY)
    with pytest.raises(WorkerGone, match="the measured code wrote to the pipe between") as gone:
        worker.receive(PATIENCE_S)
    assert "\n" not in str(gone.value)
    assert str(gone.value).isascii()
    assert failure_of(gone.value).status is Status.ERROR
    assert worker._process.returncode == -9


def test_a_line_without_end_does_not_fill_the_memory(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperbench.measure.messages.MAX_LINE_BYTES", 1 << 18)
    worker = started("say(READY)\nwhile True: say('x' * 65536)")
    assert worker.receive(PATIENCE_S) == Message(Event.READY)
    with pytest.raises(WorkerGone, match="wrote to the pipe"):
        worker.receive(PATIENCE_S)


def test_a_log_that_grows_is_cut_while_its_worker_is_waited_for(
    started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bound_log, "__defaults__", (10_000,))
    worker = started("os.write(1, b'first\\n')\nfor _ in range(1000): os.write(1, b'chatter ' * 10 + b'\\n')\n"
                     "os.write(1, b'last\\n'); say(READY); time.sleep(600)")  # fmt: skip
    worker.receive(PATIENCE_S)
    with pytest.raises(WorkerTimeout):
        worker.receive(0.2)
    worker.end()
    text = (tmp_path / "log").read_text()
    assert len(text) <= 10_000
    assert text.startswith("first\nchatter")
    assert text.endswith("chatter \nlast\n")
    assert text.count("[output left out: the log keeps its beginning and its end]") == 1


def test_a_log_below_its_limit_stays_and_one_that_is_missing_is_no_fault(tmp_path: Path) -> None:
    log = tmp_path / "log"
    bound_log(log)
    log.write_bytes(b"x" * 100)
    bound_log(log, 100)
    assert log.read_bytes() == b"x" * 100
    bound_log(log, 99)
    assert log.read_bytes().startswith(b"x" * 39 + b"\n[output")


def test_a_command_that_leaves_a_child_with_its_streams_is_not_waited_for() -> None:
    began_s = time.monotonic()
    done = limited.run(["sh", "-c", "sleep 600 & echo $!; cat"], os.environ, PATIENCE_S, text="heard")
    assert time.monotonic() - began_s < PATIENCE_S / 2
    assert (done.code, done.out.split()[1], done.err) == (0, "heard", "")
    assert is_gone(int(done.out.split()[0]))
    assert limited.run(["sleep", "600"], os.environ, 0.1).code is None


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child of a dead parent on Linux")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    # Its code waits for ever when it is imported as the module that is to run.
    (tmp_path / "waits.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    program = (
        "import os, subprocess\nfrom hyperbench.child import command\n"
        "words, env = command.module('waits'), command.environment()\n"
        "child = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True)\n"
        "print(child.stdout.readline(), flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(command.__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == -9
    assert is_gone(int(done.stdout))


def test_a_message_to_a_pipe_that_was_closed_raises_what_the_worker_takes_for_its_loss() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    os.close(write_fd)
    with pytest.raises(OSError):
        send(write_fd, Message(Event.READY))
