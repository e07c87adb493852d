"""Child processes that end when asked, when their time is up, and when this process dies; nothing is lost by it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_SETTLE_S = 60.0
#: Kernels run on the GPU, whatever the shell says; the tests need no plugin of pytest, and one may be broken there.
_ENV = {"TRITON_INTERPRET": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def run_until(command: Sequence[str], root: Path, limit_s: float | None, tee: Path | None = None) -> int | None:
    """The exit code of a command run in `root`, or None if it was stopped after limit_s seconds.

    With `tee` its output also goes to that file. It is stopped by SIGINT, upon which a run writes its tables; Ctrl-C
    here is passed on, waited for and raised again.
    """
    process = subprocess.Popen(
        list(command), cwd=root, env={**os.environ, **_ENV}, start_new_session=True, preexec_fn=_die_with_parent,
        stdout=None if tee is None else subprocess.PIPE, stderr=None if tee is None else subprocess.STDOUT,
    )  # fmt: skip
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        process.send_signal(signal.SIGINT)

    timer = threading.Timer(limit_s, stop) if limit_s is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        if tee is not None:
            _copy(process, tee)
        code = _wait(process, stopped)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        _end(process)
        raise
    finally:
        if timer is not None:
            timer.cancel()
    return None if stopped.is_set() else code


def _copy(process: subprocess.Popen[bytes], tee: Path) -> None:
    assert process.stdout is not None
    with tee.open("wb") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            sys.stdout.buffer.write(line)
            sys.stdout.flush()


def _wait(process: subprocess.Popen[bytes], stopped: threading.Event) -> int:
    while True:
        try:
            return process.wait(_SETTLE_S)
        except subprocess.TimeoutExpired:
            if stopped.is_set():
                return _end(process)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process that was asked to stop; kill it if it does not."""
    try:
        return process.wait(_SETTLE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _death_call() -> Callable[[], None]:
    # Looked up before any fork: between fork and exec nothing may be imported or locked.
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_die_with_parent = _death_call()
