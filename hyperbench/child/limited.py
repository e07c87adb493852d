"""Run a command for a limited time, in a process group of its own that ends with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """The exit code of a command, None if its time ran out, and what it wrote to both streams."""

    code: int | None
    out: str
    err: str


def run(
    command: Sequence[str], environment: Mapping[str, str], limit_s: float, *, text: str = "", close_s: float = 0.0
) -> Finished:
    """Run a command with `text` on its stdin for at most `limit_s` seconds, then end all that it has started.

    When its time is over it is interrupted, and has `close_s` seconds to end by itself. Files take what it writes: a
    process that it leaves behind may hold a pipe open for ever.
    """
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        stdin.write(text.encode())
        stdin.seek(0)
        process = subprocess.Popen(
            list(command), env=dict(environment), stdin=stdin, stdout=out, stderr=err, start_new_session=True
        )
        code = None
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            if close_s > 0:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=close_s)
        finally:
            end_group(process.pid)
            process.wait()
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode(errors="replace"))
    return Finished(code, *said)


def end_group(leader: int) -> None:
    """Kill every process of the group of which this one is, or was, the leader; harmless if there is none."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
