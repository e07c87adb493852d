"""Finished and failed work items, read back from the journal. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hyperbench.config.types import ProtocolConfig
from hyperbench.measure import work_items
from hyperbench.measure.runner.worker_process import tells_of_a_crash
from hyperbench.store.schema import ErrorRow, Pass, Point, Record, Status, Timing

Hopeless = tuple[work_items.WorkItem, Status, str]


class History:
    """Progress of a run and what cannot work in it, from the records of earlier sessions and of this one."""

    def __init__(self, protocol: ProtocolConfig, records: Iterable[Record] = ()) -> None:
        self.progress = work_items.Progress(protocol)
        # What ran out of memory, by its kind: the whole of a point, or one of its parts alone.
        self._oom: dict[str, dict[str, Point]] = {"all": {}, "backward": {}, "stages": {}}
        self._refused: dict[tuple[str, str], tuple[Status, str]] = {}
        self._failed_backward: dict[tuple[str, int, str], tuple[Status, str]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Count a record."""
        self.progress.add(record)
        if record.status is Status.OOM:
            self._oom[_part_of(record)][record.point.point_id] = record.point
        if isinstance(record, Timing) and record.pass_ is not Pass.FORWARD and not record.status.has_timing:
            failed = record.point.point_id, record.round, str(record.pass_)
            self._failed_backward[failed] = record.status, record.message
        if isinstance(record, Timing) and not record.stage and _stays_so(record):
            self._refused[record.point.point_id, str(record.pass_)] = record.status, record.message

    def hopeless(self, items: Sequence[work_items.WorkItem]) -> list[Hopeless]:
        """What is not to be tried, with the status and the message that it gets; ask again when that is written.

        Passes that were wrong, hung or ended their worker in an earlier round, else what ran out of memory at a shorter
        point: all of the item, or, where the forward pass did not, its backward passes or its stages.
        """
        return self._refused_before(items) or self._too_large(items)

    def without_backward(
        self, items: Sequence[work_items.WorkItem], passes: Iterable[str], round_: int
    ) -> dict[str, tuple[Status, str]]:
        """The points, by id, of which every backward pass has failed in this round, each with how.

        None is to be called for the errors of its gradients alone.
        """
        backward = [str(p) for p in passes if p != Pass.FORWARD]
        found = {}
        for item in items:
            point_id = item.point.point_id
            failed = [self._failed_backward.get((point_id, round_, p)) for p in backward]
            if failed and failed[0] is not None and None not in failed:
                found[point_id] = failed[0]
        return found

    def _refused_before(self, items: Sequence[work_items.WorkItem]) -> list[Hopeless]:
        return [
            (item.only(passes=(pass_,)), *self._refused[place])
            for item in items
            for pass_ in item.passes
            if (place := (item.point.point_id, str(pass_))) in self._refused
        ]

    def _too_large(self, items: Sequence[work_items.WorkItem]) -> list[Hopeless]:
        found = []
        for item in items:
            parts = {
                "all": item,
                "backward": item.backward,
                "stages": item.only(stages=item.stages, timed_stages=item.timed_stages),
            }
            for name, part in parts.items():
                shorter = work_items.expects_skip(item.point, self._oom[name].values())
                if shorter is not None and not part.is_empty:
                    message = f"not tried: it ran out of memory at seq_len={shorter.seq_len}"
                    found.append((part, Status.SKIPPED_AFTER_OOM, message))
                    if name == "all":
                        break
        return found


def _part_of(record: Record) -> str:
    """The part of its point that a record is about: "backward" or "stages" if no more than those, else "all"."""
    if isinstance(record, Timing) and record.stage:
        return "stages"
    of_gradients = isinstance(record, ErrorRow) and record.metric in work_items.GRAD_METRICS
    of_a_pass = isinstance(record, Timing) and record.pass_ is not Pass.FORWARD
    return "backward" if of_gradients or of_a_pass else "all"


def _stays_so(record: Timing) -> bool:
    """True if a failure is one that another round would only pay for again.

    Later rounds have no reference to see a wrong answer by; a pass that hangs costs the limit each time.
    """
    crashed = record.status is Status.ERROR and tells_of_a_crash(record.message)
    return crashed or record.status in (Status.INCORRECT, Status.TIMEOUT)
