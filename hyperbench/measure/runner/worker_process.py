"""The parent's end of a worker process: start it, send tasks, wait for messages without polling, end it. No torch."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from hyperbench.child import command
from hyperbench.child.limited import end_group
from hyperbench.measure import messages

_READ_BYTES = 1 << 16
_VMSTAT = Path("/proc/vmstat")
#: Seconds between two looks at the process and its log while nothing comes from it.
_LOOK_S = 1.0
#: Seconds that a process whose pipe is closed has to end by itself, and until one that was killed is given up.
_GRACE_S = 2.0
_REAP_S = 10.0
#: worker.log is at most so large, but for what a worker writes between two looks.
LOG_LIMIT_BYTES = 10 << 20
_GARBAGE = "the measured code wrote to the pipe between the worker process and its parent"
_CLOSED = "the measured code closed the pipe between the worker process and its parent"
SIGKILL = -signal.SIGKILL
#: The main programs of workers: of attention by itself, and of language models.
ATTENTION_WORKER, MODEL_WORKER = "hyperbench.measure.worker.main", "hyperbench.measure.models.worker"


class WorkerTimeout(Exception):
    """Nothing came from the worker within the limit."""


class WorkerGone(Exception):
    """The worker process has ended; `returncode` says how, `out_of_memory` whether the kernel ended it for memory.

    `reason` is why its parent ended it, if that was so.
    """

    def __init__(self, returncode: int, *, out_of_memory: bool = False, reason: str = "") -> None:
        super().__init__(reason or describe_exit(returncode))
        self.returncode = returncode
        self.out_of_memory = out_of_memory
        self.reason = reason


class Child(Protocol):
    """The worker process as the runner sees it."""

    def send(self, task: messages.Task) -> None:
        """Hand over a task. Raises WorkerGone."""
        ...

    def receive(self, timeout_s: float) -> messages.Message:
        """The next message. Raises WorkerTimeout or WorkerGone."""
        ...

    def interrupt(self) -> None:
        """Ask the process to end after the current sample; harmless if it has ended."""
        ...

    def end(self) -> None:
        """End the process, whatever it does; ending twice is harmless."""
        ...


class WorkerProcess:
    """A worker in a session of its own, so that Ctrl-C reaches the parent alone; `targets` are what it may measure.

    `module` is its main program.
    """

    def __init__(
        self, env: dict[str, str], log: Path, targets: Sequence[str] = (), module: str = ATTENTION_WORKER
    ) -> None:
        task_read, self._task_write = os.pipe()
        self._message_read, message_write = os.pipe()
        self._oom_kills = oom_kills()
        self._targets, self._module = targets, module
        self._process = self._launch(task_read, message_write, command.environment(env), log)
        os.close(task_read)
        os.close(message_write)
        self._lines = messages.Lines()
        self._pending: deque[messages.Message] = deque()
        self._log = log
        self._open = True
        self._end: WorkerGone | None = None

    def _launch(self, read_fd: int, write_fd: int, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start the process that reads tasks from one descriptor and writes messages to the other."""
        with log.open("ab") as output:
            return subprocess.Popen(
                command.module(self._module, str(read_fd), str(write_fd), *self._targets),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(read_fd, write_fd),
                env=env,
                start_new_session=True,
            )

    def send(self, task: messages.Task) -> None:
        """Hand over a task. Raises WorkerGone if the process has ended."""
        try:
            messages.send(self._task_write, task)
        except BrokenPipeError:
            raise self._gone() from None

    def receive(self, timeout_s: float) -> messages.Message:
        """The next message; blocks on the pipe. Raises WorkerTimeout or WorkerGone.

        Once a second it looks whether the process still lives, for one that it has left behind may hold the pipe open.
        """
        deadline = time.monotonic() + timeout_s
        while not self._pending:
            if self._end is not None:
                raise self._end
            left_s = deadline - time.monotonic()
            if self._is_readable(min(max(0.0, left_s), _LOOK_S)):
                self._read()
            elif self._has_ended() and not self._is_readable(0.0):
                self._end = self._gone()
            elif left_s <= 0:
                raise WorkerTimeout
            bound_log(self._log)
        return self._pending.popleft()

    def interrupt(self) -> None:
        """Send SIGINT, which the worker takes as the wish to end after the current sample."""
        if self._open and self._end is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> None:
        """Kill the process with all that it has started, and close the pipes."""
        if self._open:
            self._open = False
            if self._end is None:
                self._kill()
            bound_log(self._log)
            os.close(self._task_write)
            os.close(self._message_read)

    def _is_readable(self, wait_s: float) -> bool:
        return bool(select.select([self._message_read], [], [], wait_s)[0])

    def _read(self) -> None:
        """Take what there is in the pipe; the end of the pipe, or what is no message, is the end of the process."""
        data = os.read(self._message_read, _READ_BYTES)
        if not data:
            self._end = self._gone()
            return
        try:
            for line in self._lines.feed(data):
                self._pending.append(messages.Message.from_json(line))
        except messages.NoMessageError as error:
            self._kill()
            self._end = WorkerGone(SIGKILL, reason=f"{_GARBAGE}: {error}")

    def _has_ended(self) -> bool:
        """True if the process has ended; it stays a zombie, so that nobody else can get its number."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _kill(self) -> int:
        """The exit code of the process, which is killed with its group; -SIGKILL if it cannot be ended."""
        end_group(self._process.pid)
        self._process.kill()
        try:
            return self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            return SIGKILL

    def _gone(self) -> WorkerGone:
        """The end of a process that has ended, or that has closed its pipe: it gets a moment to end by itself."""
        end_s = time.monotonic() + _GRACE_S
        while not (ended := self._has_ended()) and time.monotonic() < end_s:
            time.sleep(_GRACE_S / 100)
        returncode, kills = self._kill(), oom_kills()
        if not ended or returncode == messages.LOST_PIPE:
            return WorkerGone(returncode, reason=_CLOSED)
        out_of_memory = kills is not None and self._oom_kills is not None and kills > self._oom_kills
        return WorkerGone(returncode, out_of_memory=out_of_memory)


def bound_log(log: Path, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Cut the middle out of a log that has grown above the limit; a process may go on to append to it."""
    kept = limit_bytes * 2 // 5
    with contextlib.suppress(OSError):
        if log.stat().st_size <= limit_bytes:
            return
        with log.open("r+b") as file:
            file.seek(-kept, os.SEEK_END)
            tail = file.read(kept)
            file.truncate(kept)
        with log.open("ab") as file:
            file.write(b"\n[output left out: the log keeps its beginning and its end]\n" + tail)


def oom_kills(vmstat: Path = _VMSTAT) -> int | None:
    """Processes that the kernel has ended for want of memory since it started; None where it does not tell."""
    try:
        found = re.search(r"^oom_kill (\d+)$", vmstat.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) if found else None


def describe_exit(returncode: int) -> str:
    """The end of a process in words."""
    if returncode >= 0:
        return f"the worker process ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
    hint = ", most likely for want of memory" if name == "SIGKILL" else ""
    return f"the worker process was ended by {name}{hint}"
