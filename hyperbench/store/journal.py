"""The journal of a run: a header, then one line of JSON per finished measurement, each flushed to the disk.

A damaged line costs that line: it is left out with a warning, and set aside in another file before anything is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from hyperbench.store.files import DamageWarning, DiskError, StoreError, atomic_write, fsync_folder, open_regular
from hyperbench.store.journal_lines import JournalLines, Line, header_of, line_of
from hyperbench.store.record_json import from_json, to_json
from hyperbench.store.schema import Record

#: Beside a journal: the lines of it that were damaged, as they were found.
DAMAGED_SUFFIX = ".damaged"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class JournalLostError(DiskError):
    """A journal that something else has replaced, changed or deleted while it was being written."""


class Journal(contextlib.AbstractContextManager["Journal"]):
    """The journal of a run, locked for one process; entering it reads it, and it can then be appended to.

    `records` are all that it holds. Damaged lines, and a torn last one that a process left which was killed while
    writing, are set aside in a file beside it. Raises StoreError if another process holds the journal, if the file
    system has no locks, or if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = []
        self._header = b""
        self._fd = _locked(path)
        self._size = os.fstat(self._fd).st_size
        fsync_folder(path.parent)

    def __enter__(self) -> Journal:
        try:
            if self._size:
                self._recover(_read(self.path))
        except BaseException:
            self.close()
            raise
        return self

    def begin(self, run_id: str) -> None:
        """Write the header, if nothing is written yet; one that is damaged is made again. Raises DiskError."""
        self._header = header_of(run_id)
        if not self._size:
            self._write(self._header)

    def restart(self, run_id: str) -> None:
        """Begin anew: a journal that holds nothing but the header takes the place of this one, in one step."""
        self._header = header_of(run_id)
        self._replace(self._header, [])
        self.records = []

    def append(self, record: Record) -> None:
        """Write one record as one line and wait until the disk has it.

        Raises DiskError if that fails; the journal is then as it was. Raises JournalLostError if something else has
        changed, replaced or deleted it; all records are then beside it.
        """
        self.records.append(record)
        try:
            self.check()
            self._write(line_of(to_json(record)))
        except BaseException:
            self.records.pop()
            raise

    def close(self) -> None:
        """Give the journal back; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def check(self) -> None:
        """Raise JournalLostError unless the file is as it was left, and write what it held beside it."""
        if not _is_at(self._fd, self.path):
            how = "deleted" if not os.path.lexists(self.path) else "replaced"
        elif os.fstat(self._fd).st_size != self._size:
            how = f"changed (it has {os.fstat(self._fd).st_size:,} bytes, not {self._size:,})"
        else:
            return
        rescued = self.path.with_name(f"{self.path.stem}.rescued-{time.strftime('%Y%m%dT%H%M%S')}{self.path.suffix}")
        try:
            rescued.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(rescued, self._rescue)
        except OSError as error:
            kept = f"what it held cannot be written to {rescued.name} ({error.strerror})"
        else:
            kept = f"what it held is in {rescued} now; with that in its place --resume goes on"
        raise JournalLostError(f"the journal {self.path} was {how} by something else while the run went on; {kept}")

    def _rescue(self, path: Path) -> None:
        with path.open("wb") as file:
            file.write(self._header)
            file.writelines(line_of(to_json(record)) for record in self.records)

    def _write(self, line: bytes) -> None:
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise DiskError(
                f"cannot write the journal {self.path}: {error.strerror}; it holds what was measured before, and"
                " --resume goes on when there is space"
            ) from None
        self._size += len(line)

    def _recover(self, data: bytes) -> None:
        """Read the records, and leave a journal of whole lines alone."""
        texts: list[bytes] = []
        lines = JournalLines(io.BytesIO(data), str(self.path))
        self.records = [record for _, record in _records(lines, texts.append)]
        if len(lines.run_ids) > 1:
            raise StoreError(
                f"{self.path} holds the journals of several runs ({', '.join(lines.run_ids)}): it can be shown, but not"
                " continued"
            )
        if lines.header or not lines.are_checked:  # journals of version 1 have none
            self._header = lines.header and lines.header + b"\n"
        whole = self._header + b"".join(text + b"\n" for text in texts)
        if whole == data + b"\n":
            self._write(b"\n")
        elif whole != data:
            self._replace(whole, lines.damaged)

    def _replace(self, whole: bytes, damaged: list[Line]) -> None:
        """Make these lines the journal, once the damaged ones are in the file beside it."""
        aside = self.path.with_name(self.path.name + DAMAGED_SUFFIX)
        new_fd = -1

        def write(temporary: Path) -> None:
            nonlocal new_fd
            temporary.write_bytes(whole)
            new_fd = _locked(temporary)

        try:
            if damaged:
                with open(open_regular(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "wb") as file:
                    file.writelines(line.text + b"\n" for line in damaged)
                    file.flush()
                    os.fsync(file.fileno())
            atomic_write(self.path, write)
        except OSError as error:
            raise StoreError(f"cannot repair the journal {self.path}: {error.strerror}") from None
        os.close(self._fd)
        self._fd, self._size = new_fd, len(whole)
        if not damaged:
            return
        found = "a damaged line" if len(damaged) == 1 else f"{len(damaged)} damaged lines"
        _warn(f"{found} of {self.path} moved to {aside.name}; what is missing now is measured again")


def read_journal(path: Path, run_id: str = "") -> list[Record]:
    """Every record of a journal, in the order of writing.

    Warns of damaged lines, which are left out. Raises StoreError on a missing file, on one of a newer version, and on
    one of another run than `run_id`, if it names one.
    """
    return [record for _, record in each_record(path, run_id)]


def each_record(path: Path, run_id: str = "") -> Iterator[tuple[str, Record]]:
    """Each record of a journal with its run ("" where no header names it), one by one; otherwise as `read_journal`."""
    try:
        with Path(path).open("rb") as file:
            lines = JournalLines(file, str(path))
            yield from _records(lines)
    except OSError as error:
        raise StoreError(f"cannot read the journal {path}: {error.strerror}") from None
    if run_id and lines.run_ids and run_id not in lines.run_ids:
        found = " and ".join(lines.run_ids)
        raise StoreError(f"{path} is the journal of run {found}, not of run {run_id} as the files beside it")
    if lines.damaged:
        _warn(f"{lines.warning}; --resume measures it again")


def _records(lines: JournalLines, keep: Callable[[bytes], object] = len) -> Iterator[tuple[str, Record]]:
    """Each record of a journal's lines with its run; `keep` takes the text of each."""
    for run_id, line in lines:
        try:
            record = from_json(line.data)
        except (ValueError, RecursionError) as error:
            lines.refuse(line, error)
        else:
            keep(line.text)
            yield run_id, record


def _warn(text: str) -> None:
    warnings.warn(DamageWarning(text), stacklevel=3)


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read the journal {path}: {error.strerror}") from None


def _locked(path: Path) -> int:
    """The journal's file, opened for appending and locked. Raises StoreError if that cannot be."""
    while True:
        try:
            fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise StoreError(f"cannot write the journal {path}: {error.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
            os.close(fd)  # its owner has put another file in its place, and left
        except OSError as error:
            os.close(fd)
            if error.errno in _NO_LOCKS:
                raise StoreError(
                    f"the file system of {path.parent} has no locks ({error.strerror}), so that nothing would keep a"
                    " second run out; choose out=DIR on another one"
                ) from None
            raise StoreError(f"another process is writing to {path}; wait for it, or choose another out=DIR") from None


def _is_at(fd: int, path: Path) -> bool:
    """True if a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
