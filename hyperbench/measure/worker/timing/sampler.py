"""When to warm up, sample and stop: a small state machine for each timed call, and turns between several of them.

It knows nothing of torch, processes or files; the clock is passed in.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Callable, Sequence
from typing import Protocol

from hyperbench.config.types import ProtocolConfig
from hyperbench.stats.samples import median, median_interval_rank
from hyperbench.store.schema import StopReason

#: Warm-up ends when the median of its last stretch is not below that of the stretch before by more than this part.
_DRIFT_TOLERANCE = 0.005
#: A stretch has so many calls at least. Where these take less than so many seconds it is a third of the warm-up: a few
#: calls of microseconds lie so close together that no drift shows between them.
_STRETCH_CALLS = 3
_STRETCH_S = 0.02
#: The precision is looked at when there are min_samples, and then each time their number has grown by this factor: who
#: looks after every sample stops by luck, and the interval then covers less than it says.
_LOOK_GROWTH = 1.5
#: Sums of times that should be equal differ by no more than this part.
_ROUNDING = 1e-9
#: Of a long warm-up the first calls are recorded.
_MOST_WARMUP_KEPT = 1000


class _Clock(Protocol):
    """A clock may also have `host_ms`: after how many milliseconds the last call gave the host back."""

    def now_s(self) -> float: ...

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float: ...


class Sampler:
    """Samples of one call: `warm_up` once, then `take` until `done`; an exception of the call ends it and is kept.

    Time is counted as it passes, whatever the clock does around a call included. With `protocol.fixed_time` calls go on
    until the budget is spent; else precision ends them, but not before they are spread over `protocol.min_spread_s`. Of
    a great many calls only max_samples, evenly spread over that time, are kept: the others are the load under which
    those were taken, and with a fixed time the clock is told so.
    """

    def __init__(self, call: Callable[[], object], clock: _Clock, protocol: ProtocolConfig, budget_s: float) -> None:
        self._call = call
        self._clock = clock
        self._protocol = protocol
        self._budget_ms = budget_s * 1e3
        self._spread_ms = self._budget_ms if protocol.fixed_time else protocol.min_spread_s * 1e3
        self._began_s = 0.0
        self._passed_ms = self._spent_ms = self._next_ms = 0.0
        self._next_look = protocol.min_samples
        self._ordered: list[float] = []
        self._warmup = _Warmup(protocol)
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
        """Call until calls no longer get faster.

        A first call above skip_warmup_above_s is all of the warm-up, and one above keep_first_above_s a sample instead.
        """
        protocol = self._protocol
        first_ms = self._timed()
        if first_ms is None:
            return
        if first_ms > max(protocol.skip_warmup_above_s, protocol.keep_first_above_s) * 1e3:
            self._add(first_ms)
            return
        self.warmup_ms.append(first_ms)
        self._warmup.add(first_ms, 0.0)
        if first_ms > protocol.skip_warmup_above_s * 1e3:
            return
        # Its time is not counted: it may load what the others use.
        start_s = self._clock.now_s()
        while not self._warmup.is_over(self._clock.now_s() - start_s):
            elapsed_ms = self._timed(is_load=protocol.fixed_time)
            if elapsed_ms is None:
                return
            self._warmup.add(elapsed_ms, self._clock.now_s() - start_s)
            if len(self.warmup_ms) < _MOST_WARMUP_KEPT:
                self.warmup_ms.append(elapsed_ms)

    def take(self, slice_s: float) -> None:
        """Sample for about slice_s seconds, once at least, or until done.

        Until the samples are spread over min_spread_s turns are as much shorter as that is shorter than the budget.
        """
        taken_ms = 0.0
        while not self.done:
            elapsed_ms = self._timed(is_load=self._protocol.fixed_time and not self._is_next)
            if elapsed_ms is None:
                return
            self._add(elapsed_ms)
            taken_ms += self._passed_ms
            if taken_ms >= slice_s * 1e3 or (not self._is_spread and taken_ms >= self._short_turn_ms):
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

    @property
    def _is_next(self) -> bool:
        """Whether the next call is kept as a sample."""
        return not self.samples_ms or self._spent_ms >= self._next_ms * (1.0 - _ROUNDING)

    @property
    def _is_spread(self) -> bool:
        """Whether the samples lie over enough time for precision to end them; the turns of others count."""
        if self._protocol.fixed_time:
            return True
        since_first_ms = (self._clock.now_s() - self._began_s) * 1e3
        return max(self._spent_ms, since_first_ms) >= self._spread_ms * (1.0 - _ROUNDING)

    @property
    def _short_turn_ms(self) -> float:
        return self._spread_ms / self._protocol.slices

    def _timed(self, *, is_load: bool = False) -> float | None:
        start_s = self._clock.now_s()
        try:
            elapsed_ms = self._clock.time_ms(self._call, is_load=is_load)
        except Exception as error:  # whatever the measured code raises becomes a row of the table
            self.failure = error.with_traceback(None)
            return None
        self._passed_ms = max(elapsed_ms, (self._clock.now_s() - start_s) * 1e3)
        return elapsed_ms

    def _add(self, elapsed_ms: float) -> None:
        kept, begun_ms = self._is_next, self._spent_ms
        if not self.samples_ms:
            self._began_s = self._clock.now_s() - self._passed_ms / 1e3
        self._spent_ms += self._passed_ms
        if kept:
            self._next_ms = begun_ms + self._spread_ms / self._protocol.max_samples
            self.samples_ms.append(elapsed_ms)
            # Kept in order too, so that looking at the interval costs next to nothing.
            insort(self._ordered, elapsed_ms)
            host_ms = getattr(self._clock, "host_ms", None)
            if host_ms is not None:
                self.host_ms.append(host_ms)
        self.stop_reason = self._why_stop()

    def _why_stop(self) -> StopReason | None:
        protocol, count = self._protocol, len(self.samples_ms)
        if count >= protocol.min_samples and not protocol.fixed_time:
            at_end = count >= protocol.max_samples
            if at_end or (count >= self._next_look and self._is_spread):
                self._next_look = max(count + 1, int(_LOOK_GROWTH * count))
                if self._relative_half_width() <= protocol.target_half_width:
                    return StopReason.PRECISION
            if at_end:
                return StopReason.MAX_SAMPLES
        floor = min(protocol.slow_min_samples, protocol.min_samples)
        if count >= floor and self._spent_ms + self._median() > self._budget_ms * (1.0 + _ROUNDING):
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


class _Warmup:
    """Whether a call has been made long enough to be warm."""

    def __init__(self, protocol: ProtocolConfig) -> None:
        self._protocol = protocol
        self._times_ms: list[float] = []
        self._ends_s: list[float] = []
        self._count = self._looked_at = 0

    def add(self, elapsed_ms: float, now_s: float) -> None:
        """A call took so long and ended so many seconds after the start of the warm-up."""
        self._count += 1
        if self._protocol.warmup_min_s < self._protocol.warmup_max_s:
            self._times_ms.append(elapsed_ms)
            self._ends_s.append(now_s)

    def is_over(self, now_s: float) -> bool:
        """Whether calls enough were made, for long enough, and no longer get faster, or for as long as is allowed."""
        protocol = self._protocol
        if self._count < protocol.warmup_min_calls:
            return False
        if now_s >= protocol.warmup_max_s:
            return True
        if now_s < protocol.warmup_min_s or len(self._times_ms) < 2 * _STRETCH_CALLS:
            return False
        # Of very many calls not after each: the medians would take longer than the calls.
        if 20 * (self._count - self._looked_at) < self._count:
            return False
        self._looked_at = self._count
        return not self._gets_faster(now_s)

    def _gets_faster(self, now_s: float) -> bool:
        count = self._stretch(now_s)
        last, before = self._times_ms[-count:], self._times_ms[-2 * count : -count]
        return median(last) < median(before) * (1.0 - _DRIFT_TOLERANCE)

    def _stretch(self, now_s: float) -> int:
        """How many of the last calls make up a stretch."""
        if sum(self._times_ms[-_STRETCH_CALLS:]) >= _STRETCH_S * 1e3:
            return _STRETCH_CALLS
        in_last_third = len(self._ends_s) - bisect(self._ends_s, now_s * 2.0 / 3.0)
        return max(_STRETCH_CALLS, min(in_last_third, len(self._times_ms) // 2))


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
