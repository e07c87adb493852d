"""An exporter's command within a time limit, ended together with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

_MARK = "HYPERBENCH_COMMAND"
_SWEEPS, _SWEEP_S = 200, 0.01


def run_limited(command: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> str | None:
    """Run a command for at most `timeout_s`, then end all it started; returns its failure as one line, or None."""
    mark = f"{_MARK}={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            list(command),
            env={**environment, name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            code = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return f"the exporter did not finish within {timeout_s:g} s"
        finally:
            _end_all(process, mark)
        if code == 0:
            return None
        stderr.seek(0)
        lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    return f"the exporter failed: {lines[-1] if lines else f'exit code {code}'}"


def _end_all(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill the process, its descendants and what they left behind, and wait until none of them runs."""
    killed: set[int] = set()
    for _ in range(_SWEEPS):
        running = process.poll() is None
        found = {*([process.pid, *_descendants(process.pid)] if running else []), *_marked(mark)}
        if not found and not any(map(_runs, killed)):
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
        if running:
            process.wait()
        else:
            time.sleep(_SWEEP_S)


def _runs(pid: int) -> bool:
    """Whether a process is there and has not ended; an ended one may wait for its parent to count it."""
    try:
        return _stat(Path(f"/proc/{pid}/stat"))[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def _stat(path: Path) -> list[str]:
    # The name in parentheses may hold anything; the state and the parent follow its last bracket.
    return path.read_text(errors="replace").rpartition(")")[2].split()


def _descendants(pid: int) -> list[int]:
    """Every process that descends from `pid`; a browser starts sessions of its own, so its group would miss some."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # A process may end while it is read.
        with contextlib.suppress(OSError, IndexError):
            parent = int(_stat(stat)[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def _marked(mark: str) -> list[int]:
    """Every process started with `mark` in its environment: also one that left its parent, as a daemon does."""
    wanted, found = mark.encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        # Those of other users cannot be read; an ended process has an empty one.
        with contextlib.suppress(OSError):
            if wanted in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found
