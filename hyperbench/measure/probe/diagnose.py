"""Trust in the timer of this machine: resolution, noise floor of an A/A comparison, effect of the flush."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from hyperbench.measure.worker.clock import Clock, CudaClock, clock_for, l2_bytes
from hyperbench.stats.samples import median

_PAIRS = 5
_CALLS = 15
_PROCESS_CALLS = 61
_WARM_S = 0.3
_SEQ_LEN = 1024
_GPU_SEQ_LEN = 16384
_GPU_HEADS = 12


def timer_facts(device: str) -> dict[str, Any]:
    """The timer's report as plain data: `floor` is the largest relative difference of two medians of the same call."""
    clock = clock_for(device)
    return {
        "resolution_ns": clock_resolution_ns(time.perf_counter_ns),
        "pairs": _PAIRS,
        "floor": noise_floor(clock, _some_call(device), warm_s=_WARM_S),
        "flush_ratio": _device_flush_ratio() if isinstance(clock, CudaClock) else None,
        **(flush_times(clock) if isinstance(clock, CudaClock) else {}),
    }


def noise_facts(device: str, *, full: bool) -> dict[str, Any]:
    """This process's median of some call in milliseconds; with `full` the timer's resolution and the flush too."""
    clock = clock_for(device)
    call = _some_call(device)
    warm_up(clock, call, _CALLS, _WARM_S)
    return {
        "median_ms": median([clock.time_ms(call) for _ in range(_PROCESS_CALLS)]),
        "resolution_ns": clock_resolution_ns(time.perf_counter_ns) if full else None,
        "flush_ratio": _device_flush_ratio() if full and device == "cuda" else None,
    }


def warm_up(clock: Clock, call: Callable[[], object], calls: int, seconds: float) -> None:
    """Make a call so often, and for so long: the clocks of an idle GPU take their time to rise."""
    began_s, made = clock.now_s(), 0
    while made < calls or clock.now_s() - began_s < seconds:
        clock.time_ms(call)
        made += 1


def clock_resolution_ns(now_ns: Callable[[], int], readings: int = 1000) -> int:
    """The smallest step between two different readings of a clock."""
    steps = []
    before = now_ns()
    for _ in range(readings):
        after = now_ns()
        if after > before:
            steps.append(after - before)
        before = after
    return min(steps, default=0)


def noise_floor(
    clock: Clock, call: Callable[[], object], pairs: int = _PAIRS, calls: int = _CALLS, warm_s: float = 0.0
) -> float:
    """The largest |a / b - 1| of two medians of the same call taken in turns, over some pairs."""
    warm_up(clock, call, 3, warm_s)
    worst = 0.0
    for _ in range(pairs):
        sides: tuple[list[float], list[float]] = ([], [])
        for index in range(2 * calls):
            sides[index % 2].append(clock.time_ms(call))
        low, high = sorted((median(sides[0]), median(sides[1])))
        worst = max(worst, high / low - 1.0 if low > 0 else 0.0)
    return worst


def flush_ratio(flushed: Clock, warm: Clock, read: Callable[[], object], seconds: float = 0.0) -> float:
    """The time of a read by a clock that flushes before it, over that by one that does not; above 1 if it works."""
    warm_up(flushed, read, 3, seconds)
    pairs = [(flushed.time_ms(read), warm.time_ms(read)) for _ in range(_CALLS)]
    cold_ms, warm_ms = (median(times) for times in zip(*pairs, strict=True))
    return cold_ms / warm_ms if warm_ms > 0 else 0.0


def flush_times(clock: CudaClock) -> dict[str, float]:
    """Times by the clock of a call that does nothing and of a flush as a call: `empty_ms` and `flush_ms`.

    A flush that is timed with the call is part of both.
    """
    calls = {"empty_ms": lambda: None, "flush_ms": clock.flush}
    return {name: median([clock.time_ms(call) for _ in range(_CALLS)]) for name, call in calls.items()}


def _some_call(device: str) -> Callable[[], object]:
    """A call of some milliseconds at most, on a fast GPU of one at least: there a shorter one would show its launch."""
    if device == "cuda":
        x = torch.randn(1, _GPU_HEADS, _GPU_SEQ_LEN, 64, device=device, dtype=torch.bfloat16)
    else:
        x = torch.randn(1, 1, _SEQ_LEN, 64)
    return lambda: scaled_dot_product_attention(x, x, x)


class _Touch:
    """In the place of the buffer of a flush: reads what is read next, so that the cache holds it."""

    def __init__(self, read: Callable[[], object]) -> None:
        self._read = read

    def zero_(self) -> None:
        """Read."""
        self._read()


def _device_flush_ratio() -> float:
    """The ratio for a buffer of half the L2 of this GPU, both times by the same kind of clock."""
    buffer = torch.ones(l2_bytes() // 8, device="cuda")

    def read() -> object:
        return buffer.sum()

    return flush_ratio(CudaClock(), CudaClock(allocate=lambda size: _Touch(read)), read, _WARM_S)
