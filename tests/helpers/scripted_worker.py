"""A worker that runs a few lines of Python and nothing of ours: quickly started, and ended as those lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hyperbench.measure.runner.worker_process import WorkerProcess

#: What every script begins with: `say` sends a line.
START = """
import os, sys, signal, time
read_fd, write_fd = map(int, sys.argv[1:3])
say = lambda text: os.write(write_fd, text if isinstance(text, bytes) else text.encode())
READY = '{"event": "ready", "unit": null, "record": null, "code": null}\\n'
def helper():
    if os.fork() == 0:
        say('') ; os.write(1, f"helper {os.getpid()}\\n".encode()); time.sleep(600); os._exit(0)
"""


class Scripted(WorkerProcess):
    """A worker that runs a few lines of Python."""

    script = ""

    def _launch(self, read_fd: int, write_fd: int, env: dict[str, str], log: Path) -> Any:
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", START + self.script, str(read_fd), str(write_fd)],
                pass_fds=(read_fd, write_fd), stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
