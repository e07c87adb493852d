"""What a call takes: a monotonic clock on the CPU, events on CUDA. The clock is passed in, so tests bring their own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch


class Clock(Protocol):
    """Times one call at a time."""

    def now_s(self) -> float:
        """Seconds on a clock that never goes back, for budgets."""
        ...

    def time_ms(self, call: Callable[[], object]) -> float:
        """Milliseconds from the start of a call until its result is there."""
        ...


class CpuClock:
    """time.perf_counter around the call; the result is freed after the clock has stopped."""

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
    """CUDA events around the call, after the L2 cache was overwritten outside the events."""

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self._flush = torch.empty(2 * properties.L2_cache_size, dtype=torch.int8, device="cuda")

    def now_s(self) -> float:
        """Seconds of time.perf_counter."""
        return time.perf_counter()

    def time_ms(self, call: Callable[[], object]) -> float:
        """Device time of the call in milliseconds."""
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        torch.cuda.synchronize()
        start.record()
        result = call()
        stop.record()
        stop.synchronize()
        del result
        return float(start.elapsed_time(stop))


def clock_for(device: str) -> Clock:
    """The clock of a device."""
    return CudaClock() if device == "cuda" else CpuClock()
