"""Messages between parent and worker: tasks one way, typed events the other, one JSON object per line. No torch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hyperbench.child.code import Code
from hyperbench.config.types import ErrorConfig, ProtocolConfig
from hyperbench.measure.work_items import Failure, WorkItem
from hyperbench.store.plain_data import decoded
from hyperbench.store.record_json import from_json, to_json
from hyperbench.store.schema import Pass, Record

#: No message is longer; the longest holds all samples of a pass.
MAX_LINE_BYTES = 1 << 25
_SHOWN_BYTES = 60
#: The exit code of a worker that can no longer write to its parent, or read from it.
LOST_PIPE = 79


class Event(StrEnum):
    """Kinds of messages that a worker sends."""

    #: It can take a task.
    READY = "ready"
    #: It begins a unit of work.
    BEGIN = "begin"
    #: A record is finished.
    RECORD = "record"
    #: The task is finished.
    DONE = "done"
    #: An error has left the device unusable in this process: the rest of the task is another worker's.
    LEAVE = "leave"
    #: It has stopped after the current sample, as it was asked to.
    STOPPED = "stopped"


class State(StrEnum):
    """States of a worker process; it is ended from any of them by its death, a timeout or its parent."""

    STARTING = "starting"
    READY = "ready"
    MEASURING = "measuring"
    ENDED = "ended"


#: The life of a worker process: the state after an event in a state. A task makes a ready worker a measuring one.
NEXT: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.READY): State.READY,
    (State.MEASURING, Event.BEGIN): State.MEASURING,
    (State.MEASURING, Event.RECORD): State.MEASURING,
    (State.MEASURING, Event.DONE): State.READY,
    (State.MEASURING, Event.LEAVE): State.ENDED,
    (State.MEASURING, Event.STOPPED): State.ENDED,
}


class Work(StrEnum):
    """Kinds of units of work; the first three are common to all points of a group."""

    #: Before a worker has said anything.
    START = "start"
    INPUTS = "inputs"
    REFERENCE = "reference"
    CHECK = "check"
    ERRORS = "errors"
    PREPARE = "prepare"
    TIME = "time"
    STAGES = "stages"


@dataclass(frozen=True)
class Unit:
    """A unit of work: the end of the worker is put down to the one that it began last."""

    work: Work
    point_id: str | None = None
    pass_: Pass | None = None
    stage: str = ""


@dataclass(frozen=True)
class Message:
    """An event of a worker, with the unit that begins, the finished record, or the code that a ready worker runs."""

    event: Event
    unit: Unit | None = None
    record: Record | None = None
    code: Code | None = None

    def to_json(self) -> dict[str, Any]:
        """The message as plain data."""
        return {
            "event": self.event,
            "unit": self.unit and dataclasses.asdict(self.unit),
            "record": self.record and to_json(self.record),
            "code": self.code and dataclasses.asdict(self.code),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Message:
        """The inverse of `to_json`. Raises NoMessageError on anything else."""
        try:
            record = data["record"]
            unit, code = decoded(Unit | None, data["unit"]), decoded(Code | None, data["code"])
            return cls(Event(data["event"]), unit, None if record is None else from_json(record), code)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise NoMessageError(data) from None


@dataclass(frozen=True)
class Task:
    """The work items of one group for a worker, and how they are to be measured.

    `without_backward` are the points, by id, whose backward pass is not to be called even for its errors, each with the
    failure that its gradients get. In an `isolated` task all items are of one method, and so are all of the process.
    """

    items: tuple[WorkItem, ...]
    passes: tuple[str, ...]
    protocol: ProtocolConfig
    error: ErrorConfig
    round: int
    threads: int | None
    no_reference: str = ""
    without_backward: Mapping[str, Failure] = field(default_factory=dict)
    isolated: bool = False

    def to_json(self) -> dict[str, Any]:
        """The task as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The inverse of `to_json`."""
        task: Task = decoded(cls, data)
        return task


def send(fd: int, message: Message | Task) -> None:
    """Write a message. Raises BrokenPipeError if nobody listens any more."""
    view = memoryview((json.dumps(message.to_json()) + "\n").encode())
    while view:
        view = view[os.write(fd, view) :]


class NoMessageError(ValueError):
    """Something in the pipe that is no message; the text shows its beginning, in ASCII."""

    def __init__(self, found: object) -> None:
        data = found if isinstance(found, bytes | bytearray) else json.dumps(found).encode()
        super().__init__(ascii(data[:_SHOWN_BYTES].decode(errors="replace")))


class Lines:
    """Bytes of a pipe cut into lines of JSON; a torn last one, left by a process that was killed, never comes out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The lines that are complete with these bytes. Raises NoMessageError on one that is no JSON, or too long."""
        first, *others = data.split(b"\n")
        self._buffer += first
        if len(self._buffer) > MAX_LINE_BYTES:
            raise NoMessageError(self._buffer)
        for part in others:
            line, self._buffer = self._buffer, bytearray(part)
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                raise NoMessageError(line) from None
            yield found
