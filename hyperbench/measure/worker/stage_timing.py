"""Time the stages of one forward pass, each by itself, after the whole of them gave what the method gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbench.config.types import ProtocolConfig
from hyperbench.measure.inputs import Inputs
from hyperbench.measure.messages import Work
from hyperbench.measure.worker.calls import SeedingClock, in_turn, without_gradient
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.conditions.machine import Machine
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.report import Report
from hyperbench.measure.worker.subject import Subject
from hyperbench.measure.worker.timing.other_layers import other_layers
from hyperbench.measure.worker.timing.passes import TimedCall, enough_copies, take_turns
from hyperbench.measure.worker.timing.sampler import Sampler
from hyperbench.store.schema import ALL_STAGES, Pass, Status

Stages = Mapping[str, Callable[[], object]]


@dataclass
class StageMeasurement:
    """The stages of a subject that are missing in one round.

    A stage works on the results of those before it, so that its inputs are used in turn by having all stages several
    times, each time on other values of q, k and v: as many as a pass has copies, fewer where they take much memory or
    time to make. The result of the first set is compared with the method's. Operations are told of passes only, so no
    stage is flagged `above_peak`.
    """

    subject: Subject
    clock: Clock
    protocol: ProtocolConfig
    machine: Machine
    report: Report

    def __post_init__(self) -> None:
        self._budget_s = self.protocol.budget_s[Pass.FORWARD]
        self._names: tuple[str, ...] = ()

    def run(self, inputs: Inputs) -> None:
        """Run all stages once, then time those that are missing; whatever the measured code raises becomes rows."""
        self.report.begin(Work.STAGES, self.subject.point)
        try:
            with self.report.settings.kept(), torch.no_grad():
                sets = self._prepare(inputs)
        except Exception as error:  # of the measured code
            self._fail_all(*self.report.classify(error, self.subject))
            return
        names = self._missing()
        timed = [self._timed([stages[name] for stages in sets]) for name in names]
        take_turns(
            timed,
            self.protocol,
            self._budget_s,
            lambda index: self.report.begin(Work.STAGES, self.subject.point, stage=names[index]),
            lambda index: self.report.timing(self.subject, Pass.FORWARD, timed[index], names[index], self._names),
        )

    def _prepare(self, inputs: Inputs) -> list[Stages]:
        """The stages on each set of inputs, run once in order; the first of them checked."""
        start_s = self.clock.now_s()
        stages, out = self._run_once(inputs)
        check_stages(out, self.subject.call(*inputs), inputs, self.subject.point.dtype)
        del out
        took_ms = (self.clock.now_s() - start_s) * 1e3
        kept_bytes = self.subject.peak_bytes(Pass.FORWARD)
        copies = enough_copies([inputs], self.protocol, self._budget_s, took_ms, kept_bytes)
        return [stages, *(self._run_once(copy)[0] for copy in copies[1:])]

    def _run_once(self, inputs: Inputs) -> tuple[Stages, object]:
        """The stages on these inputs, and what the last one gave."""
        point = self.subject.point
        with self.subject.seeded():
            stages = self.subject.method.stages(*inputs, is_causal=point.is_causal, **point.hyper)
        self._names = self._names or tuple(stages)
        if tuple(stages) != self._names:
            raise ValueError(f"stages must be the same on all inputs of a shape: {list(self._names)}, {list(stages)}")
        out: object = None
        with self.subject.seeded():
            for call in stages.values():
                out = call()
        return stages, out

    def _timed(self, calls: list[Callable[[], object]]) -> TimedCall:
        """One stage on several sets of inputs in turn."""
        point = self.subject.point
        between = other_layers(point, self.protocol)
        clock = SeedingClock(self.clock, self.subject.method, point)
        return TimedCall(
            sampler=Sampler(without_gradient(in_turn(calls)), clock, self.protocol, self._budget_s, between),
            conditions=self.machine.conditions(),
            facts={"input_copies": len(calls)},
            device=point.device,
        )

    def _missing(self) -> list[str]:
        return [name for name in self._names if name not in self.subject.item.timed_stages]

    def _fail_all(self, status: Status, message: str) -> None:
        """A row for each stage that was to be timed, or one for all where their names are not known."""
        for name in self._missing() or [ALL_STAGES]:
            self.report.write_timing(self.subject, Pass.FORWARD, status, message, stage=name, all_stages=self._names)


def check_stages(out: object, whole: Tensor, inputs: Inputs, dtype: str) -> None:
    """Raise IncorrectError unless the stages' result `out` is the method's output, up to the rounding of its dtype."""
    checked = accuracy.check_output(out, inputs[0], inputs[2])
    error, tolerance = accuracy.relative_frobenius(checked, whole), accuracy.EXACT_TOLERANCES[dtype]
    if not error <= tolerance:
        raise IncorrectError(
            f"the last stage must give the output of the method: they differ by {error:.3g}, above {tolerance:g}"
        )
