"""How far the timer can be trusted here: resolution, noise floor of an A/A comparison, effect of the flush."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from hyperbench.measure.clock import Clock, clock_for
from hyperbench.stats import median

_PAIRS = 5
_CALLS = 15
_PROCESS_CALLS = 61
_SEQ_LEN = 1024
_FLUSH_BYTES = 1 << 22


def timer_facts(device: str) -> dict[str, Any]:
    """The timer's report as plain data: `floor` is the largest relative difference of two medians of the same call."""
    clock = clock_for(device)
    return {
        "resolution_ns": clock_resolution_ns(time.perf_counter_ns),
        "pairs": _PAIRS,
        "floor": noise_floor(clock, _small_call(device)),
        "flush_ratio": _flush_ratio(clock) if device == "cuda" else None,
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
        "flush_ratio": _flush_ratio(clock) if full and device == "cuda" else None,
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


def _flush_ratio(clock: Clock) -> float:
    """Time of reading a buffer that fits the L2 after the clock's flush, over that of reading it again and again."""
    buffer = torch.ones(_FLUSH_BYTES // 4, device="cuda")
    buffer.sum()
    cold = median([clock.time_ms(buffer.sum) for _ in range(_CALLS)])
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    warm = []
    for _ in range(_CALLS):
        buffer.sum()
        start.record()
        buffer.sum()
        stop.record()
        stop.synchronize()
        warm.append(start.elapsed_time(stop))
    return cold / median(warm)
