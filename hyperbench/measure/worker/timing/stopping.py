"""Stopping rules of sampling: told of each time, they say if it is enough; they know nothing of calls or clocks."""

from __future__ import annotations

from bisect import bisect, insort

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
ROUNDING = 1e-9


class StoppingRule:
    """End of the sampling of one call: `add` each sample, then ask for the `reason` to stop.

    That is the precision of the median, the most samples, or the budget; with `protocol.fixed_time` the budget alone.
    """

    def __init__(self, protocol: ProtocolConfig, budget_s: float) -> None:
        self._protocol = protocol
        self._budget_s = budget_s
        self._next_look = protocol.min_samples
        # In order, so that looking at the interval costs next to nothing.
        self._ordered: list[float] = []

    def add(self, sample_ms: float) -> None:
        """Take a sample into account."""
        insort(self._ordered, sample_ms)

    def reason(self, spent_ms: float, *, is_spread: bool) -> StopReason | None:
        """The reason to stop after so much time, or None; no precision ends samples that are not spread over enough."""
        protocol, count = self._protocol, len(self._ordered)
        if count >= protocol.min_samples and not protocol.fixed_time:
            at_end = count >= protocol.max_samples
            if at_end or (count >= self._next_look and is_spread):
                self._next_look = max(count + 1, int(_LOOK_GROWTH * count))
                if self._relative_half_width() <= protocol.target_half_width:
                    return StopReason.PRECISION
            if at_end:
                return StopReason.MAX_SAMPLES
        floor = min(protocol.slow_min_samples, protocol.min_samples)
        if count >= floor and spent_ms + self._median() > self._budget_s * 1e3 * (1.0 + ROUNDING):
            return StopReason.BUDGET
        return None

    @property
    def note(self) -> str:
        """The reason for fewer samples than the protocol wants; empty where there are as many."""
        wanted, got = self._protocol.min_samples, len(self._ordered)
        if got >= wanted:
            return ""
        typical_s = self._median() / 1e3
        return f"{got} of {wanted} samples: a call takes {typical_s:.2g} s and the budget is {self._budget_s:g} s"

    def _median(self) -> float:
        middle, odd = divmod(len(self._ordered), 2)
        return self._ordered[middle] if odd else 0.5 * self._ordered[middle - 1] + 0.5 * self._ordered[middle]

    def _relative_half_width(self) -> float:
        """Half the width of the order-statistic interval of the median, over the median."""
        rank = max(median_interval_rank(len(self._ordered)), 1)
        width, middle = self._ordered[-rank] - self._ordered[rank - 1], self._median()
        return 0.5 * width / middle if middle > 0 else 0.0


class WarmUpRule:
    """End of the warm-up of one call: `add` each call, then ask `is_over`."""

    def __init__(self, protocol: ProtocolConfig) -> None:
        self._protocol = protocol
        self._times_ms: list[float] = []
        self._ends_s: list[float] = []
        self._count = self._looked_at = 0

    def add(self, elapsed_ms: float, now_s: float) -> None:
        """Take a call into account that ended so many seconds after the start of the warm-up."""
        self._count += 1
        if self._protocol.warmup_min_s < self._protocol.warmup_max_s:
            self._times_ms.append(elapsed_ms)
            self._ends_s.append(now_s)

    def is_over(self, now_s: float) -> bool:
        """True if enough calls were made, for long enough, and no longer get faster, or for as long as is allowed."""
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
        """Number of the last calls that make up a stretch."""
        if sum(self._times_ms[-_STRETCH_CALLS:]) >= _STRETCH_S * 1e3:
            return _STRETCH_CALLS
        in_last_third = len(self._ends_s) - bisect(self._ends_s, now_s * 2.0 / 3.0)
        return max(_STRETCH_CALLS, min(in_last_third, len(self._times_ms) // 2))
