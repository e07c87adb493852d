"""Watches the calls of a pass while they are timed: what they give must stay what it was, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hyperbench.measure import accuracy
from hyperbench.measure.accuracy import IncorrectError
from hyperbench.measure.calls import Inputs
from hyperbench.measure.clock import Clock
from hyperbench.measure.prints import Print, difference


class Witness:
    """A clock for calls of which every `period`-th is `call`; it keeps what that gave last, until `check` compares it.

    It is compared with what the pass gave before it was timed. `failure` is the first difference that was found; with a
    tolerance of None a single bit is one.
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
        return self._clock.time_ms(call)

    def check(self) -> None:
        """Forget the last result; raise IncorrectError if it is not what the pass gave before it was timed."""
        kept, self._last = self._last, ()
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
