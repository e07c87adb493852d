"""Report of a worker on its task: the unit that begins, and the records of what it measured or could not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hyperbench.flops import exact_flops
from hyperbench.measure import work_items
from hyperbench.measure.messages import Event, Message, Task, Unit, Work
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.measure.worker.errors.rows import Estimate
from hyperbench.measure.worker.failures import classify, poisons_device
from hyperbench.measure.worker.settings import Settings, SettingsError
from hyperbench.measure.worker.subject import Subject
from hyperbench.measure.worker.timing.passes import TimedCall
from hyperbench.store.schema import ErrorRow, Flag, Pass, Point, Record, Status, Timing

Emit = Callable[[Message], object]


@dataclass
class Report:
    """The records of one task, sent through `emit` as they are finished."""

    task: Task
    emit: Emit
    machine: Machine
    settings: Settings
    #: An error that was classified left the device unusable in this process.
    poisoned: bool = False

    def begin(self, work: Work, point: Point, pass_: Pass | None = None, stage: str = "") -> None:
        """Say that a unit of work begins: the end of the worker from now on is put down to it."""
        self.emit(Message(Event.BEGIN, Unit(work, point.point_id, pass_, stage)))

    def write(self, record: Record) -> None:
        """Send a finished record."""
        self.emit(Message(Event.RECORD, record=record))

    def classify(self, error: Exception, subject: Subject) -> tuple[Status, str]:
        """The status and the message that an error of a subject's code stands for."""
        status, message = classify(error)
        spoilt = isinstance(error, SettingsError) and not error.restored
        self.poisoned = self.poisoned or spoilt or poisons_device(status, subject.point.device)
        return status, message

    def fail(self, item: work_items.WorkItem, status: Status, message: str) -> None:
        """Write a failed row for everything that is left to do of a point."""
        task, failure = self.task, work_items.Failure(status, message)
        for record in work_items.failed_records(item, task.passes, task.error, task.protocol.name, task.round, failure):
            self.write(record)

    def timing(
        self, subject: Subject, pass_: Pass, timed: TimedCall, stage: str = "", all_stages: tuple[str, ...] = ()
    ) -> None:
        """Write the timing of a pass or of a stage of it, or how it failed."""
        failure = timed.failure()
        if failure is not None:
            failed = self.classify(failure, subject)
            self.write_timing(subject, pass_, *failed, stage=stage, all_stages=all_stages)
            return
        point, sampler = subject.point, timed.sampler
        conditions = {**self.machine.fixed, **timed.facts, **timed.conditions.summary()}
        if own := self.settings.own:
            conditions["threads"] = torch.get_num_threads()
            conditions["settings"] = ", ".join(f"{name}={value}" for name, value in own.items())
        of_pass: dict[str, Any] = {}
        if stage:
            judged, note = timed.judge(), ""
        else:
            executed_flops = subject.method.executed_flops(point, pass_, subject.item.exact)
            judged = timed.judge(executed_flops, self.machine.peak_flops_per_s(point.dtype))
            note = subject.method.note(point)
            of_pass = {
                "exact_equivalent_flops": exact_flops(point, pass_),
                "executed_flops": executed_flops,
                "first_call_ms": subject.first_ms.get(pass_),
                "setup_ms": subject.setup_ms,
            }
            if cost := subject.costs.get(pass_):
                of_pass |= {
                    "peak_memory_bytes": cost.peak_bytes,
                    "memory_before_bytes": cost.before_bytes,
                    "resident_peak_bytes": cost.resident_peak_bytes,
                }
            if (Pass.FORWARD if pass_ is Pass.FORWARD else Pass.BACKWARD) in subject.unlooked:
                conditions["properties_at_point"] = "skipped"
        self.write_timing(
            subject,
            pass_,
            judged.status,
            "; ".join(filter(None, (note, sampler.note, *judged.notes))),
            stop_reason=sampler.stop_reason,
            samples_ms=tuple(sampler.samples_ms),
            warmup_ms=tuple(sampler.warmup_ms),
            host_ms=judged.host_ms,
            flags=(*judged.flags, *([Flag.LEAKS] if subject.leak else [])),
            conditions=conditions,
            stage=stage,
            all_stages=all_stages,
            **of_pass,
        )

    def write_timing(self, subject: Subject, pass_: Pass, status: Status, message: str, **fields: Any) -> None:
        """Write a timing; without `samples_ms` it says that the pass, or the stage of it, could not be timed."""
        point, protocol = subject.point, self.task.protocol.name
        name = subject.method.implementation(point.device, point)
        self.write(
            Timing(point, pass_, protocol, self.task.round, status, message=message, implementation=name, **fields)
        )

    def write_errors(self, subject: Subject, seed: int, errors: Mapping[str, Estimate]) -> None:
        """Write the errors of one seed of the draw, and rows without a number for gradients that failed."""
        for metric, value in errors.items():
            self.write(
                ErrorRow(
                    subject.point, seed, metric, float(value), low=value.low, high=value.high,
                    message=f"leaks: {subject.leak}" if subject.leak else "",
                )
            )  # fmt: skip
        failed = subject.failed.get(Pass.FORWARD_BACKWARD)
        if failed is None:
            return
        for metric in work_items.expected_metrics(subject.point, self.task.passes, self.task.error):
            if metric in work_items.GRAD_METRICS and metric not in errors:
                self.write(ErrorRow(subject.point, seed, metric, None, *failed))
