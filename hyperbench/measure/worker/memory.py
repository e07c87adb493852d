"""Peak memory of a call above what was there before it, in bytes: in a pass of its own, never while a time is taken.

It is that of a second call: what the first one compiles, tunes and keeps for all further ones is no part of it. Only a
call too slow to be made twice is measured at its first.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path
from typing import Protocol

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


class MemoryPeak(Protocol):
    """A reader of the memory in use, and of the most that was in use since the last reset."""

    def reset(self) -> int:
        """Forget the high-water mark; the bytes in use now."""
        ...

    def high_bytes(self) -> int | None:
        """The most bytes in use since the reset; None where the system does not tell."""
        ...


class CpuMemoryPeak:
    """The resident set: its high-water mark is reset through /proc/self/clear_refs, after freed memory went back."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._works = True

    def reset(self) -> int:
        """Give freed memory back to the system and reset the high-water mark; VmRSS in bytes."""
        gc.collect()
        if hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:
            # Some containers forbid it; the column is then null rather than wrong.
            self._works = False
        return read_status_bytes("VmRSS")

    def high_bytes(self) -> int | None:
        """VmHWM in bytes."""
        return read_status_bytes("VmHWM") if self._works else None


class CudaMemoryPeak:
    """PyTorch's caching allocator."""

    def reset(self) -> int:
        """Reset the allocator's peak; the bytes allocated now."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())

    def high_bytes(self) -> int | None:
        """The allocator's peak in bytes."""
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())


def memory_peak_for(device: str) -> MemoryPeak:
    """The memory peak of a device."""
    return CudaMemoryPeak() if device == "cuda" else CpuMemoryPeak()


def read_status_bytes(key: str, text: str | None = None) -> int:
    """A size of /proc/self/status (such as VmRSS) in bytes. Raises ValueError if the key is not there."""
    content = _STATUS.read_text() if text is None else text
    found = re.search(rf"^{key}:\s+(\d+) kB$", content, re.MULTILINE)
    if found is None:
        raise ValueError(f"/proc/self/status has no {key}")
    return int(found.group(1)) * 1024
