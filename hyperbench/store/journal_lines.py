"""Lines of a journal: each ends with a checksum of its own bytes, and a damaged one costs no other.

A line is a JSON object whose last key, "crc32", is the CRC-32 of all bytes before it. The first line of a journal names
its run and the version of the schema. Journals of version 1 have neither; they are read as they are.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from hyperbench.store.files import StoreError
from hyperbench.store.plain_data import short
from hyperbench.store.record_json import parsed
from hyperbench.store.schema import SCHEMA_VERSION

HEADER_KIND = "run"
_MARK = b',"crc32":"'
_DIGITS = 8
_SUFFIX = len(_MARK) + _DIGITS + 2
#: A whole line somewhere in a damaged one: the newline between two was lost, or half a line stands before it.
_WHOLE = re.compile(rb'\{"kind":"(?:(?!\{"kind":").)*?,"crc32":"[0-9a-f]{8}"\}')
_HINTS = {name: re.compile(rb'"%s":\s?"?([\w.+-]{1,40})' % name.encode())
          for name in ("kind", "method", "seq_len", "pass_", "stage", "round", "metric")}  # fmt: skip
_MOST_TOLD = 5


class Line(NamedTuple):
    """A line of a journal: its bytes without the newline, and what `parsed` gives; `reason`: why it is no record.

    `is_checked`: it has a checksum, and that is right.
    """

    number: int
    text: bytes
    data: Any = None
    is_checked: bool = False
    reason: str = ""

    @property
    def guess(self) -> str:
        """The record that a damaged line most likely was, as far as words of it are left."""
        found = {name: match[1].decode("ascii") for name, hint in _HINTS.items() if (match := hint.search(self.text))}
        return " ".join(f"{name.rstrip('_')}={value}" for name, value in found.items())


class JournalLines:
    """The whole lines of a journal, to be iterated over once, with the run of each; headers are none of them.

    The run is that of the last header before it, "" where there is none: a journal may be those of several runs, one
    after the other. Afterwards `damaged` holds the other lines, `run_ids` each run that a header names, `header` the
    text of the last header (empty where there is none), and `are_checked` says whether all lines have a checksum.
    Raises StoreError on a header of a newer version.
    """

    def __init__(self, lines: Iterable[bytes], name: str) -> None:
        self.damaged: list[Line] = []
        self.header = b""
        self.run_ids: list[str] = []
        self.are_checked = True
        self._run_id = ""
        self._lines = lines
        self._name = name

    def __iter__(self) -> Iterator[tuple[str, Line]]:
        for number, text in enumerate(self._lines, start=1):
            is_torn = not text.endswith(b"\n")
            line = _parsed(number, text if is_torn else text[:-1])
            if not line.reason:
                if not self._is_header(line) and self._has_needed_checksum(line):
                    yield self._run_id, line
            else:
                yield from self._within(line._replace(reason="its end is missing") if is_torn else line)

    def refuse(self, line: Line, error: Exception) -> None:
        """Count a line that holds no possible record as damaged. Raises StoreError if it is of a newer version."""
        if line.is_checked:  # it is what was written, by a hyperbench that knows more
            raise StoreError(
                f"{self._name}, line {line.number}: made by a newer hyperbench: {_one_line(error)}; update hyperbench"
            )
        self.damaged.append(line._replace(reason=_one_line(error)))

    @property
    def warning(self) -> str:
        """One line that names the damaged lines, or "" if there is none."""
        if not self.damaged:
            return ""
        told = []
        for line in self.damaged[:_MOST_TOLD]:
            guess = f", most likely {line.guess}" if line.guess else ""
            told.append(f"line {line.number}: damaged record: {line.reason}{guess}")
        if len(self.damaged) > _MOST_TOLD:
            told.append(f"and {len(self.damaged) - _MOST_TOLD} more")
        return f"{self._name} is damaged; what is left out: {'; '.join(told)}"

    def _is_header(self, line: Line) -> bool:
        """Take a line that names the run. Raises StoreError if its version is newer."""
        data = line.data
        if not (line.is_checked and isinstance(data, dict) and data.get("kind") == HEADER_KIND):
            return False
        version = data.get("schema_version")
        if isinstance(version, int):
            refuse_newer(version, self._name)
        self.header, self._run_id = line.text, str(data.get("run_id", ""))
        if self._run_id not in self.run_ids:
            self.run_ids.append(self._run_id)
        return True

    def _has_needed_checksum(self, line: Line) -> bool:
        if line.is_checked or not self.header:
            self.are_checked = self.are_checked and line.is_checked
            return True
        self.damaged.append(line._replace(reason="it has no checksum"))
        return False

    def _within(self, line: Line) -> Iterator[tuple[str, Line]]:
        """Whole lines inside a damaged one; what is left of it is damaged."""
        end = 0
        rest = b""
        for match in _WHOLE.finditer(line.text):
            whole = _parsed(line.number, match[0])
            if whole.is_checked and not whole.reason:
                rest += line.text[end : match.start()]
                end = match.end()
                if not self._is_header(whole):
                    yield self._run_id, whole
        rest += line.text[end:]
        # The one byte between two whole lines was their newline.
        if not end or len(rest) > 1:
            self.damaged.append(line._replace(text=rest))


def refuse_newer(version: int, name: str) -> None:
    """Raise StoreError if a file is of a newer version of the schema than is known here."""
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{name}: made by a newer hyperbench: its schema version is {version}, and this one knows up to"
            f" {SCHEMA_VERSION}; update hyperbench"
        )


def line_of(data: Mapping[str, Any]) -> bytes:
    """Plain data as a line with its checksum and newline."""
    body = json.dumps(data, separators=(",", ":")).encode()[:-1]
    return b'%s%s%08x"}\n' % (body, _MARK, zlib.crc32(body))


def header_of(run_id: str) -> bytes:
    """The first line of a run's journal."""
    return line_of({"kind": HEADER_KIND, "run_id": run_id, "schema_version": SCHEMA_VERSION})


def _parsed(number: int, text: bytes) -> Line:
    is_checked = text[-_SUFFIX : -_DIGITS - 2] == _MARK
    body = text
    if is_checked:
        told, body = text[-_DIGITS - 2 : -2], text[:-_SUFFIX]
        found = b"%08x" % zlib.crc32(body)
        if found != told or text[-2:] != b'"}':
            # Only the plain letters of a checksum are repeated in a message.
            return Line(number, text, None, False, f"its checksum is {found.decode()}, not {short(told)[1:]}")
        body += b"}"
    try:
        return Line(number, text, parsed(body), is_checked)
    except (ValueError, RecursionError) as error:
        return Line(number, text, None, False, _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
