"""How far the timer can be trusted here: resolution, noise floor of an A/A comparison, effect of the flush."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from hyperbench.measure.clock import Clock, CudaClock, clock_for
from hyperbench.stats import median

_PAIRS = 5
_CALLS = 15
_PROCESS_CALLS = 61
_SEQ_LEN = 1024
_FLUSH_BYTES = 1 << 22
#: About half a millisecond, in which the host launches what is timed.
_BUSY_CYCLES = 1_000_000


def timer_facts(device: str) -> dict[str, Any]:
    """The timer's report as plain data: `floor` is the largest relative difference of two medians of the same call."""
    clock = clock_for(device)
    flush: dict[str, float] = {}
    if isinstance(clock, CudaClock):
        flush = {"flush_ratio": flush_ratio(clock, _small_read(), torch.cuda), **flush_times(clock)}
    return {
        "resolution_ns": clock_resolution_ns(time.perf_counter_ns),
        "pairs": _PAIRS,
        "floor": noise_floor(clock, _small_call(device)),
        "flush_ratio": None,
        **flush,
    }


def noise_facts(device: str, *, full: bool) -> dict[str, Any]:
    """This process's median of a small call in milliseconds; with `full` the timer's resolution and the flush too."""
    clock = clock_for(device)
    call = _small_call(device)
    for _ in range(_CALLS):
        clock.time_ms(call)
    return {
        "median_ms": median([clock.time_ms(call) for _ in range(_PROCESS_CALLS)]),
        "resolution_ns": clock_resolution_ns(time.perf_counter_ns) if full else None,
        "flush_ratio": flush_ratio(clock, _small_read(), torch.cuda) if full and isinstance(clock, CudaClock) else None,
    }


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


def noise_floor(clock: Clock, call: Callable[[], object], pairs: int = _PAIRS, calls: int = _CALLS) -> float:
    """The largest |a / b - 1| of two medians of the same call taken in turns, over some pairs."""
    for _ in range(3):
        clock.time_ms(call)
    worst = 0.0
    for _ in range(pairs):
        sides: tuple[list[float], list[float]] = ([], [])
        for index in range(2 * calls):
            sides[index % 2].append(clock.time_ms(call))
        low, high = sorted((median(sides[0]), median(sides[1])))
        worst = max(worst, high / low - 1.0 if low > 0 else 0.0)
    return worst


def _small_call(device: str) -> Callable[[], object]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x = torch.randn(1, 1, _SEQ_LEN, 64, device=device, dtype=dtype)
    return lambda: scaled_dot_product_attention(x, x, x)


def flush_ratio(clock: CudaClock, read: Callable[[], object], cuda: Any) -> float:
    """Time of reading what fits into the L2 cache right after the clock's flush, over that of reading it once more.

    Both reads are launched while the device still waits in a loop, so that neither waits for its launch. `cuda` is
    torch.cuda or stands for it.
    """
    keep_busy = getattr(cuda, "_sleep", lambda cycles: None)
    medians = []
    for is_warm in (False, True):
        times = []
        for _ in range(_CALLS):
            start, stop = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
            clock.flush()
            if is_warm:
                read()
            keep_busy(_BUSY_CYCLES)
            start.record()
            read()
            stop.record()
            stop.synchronize()
            times.append(float(start.elapsed_time(stop)))
        medians.append(median(times))
    cold, warm = medians
    return cold / warm


def flush_times(clock: CudaClock) -> dict[str, float]:
    """What the clock says of a call that does nothing, and of a flush as a call: `empty_ms` and `flush_ms`.

    A flush that is timed with the call is part of both.
    """
    calls = {"empty_ms": lambda: None, "flush_ms": clock.flush}
    return {name: median([clock.time_ms(call) for _ in range(_CALLS)]) for name, call in calls.items()}


def _small_read() -> Callable[[], object]:
    """A read of a buffer that fits the L2 cache of any GPU."""
    return torch.ones(_FLUSH_BYTES // 4, device="cuda").sum
