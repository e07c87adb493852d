"""Clocks of calls: a monotonic clock on the CPU, events on CUDA; passed in, so that tests bring their own."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

_FALLBACK_L2_BYTES = 64 << 20
#: Calls are launched while the device sleeps for this many times as long as their launch took, and some more.
_AHEAD = 1.5
_AHEAD_MS = 0.05
#: The device never sleeps longer: a launch that takes more than this is not hidden.
_LONGEST_SLEEP_MS = 20.0
#: A call that waits for the device waits for the sleep too: the sleep grows to so many times the least launch at most.
_MOST_GROWTH = 4.0
#: Cycles of one sleep while their rate is measured, and how many are made: the clock rises meanwhile.
_CALIBRATION_CYCLES = 10_000_000
_CALIBRATIONS = 5


class Clock(Protocol):
    """A timer of one call at a time; `host_ms` is the time until the last one gave the host back, where it differs.

    A clock may also have `left_ms`: how long the device went on working after the end of the last call.
    """

    host_ms: float | None

    def now_s(self) -> float:
        """Seconds on a clock that never goes back, for budgets."""
        ...

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        """Milliseconds from the start of a call until its result is there.

        With `is_load` the call is made for its load alone: nobody reads its time.
        """
        ...


class CpuClock:
    """time.perf_counter around the call; the result is freed after the clock has stopped."""

    host_ms: float | None = None

    def now_s(self) -> float:
        """Seconds of time.perf_counter."""
        return time.perf_counter()

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        """Wall time of the call in milliseconds."""
        start = time.perf_counter()
        result = call()
        stop = time.perf_counter()
        del result
        return (stop - start) * 1e3


class CudaClock:
    """CUDA events around the call, after the L2 cache was overwritten outside the events.

    The device sleeps between that and the first event for as long as the launch of the call takes the host, so that
    all of the call is queued when it begins: its time is then that of the device, without the gaps of the launch.
    The events see the current stream alone. Work of the call on another stream that the current one does not wait for
    shows in `left_ms`, on the clock of the host.

    `cuda` is torch.cuda or stands for it; `allocate` makes a buffer of so many bytes whose `zero_` writes it.
    """

    def __init__(
        self,
        cuda: Any = torch.cuda,
        allocate: Callable[[int], Any] = lambda size: torch.empty(size, dtype=torch.int8, device="cuda"),
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cuda = cuda
        self._now_s = now_s
        self._buffer = allocate(2 * l2_bytes(cuda))
        self._cycles_per_ms = self._measure_cycles()
        # By call: the least time of its launch without a sleep before it, and that of the latest, in milliseconds.
        self._launches: MutableMapping[Callable[[], object], tuple[float, float]] = WeakKeyDictionary()
        self.host_ms: float | None = None
        self.left_ms: float | None = None

    def now_s(self) -> float:
        """Seconds of the host's clock."""
        return self._now_s()

    def flush(self) -> None:
        """Overwrite the L2 cache."""
        self._buffer.zero_()

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        """Device time of the call in milliseconds; `host_ms` is then the time its launch took the host.

        With `is_load` it follows the call before it without a pause: no flush, no sleep.
        """
        begun, start, stop = (self._cuda.Event(enable_timing=True) for _ in range(3))
        sleep_ms = 0.0 if is_load else self._sleep_for(call)
        if not is_load:
            self._cuda.synchronize()
        begun.record()
        if not is_load:
            self.flush()
        if sleep_ms > 0:
            self._cuda._sleep(int(sleep_ms * self._cycles_per_ms))
        start.record()
        before_s = self._now_s()
        result = call()
        host_ms = (self._now_s() - before_s) * 1e3
        stop.record()
        stop.synchronize()
        ended_s = self._now_s()
        self._cuda.synchronize()
        self.left_ms = (self._now_s() - ended_s) * 1e3
        del result
        self._remember(call, host_ms, slept=sleep_ms > 0)
        # Where the host came back later than the device began, it has waited for what lay before the call as well.
        ahead_ms = float(begun.elapsed_time(start))
        self.host_ms = host_ms if host_ms <= ahead_ms else host_ms - ahead_ms
        return float(start.elapsed_time(stop))

    def _sleep_for(self, call: Callable[[], object]) -> float:
        """Milliseconds of sleep that hide the launch of a call; none before one that is too long or not seen yet."""
        least_ms, last_ms = self._launches.get(call, (0.0, 0.0))
        if not least_ms or least_ms > _LONGEST_SLEEP_MS or self._cycles_per_ms <= 0:
            return 0.0
        return min(_AHEAD * last_ms, _MOST_GROWTH * least_ms, _LONGEST_SLEEP_MS) + _AHEAD_MS

    def _remember(self, call: Callable[[], object], host_ms: float, *, slept: bool) -> None:
        """Note what a launch took; after a sleep it may hold a wait for the device and is no least one."""
        least_ms, _ = self._launches.get(call, (host_ms, host_ms))
        self._launches[call] = (least_ms if slept else min(least_ms, host_ms), host_ms)

    def _measure_cycles(self) -> float:
        """Cycles of sleep in a millisecond, at the highest clock seen; 0 where this PyTorch has no sleep."""
        sleep = getattr(self._cuda, "_sleep", None)
        if sleep is None:
            return 0.0
        highest = 0.0
        for _ in range(_CALIBRATIONS):
            start, stop = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
            start.record()
            sleep(_CALIBRATION_CYCLES)
            stop.record()
            stop.synchronize()
            elapsed_ms = float(start.elapsed_time(stop))
            highest = max(highest, _CALIBRATION_CYCLES / elapsed_ms if elapsed_ms > 0 else 0.0)
        return highest


def l2_bytes(cuda: Any = torch.cuda) -> int:
    """Bytes of the current device's L2 cache; a large guess where it does not tell."""
    properties = cuda.get_device_properties(cuda.current_device())
    return int(getattr(properties, "L2_cache_size", 0) or _FALLBACK_L2_BYTES)


def clock_for(device: str) -> Clock:
    """The clock of a device."""
    return CudaClock() if device == "cuda" else CpuClock()
