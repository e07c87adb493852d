"""The child process: takes tasks from one pipe, measures them, writes each finished record to another.

Started as `python -m hyperbench.measure.worker READ_FD WRITE_FD`; its stdout and stderr belong to the measured code.
It ends when the parent closes its pipe, and the kernel ends it when the parent dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1 << 16
_SETTLE_SEQ_LEN = 512


def main(read_fd: int, write_fd: int) -> None:
    """Serve tasks until the pipe is closed."""
    parent = os.getppid()
    _die_with_parent()
    if os.getppid() != parent:
        return  # the parent died before the kernel was told
    from hyperbench.measure.wire import Lines, Task, send

    def emit(message: dict[str, Any]) -> None:
        send(write_fd, message)

    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from hyperbench.measure.clock import clock_for
    from hyperbench.measure.group import GroupMeasurement
    from hyperbench.measure.memory import gauge_for
    from hyperbench.measure.surroundings import surroundings_for

    # Threads and libraries that the first calls start are no method's memory.
    x = torch.randn(1, 1, _SETTLE_SEQ_LEN, 64, requires_grad=True)
    torch.autograd.grad(scaled_dot_product_attention(x, x @ x.mT @ x, x).sum(), x)
    emit({"event": "ready"})
    lines = Lines()
    while data := os.read(read_fd, _READ_BYTES):
        for message in lines.feed(data):
            task = Task.from_json(message)
            if task.threads is not None:
                torch.set_num_threads(task.threads)
            device = task.todos[0].cell.point.device
            measurement = GroupMeasurement(
                task, emit, clock_for(device), gauge_for(device), surroundings_for(device, torch.get_num_threads())
            )
            measurement.run()
            if measurement.poisoned:
                emit({"event": "leave"})
                return
            emit({"event": "done"})


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
