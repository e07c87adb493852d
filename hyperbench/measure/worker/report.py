"""What a worker says of its task: what it begins with, and the records of what it has measured or could not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hyperbench.flops import exact_flops
from hyperbench.measure import work_items
from hyperbench.measure.messages import Task
from hyperbench.measure.worker.conditions.surroundings import Surroundings
from hyperbench.measure.worker.failures import classify, poisons_device
from hyperbench.measure.worker.subject import Subject
from hyperbench.measure.worker.timing.passes import TimedCall
from hyperbench.store.record_json import to_json
from hyperbench.store.schema import Pass, Point, Record, Status, Timing

Emit = Callable[[dict[str, Any]], object]


class Report:
    """The records of one task, sent through `emit` as they are finished.

    `poisoned` tells that an error that was classified left the device unusable in this process.
    """

    def __init__(self, task: Task, emit: Emit, surroundings: Surroundings) -> None:
        self._task = task
        self._emit = emit
        self._surroundings = surroundings
        self.poisoned = False

    def begin(self, unit: str, point: Point, pass_: Pass | None = None, stage: str = "") -> None:
        """A unit of work begins: what becomes of the worker from now on is put down to it."""
        part = pass_ and str(pass_)
        self._emit({"event": "begin", "unit": unit, "point_id": point.point_id, "pass": part, "stage": stage})

    def write(self, record: Record) -> None:
        """A record is finished."""
        self._emit({"event": "record", "record": to_json(record)})

    def classify(self, error: Exception, subject: Subject) -> tuple[Status, str]:
        """The status and the message that an error of a subject's code stands for."""
        status, message = classify(error)
        self.poisoned = self.poisoned or poisons_device(status, subject.point.device)
        return status, message

    def fail(self, item: work_items.WorkItem, status: Status, message: str) -> None:
        """Write a failed row for everything that is left to do of a point."""
        task = self._task
        for record in work_items.failed_records(
            item, task.passes, task.error, task.protocol.name, task.round, status, message
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
        of_pass: dict[str, Any] = {}
        if stage:
            judged, note = timed.judge(), ""
        else:
            executed_flops = subject.method.executed_flops(point, pass_, subject.item.exact)
            judged = timed.judge(executed_flops, self._surroundings.peak_flops_per_s(point.dtype))
            note = subject.method.note(point)
            of_pass = {
                "peak_memory_bytes": subject.peaks.get(pass_),
                "exact_equivalent_flops": exact_flops(point, pass_),
                "executed_flops": executed_flops,
                "first_call_ms": subject.first_ms.get(pass_),
                "memory_before_bytes": subject.levels.get(pass_),
            }
        self.write(
            Timing(
                point=point,
                pass_=pass_,
                protocol=self._task.protocol.name,
                round=self._task.round,
                status=judged.status,
                implementation=subject.method.implementation(point.device, point),
                stop_reason=sampler.stop_reason,
                samples_ms=tuple(sampler.samples_ms),
                warmup_ms=tuple(sampler.warmup_ms),
                message="; ".join(filter(None, (note, sampler.note, *judged.notes))),
                host_ms=judged.host_ms,
                flags=judged.flags,
                conditions={**self._conditions(timed), **({} if stage else _looked(subject, pass_))},
                stage=stage,
                all_stages=all_stages,
                **of_pass,
            )
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
        point, task = subject.point, self._task
        self.write(
            Timing(
                point=point,
                pass_=pass_,
                protocol=task.protocol.name,
                round=task.round,
                status=status,
                implementation=subject.method.implementation(point.device, point),
                message=message,
                stage=stage,
                all_stages=all_stages,
            )
        )

    def _conditions(self, timed: TimedCall) -> dict[str, Any]:
        return {**self._surroundings.fixed, **timed.facts, **timed.conditions.summary()}


def _looked(subject: Subject, pass_: Pass) -> dict[str, Any]:
    """That the properties were not looked for at the point itself, where they were to be."""
    look = Pass.FORWARD if pass_ is Pass.FORWARD else Pass.BACKWARD
    return {"properties_at_point": "skipped"} if look in subject.unlooked else {}
