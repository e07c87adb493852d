"""Measures one group of cells in this process: reference, checks and errors of each cell, then the passes in turns."""

from __future__ import annotations

import gc
from functools import partial

import torch
from torch import Tensor

from hyperbench.measure import work_items
from hyperbench.measure.inputs.families import make_grad_output, make_inputs
from hyperbench.measure.messages import Task
from hyperbench.measure.methods import method as registry
from hyperbench.measure.worker.calls import Inputs, as_leaves, gradients
from hyperbench.measure.worker.candidate import Candidate
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.conditions.surroundings import Surroundings
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from hyperbench.measure.worker.gate.gate import Gate, slow_after_s
from hyperbench.measure.worker.memory import Gauge
from hyperbench.measure.worker.report import Emit, Report
from hyperbench.measure.worker.timing.passes import TimedPass, prepare_pass, take_turns
from hyperbench.measure.worker.timing.stages import StageMeasurement
from hyperbench.store.schema import ErrorRow, Pass, Point, Status

_BACKWARD = (Pass.BACKWARD, Pass.FORWARD_BACKWARD)


class _Poisoned(Exception):
    """An error left the device unusable: what has not been written is another worker's."""


class GroupMeasurement:
    """One task; `run` writes its records through `emit` as they are finished.

    `poisoned` tells that an error left the device unusable in this process: `run` ended early, the rest is still to do.
    """

    def __init__(
        self, task: Task, emit: Emit, clock: Clock, gauge: Gauge, surroundings: Surroundings | None = None
    ) -> None:
        self._task = task
        self._clock = clock
        self._gauge = gauge
        self._surroundings = surroundings or Surroundings()
        self._report = Report(task, emit, self._surroundings)
        self._reference: Reference | None = None
        self._no_reference = task.no_reference
        self._context: dict[str, float] = {}

    @property
    def poisoned(self) -> bool:
        """Whether an error left the device unusable in this process."""
        return self._report.poisoned

    def run(self) -> None:
        """Measure everything the task asks for; whatever the measured code raises becomes rows."""
        candidates = [c for c in map(self._candidate, self._task.todos) if c is not None]
        if not candidates:
            return
        point = candidates[0].point
        self._report.begin("inputs", point)
        try:
            inputs, grad_output = make_inputs(point), make_grad_output(point)
        except Exception as error:  # most likely too large for the memory
            for candidate in candidates:
                self._report.fail(candidate.wanted, *self._report.classify(error, candidate))
            return
        if any(c.wanted.seeds for c in candidates) and not self._no_reference:
            self._report.begin("reference", point)
            try:
                self._make_reference(point, inputs, grad_output)
            except Exception as error:  # times can be taken without it
                self._no_reference = f"no reference: {self._report.classify(error, candidates[0])[1]}"
                if self.poisoned:
                    raise
            _release()
        gate = Gate(point, inputs, grad_output, self._reference, slow_after_s(self._task.protocol), self._report.begin)
        passing = []
        for candidate in candidates:
            self._report.begin("check", candidate.point)
            try:
                self._check(candidate, inputs, grad_output, gate)
                passing.append(candidate)
            except Exception as error:  # of the measured code
                self._report.fail(candidate.wanted, *self._report.classify(error, candidate))
            _release()
            if self.poisoned:
                return
        for pass_ in map(Pass, self._task.passes):
            try:
                self._time(pass_, [c for c in passing if pass_ in c.wanted.passes], inputs, grad_output, gate)
            except _Poisoned:
                return
            _release()
        # Last, so that stages that crash take no time of a pass with them.
        for candidate in passing:
            if candidate.wanted.stages and not self.poisoned:
                protocol, around = self._task.protocol, self._surroundings
                StageMeasurement(candidate, self._clock, protocol, around, self._report).run(inputs)
                _release()

    def _candidate(self, wanted: work_items.Todo) -> Candidate | None:
        point = wanted.cell.point
        method = registry.find(point.target)
        reason = method.why_unsupported(point.device, point.dtype)
        if reason is None:
            return Candidate(wanted, method)
        self._report.fail(wanted, Status.UNSUPPORTED, reason)
        return None

    def _make_reference(self, point: Point, inputs: Inputs, grad_output: Tensor) -> None:
        error = self._task.error
        in_float64 = point.dtype == "float64" or point.seq_len <= error.float64_max_seq_len
        reference = make_reference(
            *inputs,
            grad_output if work_items.wants_grads(point, self._task.passes, error) else None,
            is_causal=point.is_causal,
            num_rows=error.rows,
            dtype=torch.float64 if in_float64 else torch.float32,
            operator_norm=point.seq_len <= error.operator_norm_max_seq_len,
            seed=point.seed,
        )
        self._context = accuracy.trivial_errors(*inputs, reference, point.is_causal)
        self._reference = reference

    def _check(self, candidate: Candidate, inputs: Inputs, grad_output: Tensor, gate: Gate) -> None:
        """Take a candidate through the gate; then write the errors of every seed."""
        errors = gate.forward(candidate, self._gauge, self._clock)
        # In a later round a slow backward pass may not be wanted, and one call of it would be the longest of all.
        wanted = self._task.passes if candidate.wanted.seeds else candidate.wanted.passes
        failed = self._task.without_backward.get(candidate.point.point_id)
        if failed is not None:
            candidate.failed = dict.fromkeys(_BACKWARD, failed)
        elif any(p != Pass.FORWARD for p in wanted):
            try:
                errors |= gate.backward(candidate, self._gauge, self._clock)
            except Exception as error:  # of the measured code; the forward pass is sound and stays
                candidate.failed = dict.fromkeys(_BACKWARD, self._report.classify(error, candidate))
                if self.poisoned:
                    self._write_backward(candidate)
                    return
        if self._reference is None:
            reason = self._no_reference or "no reference was made"
            self._report.fail(work_items.Todo(candidate.wanted.cell, (), candidate.wanted.seeds), Status.ERROR, reason)
            return
        own_seed = candidate.point.hyper.get("seed", candidate.point.seed)
        if candidate.wanted.seeds:
            self._report.begin("errors", candidate.point)
        for seed in candidate.wanted.seeds:
            try:
                known = errors if seed == own_seed else None
                self._errors_of_seed(candidate, seed, inputs, grad_output, gate, known)
            except Exception as error:  # of the measured code; the other seeds' rows stay
                self._report.fail(
                    work_items.Todo(candidate.wanted.cell, (), (seed,)), *self._report.classify(error, candidate)
                )
                if self.poisoned:
                    return

    def _write_backward(self, candidate: Candidate) -> None:
        """Write at once what a failed backward pass leaves without a number, so that no other worker tries it again."""
        for pass_ in _BACKWARD:
            if pass_ in candidate.wanted.passes:
                self._report.failed_timing(candidate, pass_, *candidate.failed[pass_])
        status, message = candidate.failed[Pass.BACKWARD]
        for seed in candidate.wanted.seeds:
            for metric in work_items.expected_metrics(candidate.point, self._task.passes, self._task.error):
                if metric in work_items.GRAD_METRICS:
                    self._report.write(ErrorRow(candidate.point, seed, metric, None, status, message))

    def _errors_of_seed(
        self,
        candidate: Candidate,
        seed: int,
        inputs: Inputs,
        grad_output: Tensor,
        gate: Gate,
        known: dict[str, float] | None,
    ) -> None:
        """Write the error rows of one seed of the draw; `known` are those of the check, if it ran under this seed."""
        assert self._reference is not None
        errors = dict(known or {})
        with torch.no_grad():
            if candidate.method.with_lse is not None:
                out, lse = candidate.method.with_lse(
                    *inputs, is_causal=candidate.point.is_causal, **candidate.hyper(seed)
                )
                errors = {**accuracy.lse_errors(lse, self._reference), **errors}
            elif known is None:
                out = candidate.call(*inputs, seed)
            if known is None:
                errors |= accuracy.output_errors(accuracy.check_output(out, inputs[0], inputs[2]), self._reference)
        if known is None and self._reference.grads is not None and Pass.FORWARD_BACKWARD not in candidate.failed:
            leaves = as_leaves(inputs)
            raw = gradients(candidate.call(*leaves, seed), leaves, grad_output)
            errors |= accuracy.grad_errors(accuracy.check_grads(raw, inputs), self._reference)
        gate.check_inputs()
        if candidate.causal_in_q is not None:
            # First, like lse_mean_abs: what only some points have is not missed when a run goes on.
            errors = {work_items.CAUSAL_IN_Q: float(candidate.causal_in_q), **errors}
        errors |= self._context
        for metric, value in errors.items():
            self._report.write(ErrorRow(candidate.point, seed, metric, value))
        for metric in work_items.expected_metrics(candidate.point, self._task.passes, self._task.error):
            if metric not in errors:
                status, message = candidate.failed[Pass.FORWARD_BACKWARD]
                self._report.write(ErrorRow(candidate.point, seed, metric, None, status, message))

    def _time(self, pass_: Pass, candidates: list[Candidate], inputs: Inputs, grad_output: Tensor, gate: Gate) -> None:
        """Time one pass of all cells in turns and write a row for each.

        Raises _Poisoned as soon as one leaves the device unusable: the rows of the others are still to be measured.
        """
        timed: list[tuple[Candidate, TimedPass]] = []
        protocol, copies = self._task.protocol, [inputs]
        for candidate in candidates:
            if pass_ in candidate.failed:
                self._report.failed_timing(candidate, pass_, *candidate.failed[pass_])
                continue
            self._report.begin("prepare", candidate.point, pass_)
            try:
                one = prepare_pass(
                    candidate.call, pass_, copies, grad_output, self._clock, protocol,
                    self._surroundings.conditions(), candidate.point,
                    partial(gate.witness, candidate, pass_),
                    forward_ms=candidate.first_ms.get(Pass.FORWARD, 0.0),
                    graph_bytes=candidate.peaks.get(Pass.FORWARD_BACKWARD, 0),
                )  # fmt: skip
                gate.check_inputs()
            except Exception as error:  # of the measured code
                self._report.failed_timing(candidate, pass_, *self._report.classify(error, candidate))
                self._leave_if_poisoned()
                continue
            timed.append((candidate, one))

        def on_turn(index: int) -> None:
            gate.turn(timed[index][1].witness)
            self._report.begin("time", timed[index][0].point, pass_)

        def on_done(index: int) -> None:
            gate.turn(None)
            # At once: a kill while a slower method is still being timed must not lose what is finished.
            candidate, one = timed[index]
            self._report.timing(candidate, pass_, one)
            self._leave_if_poisoned()

        take_turns([one for _, one in timed], protocol, protocol.budget_s[pass_], on_turn, on_done)

    def _leave_if_poisoned(self) -> None:
        if self.poisoned:
            raise _Poisoned


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
