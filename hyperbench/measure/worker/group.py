"""Measure one group of points in this process: reference, checks and errors of each, then the passes in turns."""

from __future__ import annotations

import dataclasses
import gc
from functools import partial

import torch

from hyperbench.measure import work_items
from hyperbench.measure.inputs import make_grad_output, make_inputs
from hyperbench.measure.messages import Task, Work
from hyperbench.measure.methods import method as registry
from hyperbench.measure.worker.calls import as_leaves, gradients
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.extra import ExtraErrors
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from hyperbench.measure.worker.errors.rows import Estimate
from hyperbench.measure.worker.failures import classify
from hyperbench.measure.worker.gate.gate import Gate, slow_after_s
from hyperbench.measure.worker.memory import MemoryPeak
from hyperbench.measure.worker.report import Emit, Report
from hyperbench.measure.worker.settings import KeepingClock, Settings, SettingsError
from hyperbench.measure.worker.stage_timing import StageMeasurement
from hyperbench.measure.worker.subject import GroupInputs, Subject
from hyperbench.measure.worker.timing.passes import TimedCall, prepare_pass, take_turns
from hyperbench.store.schema import Pass, Status

_BACKWARD = (Pass.BACKWARD, Pass.FORWARD_BACKWARD)


class _Poisoned(Exception):
    """An error left the device unusable: what has not been written is another worker's."""


class GroupMeasurement:
    """One task; `run` writes its records through `emit` as they are finished."""

    def __init__(
        self,
        task: Task,
        emit: Emit,
        clock: Clock,
        memory_peak: MemoryPeak,
        machine: Machine | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._task = task
        self._settings = settings or Settings()
        self._settings.isolated = task.isolated
        self._clock = KeepingClock(clock, self._settings)
        self._memory_peak = memory_peak
        self._machine = machine or Machine()
        self._report = Report(task, emit, self._machine, self._settings)
        self._no_reference = task.no_reference
        # By the seed with which rows were drawn.
        self._references: dict[int, Reference] = {}
        self._context: dict[int, dict[str, Estimate]] = {}
        # By the layout of the methods that they check.
        self._gates: dict[str, Gate] = {}
        self._extra = ExtraErrors(task.error)

    @property
    def poisoned(self) -> bool:
        """True if an error left the device unusable in this process: `run` ended early, the rest is still to do."""
        return self._report.poisoned

    def run(self) -> None:
        """Measure everything the task asks for; whatever the measured code raises becomes rows."""
        subjects = [s for s in map(self._subject, self._task.items) if s is not None]
        if not subjects or self.poisoned:
            return
        point = subjects[0].point
        self._report.begin(Work.INPUTS, point)
        try:
            with self._settings.standard():
                given = GroupInputs(point, make_inputs(point), make_grad_output(point))
        except Exception as error:  # most likely too large for the memory
            for subject in subjects:
                self._report.fail(subject.item, *self._report.classify(error, subject))
            return
        if any(s.item.seeds for s in subjects) and not self._no_reference:
            self._report.begin(Work.REFERENCE, point)
            try:
                given = dataclasses.replace(given, reference=self._make_reference(given, point.seed))
            except Exception as error:  # times can be taken without it
                self._no_reference = f"no reference: {self._report.classify(error, subjects[0])[1]}"
                if self.poisoned:
                    raise
            _release()
        passing = []
        for subject in subjects:
            self._report.begin(Work.CHECK, subject.point)
            try:
                self._check(subject, given, self._gate(subject, given))
                passing.append(subject)
            except Exception as error:  # of the measured code
                self._report.fail(subject.item, *self._report.classify(error, subject))
            _release()
            if self.poisoned:
                return
        for pass_ in map(Pass, self._task.passes):
            try:
                self._time(pass_, [(s, self._gate(s, given)) for s in passing if pass_ in s.item.passes])
            except _Poisoned:
                return
            _release()
        # Last, so that stages that crash take no time of a pass with them.
        for subject in passing:
            if subject.item.stages and not self.poisoned:
                protocol, around = self._task.protocol, self._machine
                stages = StageMeasurement(subject, self._clock, protocol, around, self._report)
                stages.run(self._gate(subject, given).given.inputs)
                _release()

    def _subject(self, item: work_items.WorkItem) -> Subject | None:
        point = item.point
        try:
            with self._settings.kept(point.target):
                method = registry.find(point.target, item.options)
                reason = method.why_unsupported(point.device, point.dtype)
                if reason is None and point.is_causal and not method.has_causal_form:
                    reason = f"{point.method} has no causal form"
        except SettingsError as error:
            self._report.fail(item, Status.INCORRECT, str(error))
            self._report.poisoned = self._report.poisoned or not error.restored
            return None
        except ValueError as error:  # there is no such function, or a package that it needs is missing
            self._report.fail(item, Status.ERROR, str(error))
            return None
        except Exception as error:  # of the measured code
            self._report.fail(item, *classify(error))
            return None
        if reason is None:
            return Subject(item, method)
        self._report.fail(item, Status.UNSUPPORTED, reason)
        return None

    def _gate(self, subject: Subject, given: GroupInputs) -> Gate:
        """The gate of a subject: that of its layout, with the inputs as that has them."""
        layout = subject.method.layout
        if layout not in self._gates:
            self._gates[layout] = Gate(
                given.arranged(layout), self._memory_peak, self._clock, slow_after_s(self._task.protocol),
                self._report.begin,
            )  # fmt: skip
        return self._gates[layout]

    def _make_reference(self, given: GroupInputs, seed: int) -> Reference:
        """The reference; where it is of a part of the rows, these are drawn with the seed."""
        point, error = given.point, self._task.error
        in_float64 = point.dtype == "float64" or point.seq_len <= error.float64_max_seq_len
        with self._settings.standard():
            reference = make_reference(
                given.inputs,
                given.grad_output if work_items.wants_grads(point, self._task.passes, error) else None,
                is_causal=point.is_causal,
                num_rows=error.rows,
                dtype=torch.float64 if in_float64 else torch.float32,
                operator_norm=point.seq_len <= error.operator_norm_max_seq_len,
                seed=seed,
            )
            trivial = accuracy.trivial_errors(given.inputs, reference, point.is_causal)
            self._context[seed] = trivial | self._extra.of_input(point, given.inputs, reference.out.dtype)
        self._references[seed] = reference
        return reference

    def _reference_of(self, seed: int, given: GroupInputs) -> tuple[Reference, dict[str, Estimate]]:
        """The reference for one seed of the draw, and the errors of trivial answers by it; drawn rows are its own."""
        assert given.reference is not None
        drawn = seed if given.reference.rows.weights is not None else given.point.seed
        reference = self._references.get(drawn) or self._make_reference(given, drawn)
        return reference, self._context[drawn]

    def _check(self, subject: Subject, given: GroupInputs, gate: Gate) -> None:
        """Take a subject through the gate; then write the errors of every seed."""
        with self._settings.kept(subject.point.target):
            errors = gate.forward(subject)
        # In a later round a slow backward pass may not be wanted, and one call of it would be the longest of all.
        passes = self._task.passes if subject.item.seeds else subject.item.passes
        failed = self._task.without_backward.get(subject.point.point_id)
        if failed is not None:
            subject.failed = dict.fromkeys(_BACKWARD, (failed.status, failed.message))
        elif any(p != Pass.FORWARD for p in passes):
            try:
                with self._settings.kept(f"{subject.point.target}, backward"):
                    errors |= gate.backward(subject)
            except Exception as error:  # of the measured code; the forward pass is sound and stays
                subject.failed = dict.fromkeys(_BACKWARD, self._report.classify(error, subject))
                if self.poisoned:
                    # At once, so that no other worker tries it again.
                    for pass_ in (p for p in _BACKWARD if p in subject.item.passes):
                        self._report.write_timing(subject, pass_, *subject.failed[pass_])
                    for seed in subject.item.seeds:
                        self._report.write_errors(subject, seed, {})
                    return
        if given.reference is None:
            reason = self._no_reference or "no reference was made"
            self._report.fail(subject.item.only(seeds=subject.item.seeds), Status.ERROR, reason)
            return
        # What is looked at again is not kept from the check.
        own_seed = None if self._extra.need_output else subject.point.hyper.get("seed", subject.point.seed)
        if subject.item.seeds:
            self._report.begin(Work.ERRORS, subject.point)
        for seed in subject.item.seeds:
            try:
                known = errors if seed == own_seed and self._reference_of(seed, given)[0] is given.reference else None
                with self._settings.kept(subject.point.target):
                    self._errors_of_seed(subject, seed, given, gate, known)
            except Exception as error:  # of the measured code; the other seeds' rows stay
                self._report.fail(subject.item.only(seeds=(seed,)), *self._report.classify(error, subject))
                if self.poisoned:
                    return

    def _errors_of_seed(
        self, subject: Subject, seed: int, given: GroupInputs, gate: Gate, known: dict[str, Estimate] | None
    ) -> None:
        """Write the error rows of one seed of the draw; `known` are those of the check, if it ran under this seed."""
        inputs, (reference, context) = gate.given.inputs, self._reference_of(seed, given)
        errors, lse = dict(known or {}), None
        with torch.no_grad(), subject.seeded():
            if subject.method.with_lse is not None:
                out, lse = subject.method.with_lse(*inputs, is_causal=subject.point.is_causal, **subject.hyper(seed))
                errors = {**accuracy.lse_errors(lse, reference), **errors}
            elif known is None:
                out = subject.call(*inputs, seed=seed)
            if known is None:
                errors |= accuracy.output_errors(accuracy.check_output(out, inputs[0], inputs[2]), reference)
        if known is None and reference.grads is not None and Pass.FORWARD_BACKWARD not in subject.failed:
            leaves = as_leaves(inputs)
            raw = gradients(subject.call(*leaves, seed=seed), leaves, gate.given.grad_output)
            errors |= accuracy.grad_errors(accuracy.check_grads(raw, inputs), reference)
        if self._extra.need_output and given.reference is not None:
            errors = self._extra.around(errors, subject.answer(inputs, seed, out, lse), reference, given.reference)
        gate.check_inputs()
        if subject.causal_in_q is not None:
            # First, like lse_mean_abs: what only some points have is not missed when a run goes on.
            errors = {work_items.CAUSAL_IN_Q: Estimate(subject.causal_in_q), **errors}
        self._report.write_errors(subject, seed, errors | context)

    def _time(self, pass_: Pass, subjects: list[tuple[Subject, Gate]]) -> None:
        """Time one pass of all subjects, each with its gate, in turns and write a row for each.

        Raises _Poisoned as soon as one leaves the device unusable: the rows of the others are still to be measured.
        """
        timed: list[tuple[Subject, Gate, TimedCall]] = []
        protocol, copies = self._task.protocol, {layout: [gate.given.inputs] for layout, gate in self._gates.items()}
        for subject, gate in subjects:
            if pass_ in subject.failed:
                self._report.write_timing(subject, pass_, *subject.failed[pass_])
                continue
            self._report.begin(Work.PREPARE, subject.point, pass_)
            try:
                with self._settings.kept():
                    one = prepare_pass(
                        subject, pass_, copies[subject.method.layout], gate.given.grad_output, self._clock, protocol,
                        self._machine.conditions(),
                        partial(gate.result_check, subject, pass_, adds_up=protocol.as_paper),
                    )  # fmt: skip
                gate.check_inputs()
            except Exception as error:  # of the measured code
                self._report.write_timing(subject, pass_, *self._report.classify(error, subject))
                if self.poisoned:
                    raise _Poisoned from None
                continue
            timed.append((subject, gate, one))

        def on_turn(index: int) -> None:
            subject, gate, one = timed[index]
            self._end_turns(but_of=gate)
            gate.turn(one.result_check)
            self._report.begin(Work.TIME, subject.point, pass_)

        def on_done(index: int) -> None:
            subject, _, one = timed[index]
            self._end_turns()
            # At once: a kill while a slower method is still being timed must not lose what is finished.
            self._report.timing(subject, pass_, one)
            if self.poisoned:
                raise _Poisoned

        take_turns([one for *_, one in timed], protocol, protocol.budget_s[pass_], on_turn, on_done)

    def _end_turns(self, but_of: Gate | None = None) -> None:
        """End the turn of whatever was timed last, whose results are then looked at."""
        for gate in self._gates.values():
            if gate is not but_of:
                gate.turn(None)


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
