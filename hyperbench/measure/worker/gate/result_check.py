"""Check that timed calls keep returning the same result on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hyperbench.measure.inputs import Inputs
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.fingerprints import Fingerprint, difference

#: Work that goes on for this part of the call after its end, and for so many milliseconds, is no delay of the host's.
_LEFT_SHARE = 0.1
_LEFT_MS = 0.1


class ResultCheck:
    """A clock for calls of which every `period`-th is `call`; it keeps what that gave last, until `check` compares it.

    It is compared with what the pass gave before it was timed. `failure` is the first difference that was found; with a
    tolerance of None a single bit is one. Work that a clock sees go on after every call is a failure too.
    """

    def __init__(
        self,
        call: Callable[[], object],
        clock: Clock,
        inputs: Inputs,
        before: Fingerprint | None,
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

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        """The clock's time of a call; what was kept is freed before it is replaced, outside that time."""
        if self._calls % self._period == 0:
            self._last = ()
        self._calls += 1
        elapsed_ms = self._clock.time_ms(call, is_load=is_load)
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
