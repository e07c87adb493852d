"""One run at a time on a device: a file lock that the kernel takes back when its owner ends, however that happens."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

_FOLDER = "hyperbench"


class DeviceBusyError(ValueError):
    """Another run measures on the device; the message is one line for the user."""


class DeviceLock:
    """Held while a run measures on a device: two at once would take each other's time.

    The lock is of this user, on this machine. It lives with the process that holds it, and with no file that is left
    behind: the file stays, unlocked. Raises DeviceBusyError if another process holds it; where no file can be made,
    nothing is locked.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        self.path = (folder or runtime_dir()) / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', device)}.lock"
        self._device = device
        self._fd = -1

    def __enter__(self) -> DeviceLock:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            return self  # a system without any place to write is no reason not to measure
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(fd)
            os.close(fd)
            raise DeviceBusyError(
                f"device {self._device} is being measured by another hyperbench{owner}; "
                "wait for it or end it: two runs at once disturb each other's times"
            ) from None
        except OSError:
            os.close(fd)  # a file system without locks
            return self
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def device_key(device: str, facts: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> str:
    """What tells a device from others of the machine: the GPU's own id where it is known, else which is visible."""
    if device != "cuda":
        return device
    visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return f"cuda-{facts.get('gpu_uuid') or visible or '0'}"


def runtime_dir(env: Mapping[str, str] = os.environ) -> Path:
    """This user's folder for what lives no longer than the machine is up."""
    base = env.get("XDG_RUNTIME_DIR")
    if base and os.access(base, os.W_OK):
        return Path(base) / _FOLDER
    return Path(tempfile.gettempdir()) / f"{_FOLDER}-{os.getuid()}"


def _owner(fd: int) -> str:
    """The process that holds the lock, as far as the file tells."""
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return f" (process {text})" if text.isdigit() else ""
