"""The correctness gate: what a method must show before it is timed, and that it still gives the same while it is.

Before: each pass once on the inputs of the point, its answer checked and, of an exact method, compared; then the
properties. While it is timed: after each turn, the last result is compared with that from before, and the inputs with
what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperbench.measure import accuracy
from hyperbench.measure.accuracy import IncorrectError
from hyperbench.measure.calls import Inputs, as_leaves, gradients
from hyperbench.measure.candidate import Candidate
from hyperbench.measure.clock import Clock
from hyperbench.measure.inputs import make_grad_output, make_inputs
from hyperbench.measure.memory import Gauge
from hyperbench.measure.prints import Print, difference, fingerprint, print_of
from hyperbench.measure.properties import changed_in_place, examine, examine_exact_gradients
from hyperbench.measure.reference import Reference
from hyperbench.schema import Pass, Point

#: Work that goes on for this part of the call after its end, and for so many milliseconds, is no delay of the host's.
_LEFT_SHARE = 0.1
_LEFT_MS = 0.1


class Gate:
    """The gate of one group; `reference` is None where there is none to compare with."""

    def __init__(self, point: Point, inputs: Inputs, grad_output: Tensor, reference: Reference | None) -> None:
        self._point = point
        self._inputs = inputs
        self._grad_output = grad_output
        self._reference = reference
        self._names = ("q", "k", "v", "grad_output")
        self._before = tuple(map(fingerprint, (*inputs, grad_output)))
        self._holder: Witness | None = None

    def forward(self, candidate: Candidate, gauge: Gauge, clock: Clock) -> dict[str, float]:
        """The errors of the output, after a forward pass that also tells its peak memory and how long it took.

        Raises IncorrectError on a wrong answer.
        """
        with torch.no_grad():
            level, start_s = gauge.reset(), clock.now_s()
            out = candidate.call(*self._inputs)
            high = gauge.high_bytes()
            candidate.first_ms[Pass.FORWARD] = (clock.now_s() - start_s) * 1e3
        self.check_inputs()
        accuracy.check_output(out, self._inputs[0], self._inputs[2])
        if high is not None:
            candidate.levels[Pass.FORWARD], candidate.peaks[Pass.FORWARD] = level, max(0, high - level)
        errors = accuracy.output_errors(out, self._reference) if self._reference else {}
        candidate.given[Pass.FORWARD] = print_of([out])
        del out
        exact = candidate.wanted.cell.exact
        if exact:
            accuracy.check_exact(errors, candidate.point.dtype)
        candidate.causal_in_q = examine(candidate.method, candidate.point, exact)
        return errors

    def backward(self, candidate: Candidate, gauge: Gauge, clock: Clock) -> dict[str, float]:
        """The errors of the gradients where they are compared, after a forward and a backward pass with their peaks.

        Raises IncorrectError on wrong gradients.
        """
        leaves = as_leaves(self._inputs)
        start, start_s = gauge.reset(), clock.now_s()
        out = candidate.call(*leaves)
        forward_high = gauge.high_bytes()
        forward_ms = (clock.now_s() - start_s) * 1e3
        middle, middle_s = gauge.reset(), clock.now_s()
        raw = gradients(out, leaves, self._grad_output)
        backward_high = gauge.high_bytes()
        candidate.first_ms[Pass.BACKWARD] = (clock.now_s() - middle_s) * 1e3
        candidate.first_ms[Pass.FORWARD_BACKWARD] = forward_ms + candidate.first_ms[Pass.BACKWARD]
        del out
        self.check_inputs()
        grads = accuracy.check_grads(raw, self._inputs)
        if forward_high is not None and backward_high is not None:
            candidate.levels |= {Pass.BACKWARD: middle, Pass.FORWARD_BACKWARD: start}
            candidate.peaks[Pass.BACKWARD] = max(0, backward_high - middle)
            candidate.peaks[Pass.FORWARD_BACKWARD] = max(0, max(forward_high, backward_high) - start)
        candidate.given[Pass.BACKWARD] = candidate.given[Pass.FORWARD_BACKWARD] = print_of(grads)
        if self._reference is None or self._reference.grads is None:
            if candidate.wanted.cell.exact:
                examine_exact_gradients(candidate.method, candidate.point)
            return {}
        errors = accuracy.grad_errors(grads, self._reference)
        if candidate.wanted.cell.exact:
            accuracy.check_exact(errors, candidate.point.dtype)
        return errors

    def check_inputs(self) -> None:
        """Raise IncorrectError, naming them, if inputs have changed; they are then what they were again."""
        tensors = (*self._inputs, self._grad_output)
        pairs = zip(self._names, tensors, self._before, strict=True)
        changed = [name for name, x, before in pairs if fingerprint(x) != before]
        if not changed:
            return
        for x, y in zip(tensors, (*make_inputs(self._point), make_grad_output(self._point)), strict=True):
            # Not x itself: a kept graph of another method would take that for a change of what it has saved.
            x.data.copy_(y)
        raise IncorrectError(changed_in_place(changed))

    def witness(
        self, candidate: Candidate, pass_: Pass, call: Callable[[], object], clock: Clock, period: int, adds_up: bool
    ) -> Witness:
        """What watches the calls of a pass of a candidate that has passed: those on the group's own inputs.

        They are every `period`-th call, the first among them. Gradients that add up become others by every call.
        """
        to_the_bit = pass_ is Pass.FORWARD and candidate.point.device == "cpu" and candidate.method.deterministic
        tolerance = None if to_the_bit else accuracy.EXACT_TOLERANCES[candidate.point.dtype]
        before = None if adds_up and pass_ is not Pass.FORWARD else candidate.given.get(pass_)
        return Witness(call, clock, self._inputs, before, tolerance, period)

    def turn(self, witness: Witness | None) -> None:
        """The turn of another witness begins, or of none: whoever had the last one must have left all as it was."""
        holder, self._holder = self._holder, witness
        if holder is None:
            return
        try:
            self.check_inputs()
            holder.check()
        except Exception as error:  # most likely IncorrectError; memory may be short as well
            holder.failure = holder.failure or error.with_traceback(None)


class Witness:
    """A clock for calls of which every `period`-th is `call`; it keeps what that gave last, until `check` compares it.

    It is compared with what the pass gave before it was timed. `failure` is the first difference that was found; with a
    tolerance of None a single bit is one. Work that a clock sees go on after every call is a failure too.
    """

    def __init__(
        self,
        call: Callable[[], object],
        clock: Clock,
        inputs: Inputs,
        before: Print | None,
        tolerance: float | None,
        period: int = 1,
    ) -> None:
        self._call = call
        self._clock = clock
        self._inputs = inputs
        self._before = before
        self._tolerance = tolerance
        self._period = period
        self._calls = 0
        self._last: tuple[Any, ...] = ()
        self._left_ms: list[float] = []
        self._is_joined = False
        self.failure: Exception | None = None

    def call(self) -> object:
        """The call, its result kept."""
        result = self._call()
        self._last = (result,)
        return result

    @property
    def host_ms(self) -> float | None:
        """After how long the last call gave the host back, where the clock tells."""
        return self._clock.host_ms

    def now_s(self) -> float:
        """The clock's seconds."""
        return self._clock.now_s()

    def time_ms(self, call: Callable[[], object]) -> float:
        """The clock's time of a call; what was kept is freed before it is replaced, outside that time."""
        if self._calls % self._period == 0:
            self._last = ()
        self._calls += 1
        elapsed_ms = self._clock.time_ms(call)
        left_ms = getattr(self._clock, "left_ms", None)
        if left_ms is None or left_ms <= max(_LEFT_MS, _LEFT_SHARE * elapsed_ms):
            self._is_joined = True
        else:
            self._left_ms.append(left_ms)
        return elapsed_ms

    def check(self) -> None:
        """Forget the last result; raise IncorrectError if it is not what the pass gave before it was timed, or if the
        device was still at work after every call.
        """
        kept, self._last = self._last, ()
        if self._left_ms and not self._is_joined:
            raise IncorrectError(
                f"work left unsynchronised: the device was at work for another {min(self._left_ms):.3g} ms after each "
                "call had ended; the current stream must wait for others that a method uses"
            )
        if not kept or self._before is None:
            return
        (last,) = kept
        try:
            if isinstance(last, tuple):
                tensors: list[Tensor] = list(accuracy.check_grads(last, self._inputs))
            else:
                tensors = [accuracy.check_output(last, self._inputs[0], self._inputs[2])]
        except IncorrectError as error:
            raise IncorrectError(f"while it was timed, {error}") from None
        moved = difference(self._before, tensors)
        if moved is None or (self._tolerance is not None and moved <= self._tolerance):
            return
        what = "its gradients" if isinstance(last, tuple) else "its output"
        raise IncorrectError(
            f"while it was timed, {what} became another than before, on the same inputs (relative difference "
            f"{moved:.3g})"
        )
