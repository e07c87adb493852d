"""Measures one group of cells in this process: reference, checks and errors of each cell, then the passes in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperbench.measure import accuracy, grid
from hyperbench.measure.calls import Inputs, as_leaves, gradients
from hyperbench.measure.candidate import Candidate
from hyperbench.measure.clock import Clock
from hyperbench.measure.failures import classify, poisons_device
from hyperbench.measure.gate import Gate
from hyperbench.measure.inputs import make_grad_output, make_inputs
from hyperbench.measure.memory import Gauge
from hyperbench.measure.methods import registry
from hyperbench.measure.reference import Reference, make_reference
from hyperbench.measure.sampler import interleave
from hyperbench.measure.stages import StageMeasurement
from hyperbench.measure.surroundings import Surroundings
from hyperbench.measure.timed import TimedPass, prepare_pass
from hyperbench.measure.wire import Task
from hyperbench.schema import ErrorRow, Pass, Point, Record, Status, Timing, to_json

Emit = Callable[[dict[str, Any]], object]


class GroupMeasurement:
    """One task; `run` writes its records through `emit` as they are finished.

    `poisoned` tells that an error left the device unusable in this process: `run` ended early, the rest is still to do.
    """

    def __init__(
        self, task: Task, emit: Emit, clock: Clock, gauge: Gauge, surroundings: Surroundings | None = None
    ) -> None:
        self._task = task
        self._emit = emit
        self._clock = clock
        self._gauge = gauge
        self._surroundings = surroundings or Surroundings()
        self._reference: Reference | None = None
        self._no_reference = task.no_reference
        self._context: dict[str, float] = {}
        self.poisoned = False

    def run(self) -> None:
        """Measure everything the task asks for; whatever the measured code raises becomes rows."""
        candidates = [c for c in map(self._candidate, self._task.todos) if c is not None]
        if not candidates:
            return
        point = candidates[0].point
        self._begin("inputs", point)
        try:
            inputs, grad_output = make_inputs(point), make_grad_output(point)
        except Exception as error:  # most likely too large for the memory
            for candidate in candidates:
                self._fail(candidate.wanted, *self._classify(error, candidate))
            return
        if any(c.wanted.seeds for c in candidates) and not self._no_reference:
            self._begin("reference", point)
            try:
                self._make_reference(point, inputs, grad_output)
            except Exception as error:  # times can be taken without it
                self._no_reference = f"no reference: {self._classify(error, candidates[0])[1]}"
                if self.poisoned:
                    raise
            _release()
        gate = Gate(point, inputs, grad_output, self._reference)
        passing = []
        for candidate in candidates:
            self._begin("check", candidate.point)
            try:
                self._check(candidate, inputs, grad_output, gate)
                passing.append(candidate)
            except Exception as error:  # of the measured code
                self._fail(candidate.wanted, *self._classify(error, candidate))
            _release()
            if self.poisoned:
                return
        for pass_ in map(Pass, self._task.passes):
            if self.poisoned:
                return
            self._time(pass_, [c for c in passing if pass_ in c.wanted.passes], inputs, grad_output, gate)
            _release()
        # Last, so that stages that crash take no time of a pass with them.
        for candidate in passing:
            if candidate.wanted.stages and not self.poisoned:
                self._time_stages(candidate, inputs)
                _release()

    def _candidate(self, wanted: grid.Todo) -> Candidate | None:
        point = wanted.cell.point
        method = registry.find(point.target)
        reason = method.why_unsupported(point.device, point.dtype)
        if reason is None:
            return Candidate(wanted, method)
        self._fail(wanted, Status.UNSUPPORTED, reason)
        return None

    def _make_reference(self, point: Point, inputs: Inputs, grad_output: Tensor) -> None:
        error = self._task.error
        in_float64 = point.dtype == "float64" or point.seq_len <= error.float64_max_seq_len
        reference = make_reference(
            *inputs,
            grad_output if grid.wants_grads(point, self._task.passes, error) else None,
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
        if any(p != Pass.FORWARD for p in wanted):
            try:
                errors |= gate.backward(candidate, self._gauge, self._clock)
            except Exception as error:  # of the measured code; the forward pass is sound and stays
                candidate.failed = dict.fromkeys(
                    (Pass.BACKWARD, Pass.FORWARD_BACKWARD), self._classify(error, candidate)
                )
        if self._reference is None:
            reason = self._no_reference or "no reference was made"
            self._fail(grid.Todo(candidate.wanted.cell, (), candidate.wanted.seeds), Status.ERROR, reason)
            return
        own_seed = candidate.point.hyper.get("seed", candidate.point.seed)
        for seed in candidate.wanted.seeds:
            try:
                known = errors if seed == own_seed else None
                self._errors_of_seed(candidate, seed, inputs, grad_output, gate, known)
            except Exception as error:  # of the measured code; the other seeds' rows stay
                self._fail(grid.Todo(candidate.wanted.cell, (), (seed,)), *self._classify(error, candidate))
                if self.poisoned:
                    return

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
        if known is None and self._reference.grads is not None and not candidate.failed:
            leaves = as_leaves(inputs)
            raw = gradients(candidate.call(*leaves, seed), leaves, grad_output)
            errors |= accuracy.grad_errors(accuracy.check_grads(raw, inputs), self._reference)
        gate.check_inputs()
        if candidate.causal_in_q is not None:
            # First, like lse_mean_abs: what only some points have is not missed when a run goes on.
            errors = {grid.CAUSAL_IN_Q: float(candidate.causal_in_q), **errors}
        errors |= self._context
        for metric, value in errors.items():
            self._write(ErrorRow(candidate.point, seed, metric, value))
        for metric in grid.expected_metrics(candidate.point, self._task.passes, self._task.error):
            if metric not in errors:
                status, message = candidate.failed[Pass.BACKWARD]
                self._write(ErrorRow(candidate.point, seed, metric, None, status, message))

    def _time(self, pass_: Pass, candidates: list[Candidate], inputs: Inputs, grad_output: Tensor, gate: Gate) -> None:
        """Time one pass of all cells in turns and write a row for each."""
        timed: list[tuple[Candidate, TimedPass]] = []
        protocol, copies = self._task.protocol, [inputs]
        for candidate in candidates:
            if pass_ in candidate.failed:
                self._write(self._failed_timing(candidate, pass_, *candidate.failed[pass_]))
                continue
            self._begin("prepare", candidate.point, pass_)
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
                self._write(self._failed_timing(candidate, pass_, *self._classify(error, candidate)))
                continue
            timed.append((candidate, one))

        def begin_turn(index: int) -> None:
            gate.turn(timed[index][1].witness)
            self._begin("time", timed[index][0].point, pass_)
            timed[index][1].conditions.begin_turn()

        def on_done(index: int) -> None:
            gate.turn(None)
            # At once: a kill while a slower method is still being timed must not lose what is finished.
            self._finish(*timed[index], pass_)

        interleave(
            [one.sampler for _, one in timed],
            protocol.budget_s[pass_] / protocol.slices,
            begin_turn,
            on_done,
            lambda index: timed[index][1].conditions.end_turn(),
            in_turns=not protocol.fixed_time,
        )

    def _time_stages(self, candidate: Candidate, inputs: Inputs) -> None:
        """Time the stages of one cell's forward pass and write a row for each."""
        task, point = self._task, candidate.point
        stages = StageMeasurement(
            candidate.wanted, candidate.method, self._clock, task.protocol, task.round,
            begin=lambda name: self._begin("stages", point, stage=name),
            write=self._write,
            classify=lambda error: self._classify(error, candidate),
        )  # fmt: skip
        stages.run(inputs, lambda: candidate.call(*inputs))

    def _finish(self, candidate: Candidate, timed: TimedPass, pass_: Pass) -> None:
        failure = timed.failure()
        if failure is not None:
            self._write(self._failed_timing(candidate, pass_, *self._classify(failure, candidate)))
        else:
            self._write(self._timing(candidate, pass_, timed))

    def _timing(self, candidate: Candidate, pass_: Pass, timed: TimedPass) -> Timing:
        point, sampler = candidate.point, timed.sampler
        executed_flops = candidate.method.executed_flops(point, pass_, candidate.wanted.cell.exact)
        judged = timed.judge(executed_flops, self._surroundings.peak_flops_per_s(point.dtype))
        return Timing(
            point=point,
            pass_=pass_,
            protocol=self._task.protocol.name,
            round=self._task.round,
            status=judged.status,
            implementation=candidate.method.implementation(point.device, point),
            stop_reason=sampler.stop_reason,
            samples_ms=tuple(sampler.samples_ms),
            warmup_ms=tuple(sampler.warmup_ms),
            peak_memory_bytes=candidate.peaks.get(pass_),
            exact_equivalent_flops=registry.exact_equivalent_flops(point, pass_),
            executed_flops=executed_flops,
            message="; ".join(filter(None, (candidate.method.note(point), sampler.note, *judged.notes))),
            first_call_ms=candidate.first_ms.get(pass_),
            host_ms=judged.host_ms,
            memory_before_bytes=candidate.levels.get(pass_),
            flags=judged.flags,
            conditions={**self._surroundings.fixed, **timed.facts, **timed.conditions.summary()},
        )

    def _failed_timing(self, candidate: Candidate, pass_: Pass, status: Status, message: str) -> Timing:
        implementation = candidate.method.implementation(candidate.point.device, candidate.point)
        task = self._task
        return Timing(candidate.point, pass_, task.protocol.name, task.round, status, implementation, message=message)

    def _fail(self, wanted: grid.Todo, status: Status, message: str) -> None:
        task = self._task
        for record in grid.failed_records(
            wanted, task.passes, task.error, task.protocol.name, task.round, status, message
        ):
            self._write(record)

    def _classify(self, error: Exception, candidate: Candidate) -> tuple[Status, str]:
        status, message = classify(error)
        self.poisoned = self.poisoned or poisons_device(status, candidate.point.device)
        return status, message

    def _write(self, record: Record) -> None:
        self._emit({"event": "record", "record": to_json(record)})

    def _begin(self, unit: str, point: Point, pass_: Pass | None = None, stage: str = "") -> None:
        part = pass_ and str(pass_)
        self._emit({"event": "begin", "unit": unit, "point_id": point.point_id, "pass": part, "stage": stage})


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
