"""When to warm up, sample and stop: a small state machine for each timed call, and turns between several of them.

It knows nothing of torch, processes or files; the clock is passed in.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from hyperbench.schema import StopReason
from hyperbench.stats import median, median_interval_rank
from hyperbench.validate import ProtocolConfig

#: Warm-up ends when the median of the last calls is no longer below that of as many before them by more than this part.
_DRIFT_WINDOW = 3
_DRIFT_TOLERANCE = 0.02
#: Of a long warm-up the first calls are recorded.
_MOST_WARMUP_KEPT = 1000


class _Clock(Protocol):
    """A clock may also have `host_ms`: after how many milliseconds the last call gave the host back."""

    def now_s(self) -> float: ...

    def time_ms(self, call: Callable[[], object]) -> float: ...


class Sampler:
    """Samples of one call: `warm_up` once, then `take` until `done`; an exception of the call ends it and is kept.

    With `protocol.fixed_time` calls go on until the budget is spent, and of a great many only max_samples, evenly
    spread over the time, are kept: the others are the load under which those were taken.
    """

    def __init__(self, call: Callable[[], object], clock: _Clock, protocol: ProtocolConfig, budget_s: float) -> None:
        self._call = call
        self._clock = clock
        self._protocol = protocol
        self._budget_ms = budget_s * 1e3
        self._spent_ms = 0.0
        self._spacing_ms = self._budget_ms / protocol.max_samples if protocol.fixed_time else 0.0
        self._next_ms = 0.0
        self._ordered: list[float] = []
        self._warmup_calls = 0
        self._last_calls: deque[float] = deque(maxlen=2 * _DRIFT_WINDOW)
        self.samples_ms: list[float] = []
        self.host_ms: list[float] = []
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
        self._add_warmup(first_ms)
        start_s = self._clock.now_s()
        while not self._is_warm(self._clock.now_s() - start_s):
            elapsed_ms = self._timed()
            if elapsed_ms is None:
                return
            self._add_warmup(elapsed_ms)

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

    def _add_warmup(self, elapsed_ms: float) -> None:
        self._warmup_calls += 1
        self._last_calls.append(elapsed_ms)
        if len(self.warmup_ms) < _MOST_WARMUP_KEPT:
            self.warmup_ms.append(elapsed_ms)

    def _add(self, elapsed_ms: float) -> None:
        self._spent_ms += elapsed_ms
        if self._spent_ms >= self._next_ms or not self.samples_ms:
            self._next_ms = self._spent_ms + self._spacing_ms
            self.samples_ms.append(elapsed_ms)
            # Kept in order too, so that looking at the interval after every sample costs next to nothing.
            insort(self._ordered, elapsed_ms)
            host_ms = getattr(self._clock, "host_ms", None)
            if host_ms is not None:
                self.host_ms.append(host_ms)
        self.stop_reason = self._why_stop()

    def _why_stop(self) -> StopReason | None:
        protocol, count = self._protocol, len(self.samples_ms)
        if count >= protocol.min_samples and not protocol.fixed_time:
            if self._relative_half_width() <= protocol.target_half_width:
                return StopReason.PRECISION
            if count >= protocol.max_samples:
                return StopReason.MAX_SAMPLES
        floor = min(protocol.slow_min_samples, protocol.min_samples)
        if count >= floor and self._spent_ms + self._median() > self._budget_ms:
            return StopReason.BUDGET
        return None

    def _median(self) -> float:
        middle, odd = divmod(len(self._ordered), 2)
        return self._ordered[middle] if odd else 0.5 * self._ordered[middle - 1] + 0.5 * self._ordered[middle]

    def _relative_half_width(self) -> float:
        """Half the order-statistic interval of the median over the median, as `stats.Summary` has it."""
        rank = max(median_interval_rank(len(self._ordered)), 1)
        width, middle = self._ordered[-rank] - self._ordered[rank - 1], self._median()
        return 0.5 * width / middle if middle > 0 else 0.0

    def _is_warm(self, spent_s: float) -> bool:
        protocol, calls = self._protocol, list(self._last_calls)
        if self._warmup_calls < protocol.warmup_min_calls:
            return False
        if spent_s >= protocol.warmup_max_s:
            return True
        if spent_s < protocol.warmup_min_s or self._warmup_calls < 2 * _DRIFT_WINDOW:
            return False
        before, last = median(calls[:_DRIFT_WINDOW]), median(calls[_DRIFT_WINDOW:])
        return last >= before * (1.0 - _DRIFT_TOLERANCE)


def interleave(
    samplers: Sequence[Sampler],
    slice_s: float,
    on_turn: Callable[[int], object] = lambda index: None,
    on_done: Callable[[int], object] = lambda index: None,
    on_rest: Callable[[int], object] = lambda index: None,
    *,
    in_turns: bool = True,
) -> None:
    """Warm all up, then let them take turns of slice_s seconds until all are done, so that drift meets all alike.

    `on_turn` hears the index of the sampler whose turn begins, `on_rest` that of one whose turn ends, `on_done` that
    of one that is done, at once. With `in_turns` false each is brought to its end, after its warm-up, before the next.
    """

    def turn(index: int, act: Callable[[], object]) -> None:
        on_turn(index)
        act()
        on_rest(index)
        if samplers[index].done:
            on_done(index)

    def sample(index: int) -> None:
        sampler = samplers[index]
        if not sampler.done:
            turn(index, lambda: sampler.take(slice_s))

    for index, sampler in enumerate(samplers):
        turn(index, sampler.warm_up)
        while not (in_turns or sampler.done):
            sample(index)
    while not all(sampler.done for sampler in samplers):
        for index in range(len(samplers)):
            sample(index)
