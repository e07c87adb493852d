"""When to warm up, sample and stop: a small state machine for each timed call, and turns between several of them.

It knows nothing of torch, processes or files; the clock is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hyperbench.schema import StopReason
from hyperbench.stats import median, summarise
from hyperbench.validate import ProtocolConfig

#: Warm-up ends when the median of the last calls is no longer below that of as many before them by more than this part.
_DRIFT_WINDOW = 3
_DRIFT_TOLERANCE = 0.02


class _Clock(Protocol):
    def now_s(self) -> float: ...

    def time_ms(self, call: Callable[[], object]) -> float: ...


class Sampler:
    """Samples of one call: `warm_up` once, then `take` until `done`; an exception of the call ends it and is kept."""

    def __init__(self, call: Callable[[], object], clock: _Clock, protocol: ProtocolConfig, budget_s: float) -> None:
        self._call = call
        self._clock = clock
        self._protocol = protocol
        self._budget_ms = budget_s * 1e3
        self._spent_ms = 0.0
        self.samples_ms: list[float] = []
        self.warmup_ms: list[float] = []
        self.stop_reason: StopReason | None = None
        self.failure: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether no more samples are wanted, because they suffice or because the call failed."""
        return self.stop_reason is not None or self.failure is not None

    def warm_up(self) -> None:
        """Call until calls no longer get faster; a first call above skip_warmup_above_s is kept as a sample instead."""
        first_ms = self._timed()
        if first_ms is None:
            return
        if first_ms > self._protocol.skip_warmup_above_s * 1e3:
            self._add(first_ms)
            return
        self.warmup_ms.append(first_ms)
        start_s = self._clock.now_s()
        while not self._is_warm(self._clock.now_s() - start_s):
            elapsed_ms = self._timed()
            if elapsed_ms is None:
                return
            self.warmup_ms.append(elapsed_ms)

    def take(self, slice_s: float) -> None:
        """Sample for about slice_s seconds, once at least, or until done."""
        taken_ms = 0.0
        while not self.done:
            elapsed_ms = self._timed()
            if elapsed_ms is None:
                return
            self._add(elapsed_ms)
            taken_ms += elapsed_ms
            if taken_ms >= slice_s * 1e3:
                return

    @property
    def note(self) -> str:
        """Why there are fewer samples than the protocol wants, or nothing."""
        wanted, got = self._protocol.min_samples, len(self.samples_ms)
        if self.stop_reason is None or got >= wanted:
            return ""
        typical_s = median(self.samples_ms) / 1e3
        return (
            f"{got} of {wanted} samples: a call takes {typical_s:.2g} s and the budget is {self._budget_ms / 1e3:g} s"
        )

    def _timed(self) -> float | None:
        try:
            return self._clock.time_ms(self._call)
        except Exception as error:  # whatever the measured code raises becomes a row of the table
            self.failure = error.with_traceback(None)
            return None

    def _add(self, elapsed_ms: float) -> None:
        self.samples_ms.append(elapsed_ms)
        self._spent_ms += elapsed_ms
        self.stop_reason = self._why_stop()

    def _why_stop(self) -> StopReason | None:
        protocol, count = self._protocol, len(self.samples_ms)
        if count >= protocol.min_samples:
            if summarise(self.samples_ms).relative_half_width <= protocol.target_half_width:
                return StopReason.PRECISION
            if count >= protocol.max_samples:
                return StopReason.MAX_SAMPLES
        floor = min(protocol.slow_min_samples, protocol.min_samples)
        if count >= floor and self._spent_ms + median(self.samples_ms) > self._budget_ms:
            return StopReason.BUDGET
        return None

    def _is_warm(self, spent_s: float) -> bool:
        protocol, calls = self._protocol, self.warmup_ms
        if len(calls) < protocol.warmup_min_calls:
            return False
        if spent_s >= protocol.warmup_max_s:
            return True
        if spent_s < protocol.warmup_min_s or len(calls) < 2 * _DRIFT_WINDOW:
            return False
        before, last = median(calls[-2 * _DRIFT_WINDOW : -_DRIFT_WINDOW]), median(calls[-_DRIFT_WINDOW:])
        return last >= before * (1.0 - _DRIFT_TOLERANCE)


def interleave(
    samplers: Sequence[Sampler],
    slice_s: float,
    on_turn: Callable[[int], object] = lambda index: None,
    on_done: Callable[[int], object] = lambda index: None,
) -> None:
    """Warm all up, then let them take turns of slice_s seconds until all are done, so that drift meets all alike.

    `on_turn` hears the index of the sampler whose turn begins, `on_done` that of one that is done, at once.
    """
    for index, sampler in enumerate(samplers):
        on_turn(index)
        sampler.warm_up()
        if sampler.done:
            on_done(index)
    while not all(sampler.done for sampler in samplers):
        for index, sampler in enumerate(samplers):
            if not sampler.done:
                on_turn(index)
                sampler.take(slice_s)
                if sampler.done:
                    on_done(index)
