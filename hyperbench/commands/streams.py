"""Standard streams on which no command fails: closed ones, readers that leave, and encodings that lack a character."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Any, TextIO

_STAND_INS = "hyperbench.stand_ins"
_ASCII = {
    "±": "+-", "×": "x", "µ": "u", "μ": "u", "∝": "~", "·": "-", "•": "*", "…": "...", "–": "-", "—": "-", "−": "-",
    "‘": "'", "’": "'", "“": '"', "”": '"', "│": "|", "┃": "|", "║": "|", "─": "-", "━": "-", "═": "-", "╸": "-",
    "╺": "-", "╴": "-", "╶": "-",
}  # fmt: skip
#: Errors of a write that mean that nobody reads any more: a closed pipe, a terminal that is gone.
_READER_LEFT = (errno.EPIPE, errno.EIO)


class _Output(io.RawIOBase):
    """The bytes of a standard stream; they go nowhere once its reader has left or it has failed."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Write bytes. Raises OSError, once, where they cannot be written though somebody may read (a full disk)."""
        try:
            return os.write(self._fd, data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._fd)
            os.close(null)
            if error.errno not in _READER_LEFT:
                raise OSError(error.errno, error.strerror, self._name) from None
            return len(data)


def make_safe() -> None:
    """Replace stdout and stderr of this process by streams that take any text, whatever became of their readers.

    A stream that was closed (`>&-`) becomes the null device, so that no file that is opened later takes its place. The
    exit code of a command is therefore that of what it did, and not of who read it.
    """
    closed = [fd for fd in (0, 1, 2) if not _is_open(fd)]
    for _ in closed:
        # The lowest number that is free is taken.
        os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_STAND_INS, _stand_ins)
    sys.stdout = _safe(sys.stdout, sys.__stdout__, 1, "standard output")
    sys.stderr = _safe(sys.stderr, sys.__stderr__, 2, "standard error")


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _safe(stream: TextIO, original: TextIO | None, fd: int, name: str) -> TextIO:
    """The stream made safe; one that a program has put in the place of the original stays as it is."""
    if stream is not original:
        return stream
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(_Output(fd, name)), encoding="utf-8", errors=_STAND_INS)
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(fd, name)),
        encoding=stream.encoding,
        errors=_STAND_INS,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


def _stand_ins(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks, in ASCII: "+-" for ±, "?" for most."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(char, "?") for char in error.object[error.start : error.end]), error.end
