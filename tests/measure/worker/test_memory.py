"""Memory: a large allocation is seen, its absence too, and a system that does not tell gives null."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hyperbench.measure.worker import memory
from hyperbench.measure.worker.memory import CpuMemoryPeak, memory_peak_for, read_status_bytes

MIB = 2**20
STATUS = "Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\nThreads:\t2\n"


@pytest.fixture
def memory_peak() -> CpuMemoryPeak:
    """A memory peak that works here."""
    made = CpuMemoryPeak()
    made.reset()
    if made.high_bytes() is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    return made


def test_sizes_are_read_in_bytes() -> None:
    assert read_status_bytes("VmHWM", STATUS) == 2 * MIB
    assert read_status_bytes("VmRSS", STATUS) == MIB


@pytest.mark.parametrize("text", ["", "VmRSS:\tmuch kB\n", "xVmRSS:\t 3 kB\n", "VmRSS:\t3 MB\n", "Threads:\t2\n"])
def test_a_size_that_is_not_there_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="has no VmRSS"):
        read_status_bytes("VmRSS", text)


def test_a_large_allocation_is_seen_after_it_is_gone(memory_peak: CpuMemoryPeak) -> None:
    level = memory_peak.reset()
    tensor = torch.ones(64 * MIB, dtype=torch.uint8)
    del tensor
    high = memory_peak.high_bytes()
    assert high is not None
    assert 56 * MIB <= high - level <= 96 * MIB


def test_nothing_is_seen_where_nothing_was_allocated(memory_peak: CpuMemoryPeak) -> None:
    kept = torch.ones(64 * MIB, dtype=torch.uint8)
    level = memory_peak.reset()
    total = int(torch.ones(1000).sum()) + int(kept[0])
    high = memory_peak.high_bytes()
    assert total == 1001
    assert high is not None
    assert high - level <= 8 * MIB


def test_memory_that_was_given_back_is_forgotten(memory_peak: CpuMemoryPeak) -> None:
    level = memory_peak.reset()
    del level
    torch.ones(64 * MIB, dtype=torch.uint8).sum()
    level = memory_peak.reset()
    high = memory_peak.high_bytes()
    assert high is not None
    assert high - level <= 8 * MIB


def test_a_system_that_does_not_tell_gives_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    memory_peak = CpuMemoryPeak()
    assert memory_peak.reset() > 0
    assert memory_peak.high_bytes() is None


def test_the_cpu_reads_its_own_memory() -> None:
    assert isinstance(memory_peak_for("cpu"), CpuMemoryPeak)
