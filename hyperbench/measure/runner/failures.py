"""Failure policy: which work items are given up for a dead worker, and which are not tried again. No torch."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence

from hyperbench.config.types import ProtocolConfig
from hyperbench.measure.messages import Unit, Work
from hyperbench.measure.runner.interrupts import ASKING
from hyperbench.measure.runner.worker_process import WorkerGone
from hyperbench.measure.work_items import GRAD_METRICS, Failure, Group, Progress, WorkItem, expects_skip
from hyperbench.store.schema import Cause, ErrorRow, Pass, Point, Record, Status, Timing

#: Signals that others send to a process to end it; a process that fails by itself gets others.
KILLING = (signal.SIGKILL, *ASKING)


class FailurePolicy:
    """Decisions about the ends of workers; `no_reference` says by the key of a group why it has no reference."""

    def __init__(self) -> None:
        self.no_reference: dict[str, str] = {}
        self._killed: set[tuple[int, Unit, str]] = set()

    def may_be_no_fault(self, gone: WorkerGone, round_: int, unit: Unit, key: str = "") -> bool:
        """True if a worker was killed at this for the first time, and not by the kernel: it is then tried once more.

        So too if it ended before it had said anything of the task of a group (`key`): what it did before may be why.
        """
        was_killed = -gone.returncode in KILLING and not gone.out_of_memory and not gone.reason
        if not was_killed and not (unit.work is Work.START and key):
            return False
        is_first = (round_, unit, key) not in self._killed
        self._killed.add((round_, unit, key))
        return is_first

    def given_up(self, group: Group, items: Sequence[WorkItem], unit: Unit, message: str) -> Sequence[WorkItem]:
        """Choose the work items that are given up; none where it is enough to do without a reference."""
        if unit.work is Work.REFERENCE and group.key not in self.no_reference:
            self.no_reference[group.key] = f"no reference: {message}"
            return ()
        if unit.work in (Work.START, Work.INPUTS, Work.REFERENCE):
            return items
        found = _at(items, unit)
        if unit.work in (Work.CHECK, Work.ERRORS) and unit.pass_ is Pass.BACKWARD:
            # The forward pass went through its check; the next worker is not asked for a backward one.
            found = [item.backward for item in found if not item.backward.is_empty] or found
        # A worker that dies with nothing to give up would be started for ever.
        return found or items

    @staticmethod
    def is_left(items: Sequence[WorkItem], unit: Unit) -> bool:
        """True if a unit, or what it is common to, is still to be done."""
        return bool(items if unit.work in (Work.INPUTS, Work.REFERENCE) else _at(items, unit))

    @staticmethod
    def silent(items: Sequence[WorkItem], unit: Unit) -> Sequence[WorkItem]:
        """Choose the work items that are given up when a worker has left without a row: those of its last unit."""
        return _at(items, unit) or items


def failure_of(gone: WorkerGone) -> Failure:
    """The failure of what a worker was doing when it ended; one that was killed most likely took too much memory."""
    if gone.returncode == -signal.SIGKILL and not gone.reason:
        return Failure(Status.OOM, str(gone), Cause.KILL)
    return Failure(Status.ERROR, str(gone), Cause.CRASH)


class History:
    """Progress of a run and what cannot work in it, from the records of earlier sessions and of this one."""

    def __init__(self, protocol: ProtocolConfig, records: Iterable[Record] = ()) -> None:
        self.progress = Progress(protocol)
        # What ran out of memory, by its kind: the whole of a point, or one of its parts alone.
        self._oom: dict[str, dict[str, Point]] = {"all": {}, "backward": {}, "stages": {}}
        self._refused: dict[tuple[str, Pass], Failure] = {}
        self._failed_backward: dict[tuple[str, int, Pass], Failure] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a record."""
        self.progress.add(record)
        point_id = record.point.point_id
        if record.status is Status.OOM:
            self._oom[_part_of(record)][point_id] = record.point
        if isinstance(record, Timing) and not record.stage and not record.status.has_timing:
            failure = Failure(record.status, record.message, record.cause)
            if record.pass_ is not Pass.FORWARD:
                self._failed_backward[point_id, record.round, record.pass_] = failure
            if _stays_so(failure):
                self._refused[point_id, record.pass_] = failure

    def hopeless(self, items: Sequence[WorkItem]) -> list[tuple[WorkItem, Failure]]:
        """Work items not to be tried, with the failure that it gets; ask again when that is written.

        Passes that were wrong, hung or ended their worker in an earlier round, else what ran out of memory at a shorter
        point: all of the item, or, where the forward pass did not, its backward passes or its stages.
        """
        return self._refused_before(items) or self._too_large(items)

    def without_backward(self, items: Sequence[WorkItem], passes: Iterable[str], round_: int) -> dict[str, Failure]:
        """The points, by id, of which every backward pass has failed in this round, each with how.

        None is to be called for the errors of its gradients alone.
        """
        backward = [Pass(p) for p in passes if p != Pass.FORWARD]
        found = {}
        for point_id in (item.point.point_id for item in items):
            failed = [self._failed_backward.get((point_id, round_, p)) for p in backward]
            if failed and failed[0] is not None and None not in failed:
                found[point_id] = failed[0]
        return found

    def _refused_before(self, items: Sequence[WorkItem]) -> list[tuple[WorkItem, Failure]]:
        return [
            (item.only(passes=(pass_,)), self._refused[place])
            for item in items
            for pass_ in item.passes
            if (place := (item.point.point_id, pass_)) in self._refused
        ]

    def _too_large(self, items: Sequence[WorkItem]) -> list[tuple[WorkItem, Failure]]:
        found = []
        for item in items:
            parts = {
                "all": item,
                "backward": item.backward,
                "stages": item.only(stages=item.stages, timed_stages=item.timed_stages),
            }
            for name, part in parts.items():
                shorter = expects_skip(item.point, self._oom[name].values())
                if shorter is not None and not part.is_empty:
                    message = f"not tried: it ran out of memory at seq_len={shorter.seq_len}"
                    found.append((part, Failure(Status.SKIPPED_AFTER_OOM, message)))
                    if name == "all":
                        break
        return found


def _at(items: Sequence[WorkItem], unit: Unit) -> list[WorkItem]:
    return [item for item in items if item.point.point_id == unit.point_id]


def _part_of(record: Record) -> str:
    """The part of its point that a record is about: "backward" or "stages" if no more than those, else "all"."""
    if isinstance(record, Timing) and record.stage:
        return "stages"
    of_gradients = isinstance(record, ErrorRow) and record.metric in GRAD_METRICS
    of_a_pass = isinstance(record, Timing) and record.pass_ is not Pass.FORWARD
    return "backward" if of_gradients or of_a_pass else "all"


def _stays_so(failure: Failure) -> bool:
    """True if a failure is one that another round would only pay for again.

    Later rounds have no reference to see a wrong answer by; a pass that hangs costs the limit each time.
    """
    return failure.cause is Cause.CRASH or failure.status in (Status.INCORRECT, Status.TIMEOUT)
