"""Units of work that were begun and never ended: what took parent and worker down together is not tried for ever.

The parent notes each unit when it begins, in a file of the run's folder that an orderly end removes. No torch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from hyperbench.measure.messages import Unit
from hyperbench.store.files import StoreError, open_regular
from hyperbench.store.plain_data import decoded

#: Beside the journal, while a run goes on and after it has ended without an end.
FILE = "begun.json"
_MOST_TRIES = 2
#: The first line is the number of the line of the unit that goes on, zero if none does.
_POINTER = b"%08d\n"
_NONE = 0

Place = tuple[int, str, Unit]


class Tries:
    """Units that were begun in earlier sessions and had no end, with how often; those of this one are added.

    A unit goes to the disk when it is first begun; that it goes on again, between others, costs one small write.
    Without a file nothing is noted. Raises StoreError if it cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._fd = -1
        self._counts = _read(path) if path is not None else {}
        self._lines: dict[Place, int] = {}
        self._now: Place | None = None
        self._number = 0
        if path is None:
            return
        try:
            path.unlink(missing_ok=True)
            self._fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.write(self._fd, _POINTER % _NONE)
            for place, count in self._counts.items():
                self._add("carried", place, count)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}") from None

    def begin(self, round_: int, group_key: str, unit: Unit) -> None:
        """Note that a unit begins, or goes on after others that take turns with it."""
        place = round_, group_key, unit
        if self._fd < 0 or place == self._now:
            return
        if place not in self._lines:
            self._lines[place] = self._add("begun", place, self._counts.get(place, 0) + 1)
        self._now = place
        self._point_at(self._lines[place])

    def end(self) -> None:
        """Note that what was begun has ended, if only in a failure that this process has seen: it counts no more."""
        if self._fd < 0 or not self._lines:
            return
        self._point_at(_NONE)
        for place in self._lines:
            if self._counts.pop(place, None):
                self._add("carried", place, 0)
        self._lines, self._now = {}, None

    def given_up(self, round_: int, group_key: str) -> list[Unit]:
        """The units of a group in a round that were begun twice and never ended."""
        return [
            unit for (r, key, unit), count in self._counts.items()
            if (r, key) == (round_, group_key) and count >= _MOST_TRIES
        ]  # fmt: skip

    def withdraw(self) -> None:
        """Remove the file, as at every orderly end; may be called by a signal's handler in the middle of any other."""
        if self._fd >= 0 and self._path is not None:
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the file, and note nothing more; may be called twice."""
        self.withdraw()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _add(self, kind: str, place: Place, count: int) -> int:
        """Append a line and wait until the disk has it; returns its number."""
        round_, key, unit = place
        line = {"kind": kind, "round": round_, "group": key, "unit": vars(unit), "count": count}
        os.pwrite(self._fd, json.dumps(line).encode() + b"\n", os.fstat(self._fd).st_size)
        os.fsync(self._fd)
        self._number += 1
        return self._number

    def _point_at(self, number: int) -> None:
        os.pwrite(self._fd, _POINTER % number, 0)


def _read(path: Path) -> dict[Place, int]:
    """Units with how often they were begun without an end; a torn or damaged line counts for none."""
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            pointer, *lines = file.read().split(b"\n")
    except OSError:
        return {}
    counts: dict[Place, int] = {}
    begun: dict[int, tuple[Place, int]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            data = json.loads(line)
            place, count = (int(data["round"]), str(data["group"]), decoded(Unit, data["unit"])), int(data["count"])
            if data["kind"] == "begun":
                begun[number] = place, count
            else:
                counts[place] = count
        except (ValueError, KeyError, TypeError):
            continue
    counts.update([begun[int(pointer)]] if pointer.isdigit() and int(pointer) in begun else [])
    return {place: count for place, count in counts.items() if count > 0}
