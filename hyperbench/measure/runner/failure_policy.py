"""Failure policy: which work items to blame for a dead worker, so that the next one does not meet the same end.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyperbench.measure import work_items
from hyperbench.measure.runner.worker_process import WorkerGone
from hyperbench.store.schema import Pass, Status

#: What a worker said last that it begins: `unit`, and the `point_id`, `pass` and `stage` it belongs to.
Unit = dict[str, Any]
#: Before a worker has said anything.
START: Unit = {"unit": "start", "point_id": None}
_SIGKILL = -9
#: Units that all points of a group have in common.
_COMMON = ("start", "inputs", "reference")
#: Units of the gate.
_CHECKS = ("check", "errors")


class FailurePolicy:
    """Decisions about the ends of workers; `no_reference` says by the key of a group why it has no reference."""

    def __init__(self) -> None:
        self.no_reference: dict[str, str] = {}
        self._killed: set[tuple[Any, ...]] = set()

    def may_be_no_fault(self, gone: WorkerGone, round_: int, unit: Unit) -> bool:
        """True if a worker was killed at this for the first time, and not by the kernel: it is then tried once more."""
        if gone.returncode != _SIGKILL or gone.out_of_memory:
            return False
        place = (round_, *(unit.get(key) for key in ("unit", "point_id", "pass", "stage")))
        is_first = place not in self._killed
        self._killed.add(place)
        return is_first

    def blamed(
        self, group: work_items.Group, items: Sequence[work_items.WorkItem], unit: Unit, message: str
    ) -> Sequence[work_items.WorkItem]:
        """Choose the work items that are given up; none where it is enough to do without a reference."""
        if unit["unit"] == "reference" and group.key not in self.no_reference:
            self.no_reference[group.key] = f"no reference: {message}"
            return ()
        if unit["unit"] in _COMMON:
            return items
        blamed = [item for item in items if item.point.point_id == unit["point_id"]]
        if unit["unit"] in _CHECKS and unit.get("pass") == Pass.BACKWARD:
            # The forward pass went through its check; the next worker is not asked for a backward one.
            blamed = [item.backward for item in blamed if not item.backward.is_empty] or blamed
        # A worker that dies with nothing left to blame would be started for ever.
        return blamed or items

    @staticmethod
    def silent(items: Sequence[work_items.WorkItem], unit: Unit) -> Sequence[work_items.WorkItem]:
        """Choose the work items that are given up when a worker has left without a row: those of its last unit."""
        return [item for item in items if item.point.point_id == unit["point_id"]] or items


def status_of(gone: WorkerGone) -> Status:
    """The status of what a worker was doing when it went; one that was killed most likely took too much memory."""
    return Status.OOM if gone.returncode == _SIGKILL else Status.ERROR
