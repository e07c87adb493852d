"""Times the stages of one cell's forward pass, each by itself, after the whole of them gave what the method gives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyperbench.measure import accuracy, grid
from hyperbench.measure.accuracy import IncorrectError
from hyperbench.measure.calls import Inputs
from hyperbench.measure.clock import Clock
from hyperbench.measure.methods import registry
from hyperbench.measure.sampler import Sampler, interleave
from hyperbench.schema import ALL_STAGES, Pass, Stage, Status
from hyperbench.stats import median
from hyperbench.validate import ProtocolConfig


class StageMeasurement:
    """The stages of a cell in one round; `write` takes each row as soon as it is finished.

    `begin` hears the name of the stage whose turn begins ("" while all of them are prepared), `classify` turns what the
    measured code raised into a status and a message.
    """

    def __init__(
        self,
        wanted: grid.Todo,
        method: registry.Method,
        clock: Clock,
        protocol: ProtocolConfig,
        round_: int,
        *,
        begin: Callable[[str], object],
        write: Callable[[Stage], object],
        classify: Callable[[Exception], tuple[Status, str]],
    ) -> None:
        self._wanted = wanted
        self._method = method
        self._clock = clock
        self._protocol = protocol
        self._round = round_
        self._begin = begin
        self._write = write
        self._classify = classify
        self._names: tuple[str, ...] = ()

    def run(self, inputs: Inputs, forward: Callable[[], Tensor]) -> None:
        """Run all stages once, hold their result against that of `forward`, then time those that are wanted in turns.

        Whatever the measured code raises becomes rows.
        """
        point = self._wanted.cell.point
        self._begin("")
        try:
            with torch.no_grad():
                stages = self._method.stages(*inputs, is_causal=point.is_causal, **point.hyper)
                self._names = tuple(stages)
                out: object = None
                for call in stages.values():
                    out = call()
                check_stages(out, forward(), inputs, point.dtype)
                del out
        except Exception as error:  # of the measured code
            self._fail_all(*self._classify(error))
            return
        budget_s = self._protocol.budget_s[Pass.FORWARD]
        timed = [
            (name, Sampler(_without_gradient(call), self._clock, self._protocol, budget_s))
            for name, call in stages.items()
            if name not in self._wanted.timed_stages
        ]
        interleave(
            [sampler for _, sampler in timed],
            budget_s / self._protocol.slices,
            lambda index: self._begin(timed[index][0]),
            lambda index: self._finish(*timed[index]),
        )

    def _finish(self, name: str, sampler: Sampler) -> None:
        if sampler.failure is not None:
            self._write(self._failed(name, *self._classify(sampler.failure)))
            return
        samples = tuple(sampler.samples_ms)
        self._write(
            Stage(
                self._wanted.cell.point,
                name,
                median(samples),
                samples,
                self._names,
                self._protocol.name,
                self._round,
                stop_reason=sampler.stop_reason,
                message=sampler.note,
            )
        )

    def _fail_all(self, status: Status, message: str) -> None:
        """A row for each stage that was to be timed, or one for all where their names are not known."""
        left = [name for name in self._names if name not in self._wanted.timed_stages]
        for name in left or [ALL_STAGES]:
            self._write(self._failed(name, status, message))

    def _failed(self, name: str, status: Status, message: str) -> Stage:
        return Stage(
            self._wanted.cell.point, name, None, (), self._names, self._protocol.name, self._round, status,
            message=message,
        )  # fmt: skip


def check_stages(out: object, whole: Tensor, inputs: Inputs, dtype: str) -> None:
    """Raise IncorrectError unless the stages' result `out` is the method's output, up to the rounding of its dtype."""
    checked = accuracy.check_output(out, inputs[0], inputs[2])
    error, tolerance = accuracy.relative_frobenius(checked, whole), accuracy.EXACT_TOLERANCES[dtype]
    if not error <= tolerance:
        raise IncorrectError(
            f"the last stage must give the output of the method: they differ by {error:.3g}, above {tolerance:g}"
        )


def _without_gradient(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run
