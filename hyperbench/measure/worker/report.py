"""Report of a worker on its task: the unit that begins, and the records of what it measured or could not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hyperbench.flops import exact_flops
from hyperbench.measure import work_items
from hyperbench.measure.messages import Event, Message, Task, Unit, Work
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.measure.worker.failures import classify, poisons_device
from hyperbench.measure.worker.subject import Subject
from hyperbench.measure.worker.timing.passes import TimedCall
from hyperbench.store.schema import Pass, Point, Record, Status, Timing

Emit = Callable[[Message], object]


class Report:
    """The records of one task, sent through `emit` as they are finished.

    `poisoned` tells that an error that was classified left the device unusable in this process.
    """

    def __init__(self, task: Task, emit: Emit, machine: Machine) -> None:
        self._task = task
        self._emit = emit
        self._machine = machine
        self.poisoned = False

    def begin(self, work: Work, point: Point, pass_: Pass | None = None, stage: str = "") -> None:
        """Say that a unit of work begins: the end of the worker from now on is put down to it."""
        self._emit(Message(Event.BEGIN, Unit(work, point.point_id, pass_, stage)))

    def write(self, record: Record) -> None:
        """Send a finished record."""
        self._emit(Message(Event.RECORD, record=record))

    def classify(self, error: Exception, subject: Subject) -> tuple[Status, str]:
        """The status and the message that an error of a subject's code stands for."""
        status, message = classify(error)
        self.poisoned = self.poisoned or poisons_device(status, subject.point.device)
        return status, message

    def fail(self, item: work_items.WorkItem, status: Status, message: str) -> None:
        """Write a failed row for everything that is left to do of a point."""
        task = self._task
        for record in work_items.failed_records(
            item, task.passes, task.error, task.protocol.name, task.round, work_items.Failure(status, message)
        ):
            self.write(record)

    def timing(
        self, subject: Subject, pass_: Pass, timed: TimedCall, stage: str = "", all_stages: tuple[str, ...] = ()
    ) -> None:
        """Write the timing of a pass or of a stage of it, or how it failed."""
        failure = timed.failure()
        if failure is not None:
            self.failed_timing(subject, pass_, *self.classify(failure, subject), stage, all_stages)
            return
        point, sampler = subject.point, timed.sampler
        conditions = {**self._machine.fixed, **timed.facts, **timed.conditions.summary()}
        of_pass: dict[str, Any] = {}
        if stage:
            judged, note = timed.judge(), ""
        else:
            executed_flops = subject.method.executed_flops(point, pass_, subject.item.exact)
            judged = timed.judge(executed_flops, self._machine.peak_flops_per_s(point.dtype))
            note = subject.method.note(point)
            of_pass = {
                "peak_memory_bytes": subject.peaks.get(pass_),
                "exact_equivalent_flops": exact_flops(point, pass_),
                "executed_flops": executed_flops,
                "first_call_ms": subject.first_ms.get(pass_),
                "memory_before_bytes": subject.levels.get(pass_),
            }
            if (Pass.FORWARD if pass_ is Pass.FORWARD else Pass.BACKWARD) in subject.unlooked:
                conditions["properties_at_point"] = "skipped"
        self._write_timing(
            subject,
            pass_,
            judged.status,
            stop_reason=sampler.stop_reason,
            samples_ms=tuple(sampler.samples_ms),
            warmup_ms=tuple(sampler.warmup_ms),
            message="; ".join(filter(None, (note, sampler.note, *judged.notes))),
            host_ms=judged.host_ms,
            flags=judged.flags,
            conditions=conditions,
            stage=stage,
            all_stages=all_stages,
            **of_pass,
        )

    def failed_timing(
        self,
        subject: Subject,
        pass_: Pass,
        status: Status,
        message: str,
        stage: str = "",
        all_stages: tuple[str, ...] = (),
    ) -> None:
        """Write that a pass, or a stage of it, could not be timed."""
        self._write_timing(subject, pass_, status, message=message, stage=stage, all_stages=all_stages)

    def _write_timing(self, subject: Subject, pass_: Pass, status: Status, **fields: Any) -> None:
        point, task = subject.point, self._task
        name = subject.method.implementation(point.device, point)
        self.write(Timing(point, pass_, task.protocol.name, task.round, status, implementation=name, **fields))
