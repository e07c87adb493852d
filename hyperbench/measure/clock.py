"""What a call takes: a monotonic clock on the CPU, events on CUDA. The clock is passed in, so tests bring their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

_FALLBACK_L2_BYTES = 64 << 20


class Clock(Protocol):
    """Times one call at a time; `host_ms` is after how long the last call gave the host back, where that is not all.

    A clock may also have `left_ms`: how long the device went on working after the end of the last call.
    """

    host_ms: float | None

    def now_s(self) -> float:
        """Seconds on a clock that never goes back, for budgets."""
        ...

    def time_ms(self, call: Callable[[], object]) -> float:
        """Milliseconds from the start of a call until its result is there."""
        ...


class CpuClock:
    """time.perf_counter around the call; the result is freed after the clock has stopped."""

    host_ms: float | None = None

    def now_s(self) -> float:
        """Seconds of time.perf_counter."""
        return time.perf_counter()

    def time_ms(self, call: Callable[[], object]) -> float:
        """Wall time of the call in milliseconds."""
        start = time.perf_counter()
        result = call()
        stop = time.perf_counter()
        del result
        return (stop - start) * 1e3


class CudaClock:
    """CUDA events around the call, after the L2 cache was overwritten outside the events.

    The events see the current stream alone. Work of the call on another stream that the current one does not wait for
    shows in `left_ms`, on the clock of the host.

    `cuda` is torch.cuda or stands for it; `allocate` makes a buffer of so many bytes on the device whose `zero_` writes
    it; `now_s` is the host's clock. The buffer is twice the device's L2.
    """

    def __init__(
        self,
        cuda: Any = torch.cuda,
        allocate: Callable[[int], Any] | None = None,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cuda = cuda
        self._now_s = now_s
        properties = cuda.get_device_properties(cuda.current_device())
        l2_bytes = getattr(properties, "L2_cache_size", 0) or _FALLBACK_L2_BYTES
        self._buffer = (allocate or _device_bytes)(2 * l2_bytes)
        self.host_ms: float | None = None
        self.left_ms: float | None = None

    def now_s(self) -> float:
        """Seconds of the host's clock."""
        return self._now_s()

    def flush(self) -> None:
        """Overwrite the L2 cache."""
        self._buffer.zero_()

    def time_ms(self, call: Callable[[], object]) -> float:
        """Device time of the call in milliseconds; `host_ms` is then the time its launch took the host."""
        start, stop = self._cuda.Event(enable_timing=True), self._cuda.Event(enable_timing=True)
        self.flush()
        self._cuda.synchronize()
        start.record()
        before_s = self._now_s()
        result = call()
        self.host_ms = (self._now_s() - before_s) * 1e3
        stop.record()
        stop.synchronize()
        ended_s = self._now_s()
        self._cuda.synchronize()
        self.left_ms = (self._now_s() - ended_s) * 1e3
        del result
        return float(start.elapsed_time(stop))


def clock_for(device: str) -> Clock:
    """The clock of a device."""
    return CudaClock() if device == "cuda" else CpuClock()


def _device_bytes(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")
