"""Peak memory of a call above what was there before it, in bytes: in a call of its own, never while a time is taken.

It is that of a second call: what the first one compiles, tunes and keeps for all further ones is no part of it. Only a
call too slow to be made twice is measured at its first.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.autograd.profiler import profile, record_function

Call = Callable[[], Any]
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_ALLOCATOR_EVENT = "[memory]"
_MARK = "hyperbench: a call begins"


@dataclass(frozen=True)
class CallCost:
    """Memory and time of one call, or of several one after the other.

    Attributes:
        ms: wall time until the result is there.
        before_bytes: in use before it: the resident set on a CPU, what the allocator holds on a GPU.
        peak_bytes: the most that PyTorch's allocator held above what it held before; None where that is not known.
        resident_peak_bytes: the rise of the resident set; None on a GPU, and where the system does not tell.
    """

    ms: float
    before_bytes: int
    peak_bytes: int | None
    resident_peak_bytes: int | None = None


class MemoryPeak(Protocol):
    """A meter of the memory that calls take."""

    def measure(self, calls: Iterable[Call], now_s: Callable[[], float]) -> tuple[list[Any], list[CallCost]]:
        """Make the calls: their results, and the cost of each and, last, of all of them together.

        Raises whatever a call raises.
        """
        ...


class CpuMemoryPeak:
    """PyTorch's allocator by its own events, and the resident set of the process.

    The resident set counts what lies in the heap as a call finds and leaves it, holes included, and memory that
    PyTorch's allocator knows nothing of, such as that of other libraries and of a method's own threads. Its high-water
    mark is reset through /proc/self/clear_refs, after freed memory went back.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)

    def measure(self, calls: Iterable[Call], now_s: Callable[[], float]) -> tuple[list[Any], list[CallCost]]:
        """Make the calls, with PyTorch's profiler of memory around them."""
        results: list[Any] = []
        times_ms, before, high = list[float](), list[int](), list[int | None]()
        with profile(profile_memory=True) as profiler:
            for call in calls:
                can_reset = self._reset()
                with record_function(_MARK):
                    pass
                before.append(read_status_bytes("VmRSS"))
                start_s = now_s()
                results.append(call())
                times_ms.append((now_s() - start_s) * 1e3)
                high.append(read_status_bytes("VmHWM") if can_reset else None)
        changes = _allocator_changes(profiler)
        peaks = [highest_sum(part) if part else None for part in changes]
        rises = [None if top is None else max(0, top - low) for low, top in zip(before, high, strict=True)]
        costs = [CallCost(*found) for found in zip(times_ms, before, peaks, rises, strict=True)]
        everything = [change for part in changes for change in part]
        tops = [top for top in high if top is not None]
        whole = CallCost(
            sum(times_ms),
            before[0],
            highest_sum(everything) if everything else None,
            max(0, max(tops) - before[0]) if len(tops) == len(high) else None,
        )
        return results, [*costs, whole]

    def _reset(self) -> bool:
        """Give freed memory back to the system and reset the high-water mark; False where the system forbids it."""
        gc.collect()
        if hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:
            # Some containers forbid it; the column is then null rather than wrong.
            return False
        return True


class CudaMemoryPeak:
    """PyTorch's caching allocator."""

    def measure(self, calls: Iterable[Call], now_s: Callable[[], float]) -> tuple[list[Any], list[CallCost]]:
        """Make the calls, and wait for the device after each."""
        results: list[Any] = []
        times_ms, before, high = list[float](), list[int](), list[int]()
        for call in calls:
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before.append(int(torch.cuda.memory_allocated()))
            start_s = now_s()
            results.append(call())
            torch.cuda.synchronize()
            times_ms.append((now_s() - start_s) * 1e3)
            high.append(int(torch.cuda.max_memory_allocated()))
        costs = [CallCost(ms, low, max(0, top - low)) for ms, low, top in zip(times_ms, before, high, strict=True)]
        return results, [*costs, CallCost(sum(times_ms), before[0], max(0, max(high) - before[0]))]


def memory_peak_for(device: str) -> MemoryPeak:
    """The memory peak of a device."""
    return CudaMemoryPeak() if device == "cuda" else CpuMemoryPeak()


def _allocator_changes(profiler: Any) -> list[list[int]]:
    """Bytes that PyTorch's allocator took (or gave back, below zero), in order, of each marked call."""
    changes: list[list[int]] = []
    for event in sorted(profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == _MARK:
            changes.append([])
        elif event.name() == _ALLOCATOR_EVENT and changes:
            changes[-1].append(event.nbytes())
    return changes


def highest_sum(changes: Iterable[int]) -> int:
    """The highest sum of the first of these numbers, of none at the least."""
    total = highest = 0
    for change in changes:
        total += change
        highest = max(highest, total)
    return highest


def read_status_bytes(key: str, text: str | None = None) -> int:
    """A size of /proc/self/status (such as VmRSS) in bytes. Raises ValueError if the key is not there."""
    content = _STATUS.read_text() if text is None else text
    found = re.search(rf"^{key}:\s+(\d+) kB$", content, re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status has no {key}")
    return int(found.group(1)) * 1024
