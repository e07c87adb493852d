"""The correctness gate: checks that a method passes before it is timed, and that it still gives the same while it is.

Before: each pass once on the inputs of the point, its answer checked and, of an exact method, compared; where a call is
quick, each once more to measure its memory, and the properties at the point itself; then those on short inputs. While
it is timed: after each turn, the last result is compared with that from before, and the inputs with what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from hyperbench.config.types import ProtocolConfig
from hyperbench.measure.inputs import Inputs, make_grad_output, make_inputs
from hyperbench.measure.messages import Work
from hyperbench.measure.methods.method import Attend
from hyperbench.measure.worker.calls import SeedingClock, as_leaves, gradients, without_gradient
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.errors.rows import Estimate
from hyperbench.measure.worker.failures import classify
from hyperbench.measure.worker.fingerprints import bits_of, fingerprint_of
from hyperbench.measure.worker.gate.backward_properties import (
    Grads,
    KeptGraphError,
    check_answers,
    check_kept,
    examine_backward,
    examine_exact_gradients,
    other_grad_output,
)
from hyperbench.measure.worker.gate.checks import changed_in_place, replaced
from hyperbench.measure.worker.gate.properties import examine, examine_at_point, probe_point
from hyperbench.measure.worker.gate.result_check import ResultCheck
from hyperbench.measure.worker.memory import CallCost, MemoryPeak
from hyperbench.measure.worker.subject import GroupInputs, Subject
from hyperbench.store.schema import Pass, Point, Status

Result = TypeVar("Result")
#: No protocol waits longer for a second call.
_LONGEST_S = 5.0
#: A first call on CUDA may compile; up to this it tells nothing of the second.
_COMPILES_S = 60.0
#: A forward and a backward pass, in forward passes.
_FORWARD_PARTS = 4.0


def slow_after_s(protocol: ProtocolConfig) -> float:
    """Seconds from which on the gate makes no second call: the budget of a pass."""
    return min(_LONGEST_S, max(protocol.budget_s.values()))


@dataclass
class Gate:
    """The gate of one group, whose calls are measured by `memory_peak` and `clock`.

    Calls that take longer than `slow_s` seconds are not made a second time. `begin` is told the next stretch of work,
    `errors` (the answer that is compared, and its errors) or `check`, with its point and pass.
    """

    given: GroupInputs
    memory_peak: MemoryPeak
    clock: Clock
    slow_s: float = 1.0
    begin: Callable[[Work, Point, Pass], object] = lambda unit, point, pass_: None

    def __post_init__(self) -> None:
        self._inputs, self._grad_output = self.given.inputs, self.given.grad_output
        self._before = tuple(map(bits_of, (*self._inputs, self._grad_output)))
        self._holder: ResultCheck | None = None

    def forward(self, subject: Subject) -> dict[str, Estimate]:
        """The errors of the output. A forward pass tells how long its first call takes, a second one its peak memory.

        Where the first call is too slow for another, it tells both, and the properties are looked for on short inputs
        alone. Raises IncorrectError on a wrong answer.
        """
        self._say(subject, Pass.FORWARD, measures_errors=True)
        attend = self._ready(subject)
        call = without_gradient(lambda: attend(*self._inputs))
        out, first = self._measured(subject, call)
        subject.first_ms[Pass.FORWARD] = first.ms
        self.check_inputs()
        accuracy.check_output(out, self._inputs[0], self._inputs[2])
        out = out.detach()
        exact, reference, dtype = subject.item.exact, self.given.reference, subject.point.dtype
        errors = accuracy.output_errors(out, reference) if reference else {}
        if exact and reference:
            accuracy.check_exact(errors, dtype)
            accuracy.check_rows(out, reference, dtype)
        subject.given[Pass.FORWARD] = fingerprint_of([out])
        self._say(subject, Pass.FORWARD)
        measured, looks = first, self._looks_here(subject)
        base = out.clone() if looks and self._has_time(first.ms) else None
        del out
        if self._has_time(first.ms):
            measured = self._measured(subject, call)[1]
        subject.costs[Pass.FORWARD] = measured
        subject.causal_in_q, subject.leak = examine(subject.method, subject.point, exact)
        if base is not None and measured.ms <= self.slow_s * 1e3:
            with _as_far_as_memory_goes(subject, Pass.FORWARD):
                examine_at_point(subject, attend, self._inputs, base)
            self.check_inputs()
        elif looks:
            subject.unlooked.add(Pass.FORWARD)
        return errors

    def backward(self, subject: Subject) -> dict[str, Estimate]:
        """The errors of the gradients where they are compared; first calls and peaks are told as by `forward`.

        Raises IncorrectError on wrong gradients. A backward pass that is wrong on a kept graph alone is noted in
        `subject.failed`.
        """
        self._say(subject, Pass.BACKWARD, measures_errors=True)
        leaves = as_leaves(self._inputs)
        out, raw, again = self._both_passes(subject, leaves, self._grad_output, may_keep=True)
        for pass_ in (Pass.BACKWARD, Pass.FORWARD_BACKWARD):
            subject.first_ms[pass_] = subject.costs[pass_].ms
        self.check_inputs()
        grads = accuracy.check_grads(raw, self._inputs)
        subject.given[Pass.BACKWARD] = subject.given[Pass.FORWARD_BACKWARD] = fingerprint_of(grads)
        errors: dict[str, Estimate] = {}
        exact, reference = subject.item.exact, self.given.reference
        if reference is not None and reference.grads is not None:
            errors = accuracy.grad_errors(grads, reference)
            if exact:
                accuracy.check_exact(errors, subject.point.dtype)
        self._say(subject, Pass.BACKWARD)
        try:
            kept = None
            if self._looks_here(subject):
                if again:
                    # The other grad_output lies where that of before lay.
                    with (
                        _as_far_as_memory_goes(subject, Pass.BACKWARD),
                        replaced((self._grad_output,), (other_grad_output(self._grad_output),)),
                    ):
                        kept = gradients(out, leaves, self._grad_output)
                else:
                    subject.unlooked.add(Pass.BACKWARD)
            del out
            if again:
                with _as_far_as_memory_goes(subject, Pass.BACKWARD):
                    self._run_again(subject, grads, kept)
            examine_backward(subject.method, subject.point)
        except KeptGraphError as error:
            subject.failed[Pass.BACKWARD] = Status.INCORRECT, str(error)
        if not errors and exact:
            examine_exact_gradients(subject.method, subject.point)
        return errors

    def _run_again(self, subject: Subject, grads: Grads, kept: tuple[Tensor | None, ...] | None) -> None:
        """Measure the memory of both passes on a new graph; hold `kept`, where there is such, against what it gives.

        `grads` are those under the grad_output of the point.
        """
        grad_output = self._grad_output if kept is None else other_grad_output(self._grad_output)
        raw = self._both_passes(subject, as_leaves(self._inputs), grad_output)[1]
        self.check_inputs()
        if kept is not None:
            fresh = accuracy.check_grads(raw, self._inputs)
            check_answers(grads, fresh, self._inputs, subject.method.ignores)
            check_kept(kept, fresh, self._inputs, subject.method, subject.point.dtype)

    def _ready(self, subject: Subject) -> Attend:
        """The method for the inputs of the group; how long its set-up takes is noted."""
        if not subject.method.has_setup:
            return subject.ready(self._inputs)
        attend, cost = self._measured(subject, lambda: subject.ready(self._inputs))
        subject.setup_ms = cost.ms
        self.check_inputs()
        return attend

    def _measured(self, subject: Subject, call: Callable[[], Result]) -> tuple[Result, CallCost]:
        with subject.seeded():
            results, costs = self.memory_peak.measure([call], self.clock.now_s)
        return results[0], costs[0]

    def _both_passes(
        self, subject: Subject, leaves: Inputs, grad_output: Tensor, *, may_keep: bool = False
    ) -> tuple[Tensor, tuple[Tensor | None, ...], bool]:
        """The output, the gradients, and whether the graph was kept for another backward pass, for which there is time.

        The costs of both passes and of going back are noted.
        """
        made: list[Tensor] = []
        keeps, attend = False, subject.ready(self._inputs)

        def calls() -> Iterator[Callable[[], object]]:
            nonlocal keeps
            start_s = self.clock.now_s()
            yield lambda: made.append(attend(*leaves))
            # A backward pass takes two to three times its forward pass.
            keeps = may_keep and self._has_time(_FORWARD_PARTS * (self.clock.now_s() - start_s) * 1e3)
            yield lambda: gradients(made[0], leaves, grad_output, keep_graph=keeps)

        with subject.seeded():
            (_, raw), (_, last, both) = self.memory_peak.measure(calls(), self.clock.now_s)
        subject.costs |= {Pass.BACKWARD: last, Pass.FORWARD_BACKWARD: both}
        return made[0], raw, keeps

    def _has_time(self, first_ms: float) -> bool:
        """True if a call whose first one took so long may be made again; on a GPU the first may have compiled."""
        slow_s = max(self.slow_s, _COMPILES_S) if self.given.point.device == "cuda" else self.slow_s
        return first_ms <= slow_s * 1e3

    def _looks_here(self, subject: Subject) -> bool:
        """True if properties are looked for at the point itself: in the round of its errors, above the short length."""
        return bool(subject.item.seeds) and probe_point(subject.point).seq_len < subject.point.seq_len

    def _say(self, subject: Subject, pass_: Pass, *, measures_errors: bool = False) -> None:
        self.begin(Work.ERRORS if measures_errors and subject.item.seeds else Work.CHECK, subject.point, pass_)

    def check_inputs(self) -> None:
        """Raise IncorrectError, naming them, if inputs have changed; they are then what they were again."""
        tensors = (*self._inputs, self._grad_output)
        pairs = zip(("q", "k", "v", "grad_output"), tensors, self._before, strict=True)
        changed = [name for name, x, before in pairs if bits_of(x) != before]
        if not changed:
            return
        for x, y in zip(tensors, (*make_inputs(self.given.point), make_grad_output(self.given.point)), strict=True):
            # Not x itself: a kept graph of another method would take that for a change of what it has saved.
            x.data.copy_(y)
        raise IncorrectError(changed_in_place(changed))

    def result_check(
        self, subject: Subject, pass_: Pass, call: Callable[[], object], period: int, *, adds_up: bool
    ) -> ResultCheck:
        """The check of timed results of a pass of a subject: those of calls on the group's own inputs.

        They are every `period`-th call, the first among them. Gradients that add up become others by every call.
        """
        to_the_bit = pass_ is Pass.FORWARD and subject.point.device == "cpu" and subject.method.deterministic
        tolerance = None if to_the_bit else accuracy.EXACT_TOLERANCES[subject.point.dtype]
        before = None if adds_up and pass_ is not Pass.FORWARD else subject.given.get(pass_)
        clock = SeedingClock(self.clock, subject.method, subject.point)
        return ResultCheck(call, clock, self._inputs, before, tolerance, period)

    def turn(self, result_check: ResultCheck | None) -> None:
        """Begin the turn of another result check, or of none; the one before must have left all as it was."""
        holder, self._holder = self._holder, result_check
        if holder is None:
            return
        try:
            self.check_inputs()
            holder.check()
        except Exception as error:  # most likely IncorrectError; memory may be short as well
            holder.failure = holder.failure or error.with_traceback(None)


@contextmanager
def _as_far_as_memory_goes(subject: Subject, pass_: Pass) -> Iterator[None]:
    """A second look needs more memory than a call; where there is none the look is left out, and that is noted."""
    try:
        yield
    except Exception as error:
        if classify(error)[0] is not Status.OOM:
            raise
        subject.unlooked.add(pass_)
