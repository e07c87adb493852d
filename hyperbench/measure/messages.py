"""What parent and worker say to each other: one JSON object per line over a pair of pipes. No torch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hyperbench.config.types import ErrorConfig, ProtocolConfig
from hyperbench.measure.work_items import WorkItem
from hyperbench.store.schema import Pass, Point, Status


@dataclass(frozen=True)
class Task:
    """The work items of one group for a worker, and how they are to be measured.

    `without_backward` are the points, by id, whose backward pass is not to be called even for its errors, each with the
    status and the message that its gradients get.
    """

    items: tuple[WorkItem, ...]
    passes: tuple[str, ...]
    protocol: ProtocolConfig
    error: ErrorConfig
    round: int
    threads: int | None
    no_reference: str = ""
    without_backward: Mapping[str, tuple[Status, str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The task as plain data."""
        return {
            "items": [{**vars(item), "point": item.point.as_dict()} for item in self.items],
            "passes": list(self.passes),
            "protocol": dataclasses.asdict(self.protocol),
            "error": dataclasses.asdict(self.error),
            "round": self.round,
            "threads": self.threads,
            "no_reference": self.no_reference,
            "without_backward": {point_id: [str(s), m] for point_id, (s, m) in self.without_backward.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """The inverse of `to_json`."""
        items = tuple(
            WorkItem(
                Point.from_dict(item["point"]),
                item["exact"],
                tuple(Pass(p) for p in item["passes"]),
                tuple(item["seeds"]),
                item["stages"],
                tuple(item["timed_stages"]),
            )
            for item in data["items"]
        )
        return cls(
            items=items,
            passes=tuple(data["passes"]),
            protocol=ProtocolConfig(**data["protocol"]),
            error=ErrorConfig(**data["error"]),
            round=data["round"],
            threads=data["threads"],
            no_reference=data["no_reference"],
            without_backward={point_id: (Status(s), m) for point_id, (s, m) in data["without_backward"].items()},
        )


def send(fd: int, message: dict[str, Any]) -> None:
    """Write one message. Raises BrokenPipeError if nobody listens any more."""
    view = memoryview((json.dumps(message) + "\n").encode())
    while view:
        view = view[os.write(fd, view) :]


class Lines:
    """Cuts the bytes of a pipe into messages; a torn last one, left by a process that was killed, never comes out."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The messages that are complete with these bytes."""
        *complete, self._buffer = (self._buffer + data).split(b"\n")
        for line in complete:
            yield json.loads(line)
