"""Rows of a task of a language model, written in this process."""

from __future__ import annotations

from collections.abc import Sequence

from hyperbench.measure.messages import Event, Message, Task
from hyperbench.measure.models import scoring
from hyperbench.measure.work_items import WorkItem
from hyperbench.measure.worker.clock import CpuClock
from hyperbench.measure.worker.settings import Settings
from hyperbench.store.schema import ErrorRow, Point
from tests.helpers.made_runs import tiny


def scored(points: Sequence[Point], seeds: tuple[int, ...] = (0, 1)) -> tuple[list[ErrorRow], bool]:
    """The rows that a task of these points writes, and whether it left the process unusable."""
    config = tiny("method=[math]").config
    items = tuple(WorkItem(point, point.method == "flash2", seeds=seeds) for point in points)
    messages: list[Message] = []
    task = Task(items, (), config.protocol, config.error, 0, None)
    made = scoring.Scoring(task, messages.append, CpuClock(), Settings())
    made.run()
    rows = [m.record for m in messages if m.event is Event.RECORD]
    assert all(isinstance(row, ErrorRow) for row in rows)
    return rows, made.poisoned  # type: ignore[return-value]
