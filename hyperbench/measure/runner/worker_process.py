"""The parent's end of a worker process: start it, send tasks, wait for messages without polling, end it. No torch."""

from __future__ import annotations

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
from hyperbench.measure import messages

_READ_BYTES = 1 << 16
_VMSTAT = Path("/proc/vmstat")
#: select refuses a longer wait; it is then waited again.
_LONGEST_WAIT_S = 1e6
SIGKILL = -signal.SIGKILL


class WorkerTimeout(Exception):
    """Nothing came from the worker within the limit."""


class WorkerGone(Exception):
    """The worker process has ended; `returncode` says how, `out_of_memory` whether the kernel ended it for memory."""

    def __init__(self, returncode: int, *, out_of_memory: bool = False) -> None:
        super().__init__(describe_exit(returncode))
        self.returncode = returncode
        self.out_of_memory = out_of_memory


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
    """A worker in a session of its own, so that Ctrl-C reaches the parent alone; `targets` are what it may measure."""

    def __init__(self, env: dict[str, str], log: Path, targets: Sequence[str] = ()) -> None:
        task_read, self._task_write = os.pipe()
        self._message_read, message_write = os.pipe()
        self._oom_kills = oom_kills()
        self._targets = targets
        self._process = self._launch(task_read, message_write, command.environment(env), log)
        os.close(task_read)
        os.close(message_write)
        self._lines = messages.Lines()
        self._pending: deque[messages.Message] = deque()
        self._open = True

    def _launch(self, read_fd: int, write_fd: int, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start the process that reads tasks from one descriptor and writes messages to the other."""
        with log.open("ab") as output:
            return subprocess.Popen(
                command.module("hyperbench.measure.worker.main", str(read_fd), str(write_fd), *self._targets),
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
        """The next message; blocks on the pipe. Raises WorkerTimeout or WorkerGone."""
        deadline = time.monotonic() + timeout_s
        while not self._pending:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self._message_read], [], [], min(max(0.0, left_s), _LONGEST_WAIT_S))
            if not ready:
                if left_s <= _LONGEST_WAIT_S:
                    raise WorkerTimeout
                continue
            data = os.read(self._message_read, _READ_BYTES)
            if not data:
                raise self._gone()
            self._pending.extend(map(messages.Message.from_json, self._lines.feed(data)))
        return self._pending.popleft()

    def interrupt(self) -> None:
        """Send SIGINT, which the worker takes as the wish to end after the current sample."""
        if self._open:
            self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Kill the process and close the pipes."""
        if self._open:
            self._open = False
            self._process.kill()
            self._process.wait()
            os.close(self._task_write)
            os.close(self._message_read)

    def _gone(self) -> WorkerGone:
        returncode, kills = self._process.wait(), oom_kills()
        out_of_memory = kills is not None and self._oom_kills is not None and kills > self._oom_kills
        return WorkerGone(returncode, out_of_memory=out_of_memory)


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
