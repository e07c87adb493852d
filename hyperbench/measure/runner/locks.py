"""One run at a time on a device: a file lock that the kernel takes back when its owner ends, however that happens."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from hyperbench.store.files import open_regular

#: One place for all users and environments of a machine: a lock that TMPDIR moves elsewhere keeps nobody out.
_FOLDER = Path("/tmp")
#: Another place for the locks, such as one that containers share; tests have one of their own.
FOLDER_VARIABLE = "HYPERBENCH_LOCK_DIR"
_TRIES = 3
_PAUSE_S = 0.01


class DeviceBusyError(ValueError):
    """Another run measures on the device; the message is one line for the user."""


class DeviceLock:
    """Held while a run measures on a device: two at once would take each other's time.

    The lock is of this machine, whoever the user. It lives with the process that holds it, and with no file that is
    left behind: the file stays, unlocked. Raises DeviceBusyError if another process holds it; where no file can be
    made, nothing is locked, and `note` says so.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        self.path = (folder or lock_dir()) / f"hyperbench-{re.sub(r'[^A-Za-z0-9.-]+', '-', device)}.lock"
        self.note = ""
        self._device = device
        self._fd = -1

    def __enter__(self) -> DeviceLock:
        try:
            fd = _opened(self.path)
        except OSError as error:  # no reason not to measure
            self.note = f"cannot lock {self.path} ({error.strerror}): nothing keeps a second run from this device"
            return self
        try:
            _take(fd)
        except BlockingIOError:
            owner = _owner(fd)
            os.close(fd)
            raise DeviceBusyError(
                f"device {self._device} is being measured by another hyperbench{owner}; "
                "wait for it or end it: two runs at once disturb each other's times"
            ) from None
        except OSError as error:
            os.close(fd)
            self.note = f"cannot lock {self.path} ({error.strerror}): nothing keeps a second run from this device"
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


def busy_devices(folder: Path | None = None) -> str:
    """Devices that are being measured by other processes, and by which; "" if none is.

    Whoever is about to load a device that it does not know yet asks this first.
    """
    held = []
    for path in sorted((folder or lock_dir()).glob("hyperbench-*.lock")):
        try:
            fd = open_regular(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            device = path.stem.removeprefix("hyperbench-")
            held.append(f"device {device} is being measured by another hyperbench{_owner(fd)}")
        except OSError:
            pass
        finally:
            os.close(fd)
    return "; ".join(held)


def device_key(device: str, facts: Mapping[str, Any], env: Mapping[str, str] = os.environ) -> str:
    """A name that no other device of the machine has: the GPU's own id where it is known, else which is visible."""
    if device != "cuda":
        return device
    visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return f"cuda-{facts.get('gpu_uuid') or visible or '0'}"


def lock_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The folder of this machine's locks: one place for all of its users."""
    return Path(env.get(FOLDER_VARIABLE) or _FOLDER)


def _opened(path: Path) -> int:
    """The lock's file, open for reading and writing; made for all users where it is not there. Raises OSError."""
    for _ in range(2):
        try:
            # Without O_CREAT: Linux refuses that for another user's file in a folder like /tmp.
            return open_regular(path, os.O_RDWR)
        except FileNotFoundError:
            pass
        try:
            fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue  # another process was faster
        os.fchmod(fd, 0o666)  # whatever the umask says
        return fd
    return open_regular(path, os.O_RDWR)


def _take(fd: int) -> None:
    """Lock the file. Raises BlockingIOError if another process holds it, which one that only asks does for a moment."""
    for _ in range(_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_PAUSE_S)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _owner(fd: int) -> str:
    """The process that holds the lock, as far as the file tells."""
    text = os.pread(fd, 32, 0).decode(errors="replace").strip()
    return f" (process {text})" if text.isdigit() else ""
