"""Outcome of a run: progress while it goes on, rows written, and where its time went. No torch."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from hyperbench.measure.messages import Work
from hyperbench.store.run_folder import Run
from hyperbench.store.schema import Record, Status, Timing

#: Rows that are no failure; `unsupported` is an answer.
GOOD_STATUSES = (Status.OK, Status.THROTTLED, Status.UNSUPPORTED)
#: Parts of a run's time that are measuring; all others are overhead.
PRODUCTIVE = ("samples", "stages", "errors")


class Listener(Protocol):
    """Receiver of a run's progress."""

    def begin(self, label: str) -> None:
        """Take the label of a new piece of work."""
        ...

    def finished(self, cost_s: float) -> None:
        """Take the estimated cost of a part of a point that is done."""
        ...

    def row(self, record: Record) -> None:
        """Take a record that has been written."""
        ...


@dataclass
class Outcome:
    """Rows that a run has written, by status, those of stages apart, and whether it was interrupted.

    `records` are all of the run, of earlier sessions too, `run` is made of them in the end; `time` is the report of the
    TimeBreakdown.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    stage_statuses: Counter[str] = field(default_factory=Counter)
    time: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    run: Run = field(init=False)


class TimeBreakdown:
    """Time since `began_s`, all of it, in named parts: there is always one part that the time goes to.

    The parts: `prepare` (composing the grid, asking PyTorch what is here), `workers` (starting and ending processes),
    `inputs`, `errors` (the reference, the calls whose answers are compared with it, and the comparison), `checks` (all
    else that a method must show before it is timed), `samples` (warm-up and samples, as the records have them),
    `stages` (their stretches as a whole), `sampling` (the rest of the time in which a pass was timed), `tables`.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic, began_s: float | None = None) -> None:
        self._now_s = now_s
        self.began_s = now_s() if began_s is None else began_s
        self._since_s = self.began_s
        self._part = "prepare"
        self._spent_s: defaultdict[str, float] = defaultdict(float)

    def switch(self, part: str) -> None:
        """Count the time from now on to `part`."""
        now_s = self._now_s()
        self._spent_s[self._part] += now_s - self._since_s
        self._since_s, self._part = now_s, part

    def sampled(self, record: Record) -> None:
        """Move the calls of a record from `sampling` to `samples`."""
        if isinstance(record, Timing) and not record.stage:
            timed_s = (sum(record.samples_ms) + sum(record.warmup_ms)) / 1e3
            self._spent_s["sampling"] -= timed_s
            self._spent_s["samples"] += timed_s

    def report(self) -> dict[str, Any]:
        """`wall_s`, its parts in `spent_s`, the largest first, and `overhead`, the part of it that is no measuring."""
        self.switch(self._part)
        wall_s = self._since_s - self.began_s
        by_size = sorted(self._spent_s.items(), key=lambda item: -item[1])
        measured_s = sum(self._spent_s.get(part, 0.0) for part in PRODUCTIVE)
        return {
            "wall_s": round(wall_s, 3),
            "overhead": round(1.0 - measured_s / wall_s, 4) if wall_s > 0 else 0.0,
            "spent_s": {part: round(spent_s, 3) for part, spent_s in by_size},
        }


def part_of(work: Work) -> str:
    """The part of the time that a worker's unit of work belongs to."""
    parts = {Work.INPUTS: "inputs", Work.REFERENCE: "errors", Work.ERRORS: "errors", Work.CHECK: "checks",
             Work.STAGES: "stages"}  # fmt: skip
    return parts.get(work, "sampling")
