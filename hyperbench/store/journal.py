"""The journal of a run: one line of JSON per finished measurement, appended and flushed to the disk one by one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

from hyperbench.store.files import DiskError, StoreError, fsync_folder
from hyperbench.store.record_json import from_json, to_json
from hyperbench.store.schema import Record


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The journal of a run, opened for appending; one process at a time may hold it.

    A torn last line, left by a process that was killed while writing, is cut before anything is appended.
    Raises StoreError if another process holds the journal or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise StoreError(f"cannot write the journal {path}: {error.strerror}") from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise StoreError(f"another process is writing to {path}; wait for it, or choose another out=DIR") from None
        data = path.read_bytes() if os.fstat(self._fd).st_size else b""
        if data and not data.endswith(b"\n"):
            os.ftruncate(self._fd, data.rfind(b"\n") + 1)
            os.fsync(self._fd)
        fsync_folder(path.parent)

    def append(self, record: Record) -> None:
        """Write one record as one line and wait until the disk has it.

        Raises DiskError if that fails; the journal is then as it was.
        """
        line = json.dumps(to_json(record), separators=(",", ":")) + "\n"
        view = memoryview(line.encode())
        size = os.fstat(self._fd).st_size
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise DiskError(
                f"cannot write the journal {self.path}: {error.strerror}; it holds what was measured before, and"
                " --resume goes on when there is space"
            ) from None

    def close(self) -> None:
        """Give the journal back; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def read_journal(path: Path) -> list[Record]:
    """Every record of a journal, in the order of writing; a torn last line is cut.

    Raises StoreError, naming file and line, on a missing file or on any other damage.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read the journal {path}: {error.strerror}") from None
    records: list[Record] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            records.append(from_json(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path}, line {number}: damaged record: {' '.join(str(error).split())}") from None
    return records
