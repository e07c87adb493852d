"""Sampling: a small state machine for each timed call, and turns between several of them.

It knows nothing of torch, processes or files, nor of statistics: the clock is passed in, and rules say when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from hyperbench.config.types import ProtocolConfig
from hyperbench.measure.worker.timing.stopping import ROUNDING, StoppingRule, WarmUpRule
from hyperbench.store.schema import StopReason

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
    those were taken, and with a fixed time the clock is told so. `between` is called before each call, untimed, so that
    none is timed right after itself; before one that is load alone it is not.
    """

    def __init__(
        self,
        call: Callable[[], object],
        clock: _Clock,
        protocol: ProtocolConfig,
        budget_s: float,
        between: Callable[[], object] | None = None,
    ) -> None:
        self._call = call
        self._clock = clock
        self._between = between
        self._protocol = protocol
        self._spread_ms = (budget_s if protocol.fixed_time else protocol.min_spread_s) * 1e3
        self._began_s = 0.0
        self._passed_ms = self._spent_ms = self._next_ms = 0.0
        self._rule = StoppingRule(protocol, budget_s)
        self.samples_ms: list[float] = []
        self.host_ms: list[float] = []
        self.warmup_ms: list[float] = []
        self.stop_reason: StopReason | None = None
        self.failure: Exception | None = None

    @property
    def done(self) -> bool:
        """True if no more samples are wanted: they suffice, or the call failed."""
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
        if first_ms > protocol.skip_warmup_above_s * 1e3:
            return
        rule = WarmUpRule(protocol)
        # Its time is not counted: it may load what the others use.
        rule.add(first_ms, 0.0)
        start_s = self._clock.now_s()
        while not rule.is_over(self._clock.now_s() - start_s):
            elapsed_ms = self._timed(is_load=protocol.fixed_time)
            if elapsed_ms is None:
                return
            rule.add(elapsed_ms, self._clock.now_s() - start_s)
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
            short_ms = self._spread_ms / self._protocol.slices
            if taken_ms >= slice_s * 1e3 or (not self._is_spread and taken_ms >= short_ms):
                return

    @property
    def note(self) -> str:
        """The reason for fewer samples than the protocol wants, or nothing."""
        return "" if self.stop_reason is None else self._rule.note

    @property
    def _is_next(self) -> bool:
        """True if the next call is kept as a sample."""
        return not self.samples_ms or self._spent_ms >= self._next_ms * (1.0 - ROUNDING)

    @property
    def _is_spread(self) -> bool:
        """True if the samples lie over enough time for precision to end them; the turns of others count."""
        if self._protocol.fixed_time:
            return True
        since_first_ms = (self._clock.now_s() - self._began_s) * 1e3
        return max(self._spent_ms, since_first_ms) >= self._spread_ms * (1.0 - ROUNDING)

    def _timed(self, *, is_load: bool = False) -> float | None:
        start_s = self._clock.now_s()
        try:
            if self._between is not None and not is_load:
                self._between()
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
            self._rule.add(elapsed_ms)
            host_ms = getattr(self._clock, "host_ms", None)
            if host_ms is not None:
                self.host_ms.append(host_ms)
        self.stop_reason = self._rule.reason(self._spent_ms, is_spread=self._is_spread)


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
        if not samplers[index].done:
            turn(index, lambda: samplers[index].take(slice_s))

    for index, sampler in enumerate(samplers):
        turn(index, sampler.warm_up)
        while not (in_turns or sampler.done):
            sample(index)
    while not all(sampler.done for sampler in samplers):
        for index in range(len(samplers)):
            sample(index)
