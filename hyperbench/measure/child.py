"""The parent's end of a worker process: start it, send tasks, wait for messages without polling, end it. No torch."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from hyperbench.measure import wire

_READ_BYTES = 1 << 16
#: select refuses a longer wait; it is then waited again.
_LONGEST_WAIT_S = 1e6


class WorkerTimeout(Exception):
    """Nothing came from the worker within the limit."""


class WorkerGone(Exception):
    """The worker process has ended; `returncode` says how."""

    def __init__(self, returncode: int) -> None:
        super().__init__(describe_exit(returncode))
        self.returncode = returncode


class Child(Protocol):
    """What the runner needs of a worker process."""

    def send(self, task: wire.Task) -> None:
        """Hand over a task. Raises WorkerGone."""
        ...

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The next message. Raises WorkerTimeout or WorkerGone."""
        ...

    def end(self) -> None:
        """End the process, whatever it does; ending twice is harmless."""
        ...


class WorkerProcess:
    """A worker in a session of its own, so that Ctrl-C reaches the parent alone."""

    def __init__(self, env: dict[str, str], log: Path) -> None:
        task_read, self._task_write = os.pipe()
        self._message_read, message_write = os.pipe()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hyperbench.measure.worker", str(task_read), str(message_write)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(task_read, message_write),
                env={**os.environ, **env},
                start_new_session=True,
            )
        os.close(task_read)
        os.close(message_write)
        self._lines = wire.Lines()
        self._pending: deque[dict[str, Any]] = deque()
        self._open = True

    def send(self, task: wire.Task) -> None:
        """Hand over a task. Raises WorkerGone if the process has ended."""
        try:
            wire.send(self._task_write, task.to_json())
        except BrokenPipeError:
            raise WorkerGone(self._process.wait()) from None

    def receive(self, timeout_s: float) -> dict[str, Any]:
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
                raise WorkerGone(self._process.wait())
            self._pending.extend(self._lines.feed(data))
        return self._pending.popleft()

    def end(self) -> None:
        """Kill the process and close the pipes."""
        if self._open:
            self._open = False
            self._process.kill()
            self._process.wait()
            os.close(self._task_write)
            os.close(self._message_read)


def describe_exit(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"the worker process ended with exit code {returncode}"
    name = signal.Signals(-returncode).name if -returncode in set(signal.Signals) else f"signal {-returncode}"
    hint = ", most likely for want of memory" if name == "SIGKILL" else ""
    return f"the worker process was ended by {name}{hint}"
