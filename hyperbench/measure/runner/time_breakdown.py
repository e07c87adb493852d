"""Where the time of a run goes: what is spent on measuring, and what on everything around it. No torch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from hyperbench.store.schema import Record, Timing

#: Parts of a run's time that are measuring; all others are overhead.
PRODUCTIVE = ("samples", "stages", "errors")


class Account:
    """Splits the time since `began_s` into named parts, all of it: there is always one part that the time goes to.

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
        """From now on time goes to `part`."""
        now_s = self._now_s()
        self._spent_s[self._part] += now_s - self._since_s
        self._since_s, self._part = now_s, part

    def sampled(self, record: Record) -> None:
        """Time that went to `sampling` was that of calls, as far as the record has them."""
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


def part_of(unit: str) -> str:
    """The part of the time that a worker's unit of work belongs to."""
    known = {"inputs": "inputs", "reference": "errors", "errors": "errors", "check": "checks", "stages": "stages"}
    return known.get(unit, "sampling")
