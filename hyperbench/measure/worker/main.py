"""Main function of the child process: take tasks from one pipe, measure them, write each finished record to another.

Started by hyperbench/child/start.py with READ_FD WRITE_FD [TARGET ...], the functions that it may have to measure; its
stdout and stderr belong to the measured code. It ends when the parent closes its pipe. After SIGINT it ends with the
current sample, and says so; SIGTERM and SIGHUP are for its parent, which ends it if it is to end.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol

_READ_BYTES = 1 << 16
_SETTLE_SEQ_LEN = 512


class Stop(BaseException):
    """The parent wants no more; no Exception, so that it becomes nobody's row."""


class StopSignal:
    """Handler of SIGINT; once that came, `check` raises Stop."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGINT, self._hear)

    def check(self) -> None:
        """Raise Stop if the parent asked for it."""
        if self._asked:
            raise Stop

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


class StoppableClock:
    """A clock between whose samples the worker may stop; what else is read of it is the clock's own."""

    def __init__(self, clock: Any, check: Callable[[], object]) -> None:
        self._clock = clock
        self._check = check

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        """Time a call in milliseconds. Raises Stop before it if the parent asked for that."""
        self._check()
        elapsed_ms: float = self._clock.time_ms(call, is_load=is_load)
        return elapsed_ms

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


class Measurement(Protocol):
    """One task in the making."""

    @property
    def poisoned(self) -> bool:
        """True if an error left the device unusable in this process."""
        ...

    def run(self) -> None:
        """Measure everything the task asks for."""
        ...


#: Makes a task's measurement of the task, what takes its messages, a clock that stops where it is asked to, and the
#: settings of the process as they were when it began.
Make = Callable[[Any, Callable[[Any], None], StoppableClock, Any], Measurement]


def main(read_fd: int, write_fd: int, targets: Sequence[str] = ()) -> None:
    """Serve tasks of attention by itself until the pipe is closed."""

    def group(task: Any, emit: Callable[[Any], None], clock: Any, settings: Any) -> Measurement:
        import torch

        from hyperbench.measure.worker.conditions.machine import machine_for
        from hyperbench.measure.worker.group import GroupMeasurement
        from hyperbench.measure.worker.memory import memory_peak_for

        device = task.items[0].point.device
        machine = machine_for(device, torch.get_num_threads())
        return GroupMeasurement(task, emit, clock, memory_peak_for(device), machine, settings)

    serve(read_fd, write_fd, targets, group)


def serve(read_fd: int, write_fd: int, targets: Sequence[str], make: Make) -> None:
    """Serve tasks until the pipe is closed, each by the measurement that is made of it."""
    stop, own = StopSignal(), os.getpid()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _do_nothing)
    from hyperbench.child.code import admit_current_folder, running_code
    from hyperbench.measure.messages import LOST_PIPE, Event, Lines, Message, Task, send

    def say(message: Message) -> None:
        if os.getpid() != own:
            os._exit(1)  # a fork of the measured code that has come back from it
        try:
            send(write_fd, message)
        except OSError:
            os._exit(LOST_PIPE)

    def emit(message: Message) -> None:
        say(message)
        stop.check()

    def read() -> bytes:
        try:
            return os.read(read_fd, _READ_BYTES)
        except OSError:
            os._exit(LOST_PIPE)

    # The profiler, which tells what the allocator does, prints several lines at each use otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from hyperbench.measure.worker.clock import clock_for
    from hyperbench.measure.worker.gate.checks import Operations
    from hyperbench.measure.worker.settings import Settings

    # Threads and libraries that the first calls start are no method's memory.
    x = torch.randn(1, 1, _SETTLE_SEQ_LEN, 64, device="cpu", dtype=torch.float32, requires_grad=True)
    # The first count of operations imports a large part of PyTorch, which every later collection would look at.
    with Operations():
        torch.autograd.grad(scaled_dot_product_attention(x, x @ x.mT @ x, x).sum(), x)
    # The collector runs before each measuring of memory; it need not look at every library each time.
    gc.collect()
    gc.freeze()
    admit_current_folder(targets)
    say(Message(Event.READY, code=running_code(targets)))
    lines = Lines()
    settings: Settings | None = None
    while data := read():
        for message in lines.feed(data):
            task = Task.from_json(message)
            if settings is None:
                if task.threads is not None:
                    torch.set_num_threads(task.threads)
                settings = Settings()
            clock = StoppableClock(clock_for(task.items[0].point.device), stop.check)
            measurement = make(task, emit, clock, settings)
            try:
                measurement.run()
            except Stop:
                say(Message(Event.STOPPED))
                return
            if measurement.poisoned:
                say(Message(Event.LEAVE))
                return
            say(Message(Event.DONE))


def _do_nothing(number: int, frame: FrameType | None) -> None:
    # A handler, for what is ignored stays ignored in every program that the measured code starts.
    return None


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
