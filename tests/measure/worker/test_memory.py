"""Memory: what the allocator holds is counted by hand, holes in the heap are not in it, and what is unknown is null."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.measure.worker import memory
from hyperbench.measure.worker.memory import CallCost, CpuMemoryPeak, highest_sum, memory_peak_for, read_status_bytes

MIB = 2**20
STATUS = "Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\nThreads:\t2\n"


def cost_of(call: Callable[[], Any]) -> CallCost:
    """What a call takes here."""
    return CpuMemoryPeak().measure([call], time.perf_counter)[1][0]


def mib(size: int) -> Tensor:
    """So many MiB, all of them written."""
    return torch.ones(size * MIB, dtype=torch.uint8)


def test_sizes_are_read_in_bytes() -> None:
    assert read_status_bytes("VmHWM", STATUS) == 2 * MIB
    assert read_status_bytes("VmRSS", STATUS) == MIB


@pytest.mark.parametrize("text", ["", "VmRSS:\tmuch kB\n", "xVmRSS:\t 3 kB\n", "VmRSS:\t3 MB\n", "Threads:\t2\n"])
def test_a_size_that_is_not_there_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="has no VmRSS"):
        read_status_bytes("VmRSS", text)


def test_the_peak_is_what_was_held_at_once_to_the_byte() -> None:
    def call() -> Tensor:
        one, two = mib(1), mib(2)
        del one
        three = mib(4)
        del two
        return three

    results, (cost, whole) = CpuMemoryPeak().measure([call], time.perf_counter)
    assert cost.peak_bytes == whole.peak_bytes == 6 * MIB
    assert results[0].numel() == 4 * MIB
    assert 0 < cost.ms < 10_000


def test_the_peak_of_a_product_and_its_gradient_is_counted_by_hand() -> None:
    x, w = (torch.ones(256, 256, requires_grad=True) for _ in range(2))
    size = 4 * 256 * 256
    assert cost_of(lambda: (x @ w).relu()).peak_bytes == 2 * size
    out, grad = x @ w, torch.ones(256, 256)
    assert cost_of(lambda: torch.autograd.grad(out, (x, w), grad)).peak_bytes == 2 * size


def test_memory_that_is_given_back_or_was_there_before_is_not_counted() -> None:
    kept = [mib(8)]
    assert cost_of(lambda: (kept.pop(), mib(1))[1]).peak_bytes == MIB
    held = mib(64)
    assert cost_of(lambda: held.max()).peak_bytes == 1


def test_holes_in_the_heap_are_resident_and_not_in_the_peak() -> None:
    def leaves_holes() -> Tensor:
        pieces = [torch.ones(MIB // 16, dtype=torch.uint8) for _ in range(512)]
        kept = pieces[1::2]
        del pieces
        return torch.cat([torch.ones(24 * MIB, dtype=torch.uint8), *kept])

    cost = cost_of(leaves_holes)
    assert cost.peak_bytes == (24 + 40 + 16) * MIB
    if cost.resident_peak_bytes is not None:
        assert cost.resident_peak_bytes > 0.9 * cost.peak_bytes


def test_what_the_allocator_knows_nothing_of_is_resident() -> None:
    def by_another() -> int:
        return len(bytearray(b"x" * (32 * MIB)))

    cost = cost_of(by_another)
    assert cost.peak_bytes is None
    if cost.resident_peak_bytes is not None:
        assert cost.resident_peak_bytes > 30 * MIB


def test_nothing_resident_is_seen_where_nothing_was_allocated() -> None:
    kept = mib(64)
    cost = cost_of(lambda: int(kept[0]) + int(torch.ones(1000).sum()))
    assert (cost.peak_bytes or 0) < 10_000
    assert (cost.resident_peak_bytes or 0) <= 8 * MIB


def test_memory_that_was_given_back_is_forgotten() -> None:
    cost_of(lambda: mib(64).sum())
    cost = cost_of(lambda: torch.ones(10))
    assert cost.peak_bytes == 40
    assert (cost.resident_peak_bytes or 0) <= 8 * MIB


def test_a_system_that_does_not_tell_gives_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    cost = cost_of(lambda: mib(1))
    assert cost.before_bytes > 0
    assert (cost.peak_bytes, cost.resident_peak_bytes) == (MIB, None)


def test_what_a_call_raises_is_handed_on_and_the_next_is_measured_as_ever() -> None:
    def fails() -> None:
        mib(3)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cost_of(fails)
    assert cost_of(lambda: mib(1)).peak_bytes == MIB


def test_one_call_after_another_has_the_peak_of_both() -> None:
    held: list[Tensor] = []

    def build() -> None:
        held.append(mib(4))

    def back() -> Tensor:
        one = mib(3)
        held.clear()
        return torch.cat([one, one])

    _, (first, second, whole) = CpuMemoryPeak().measure([build, back], time.perf_counter)
    assert (first.peak_bytes, second.peak_bytes, whole.peak_bytes) == (4 * MIB, 5 * MIB, 9 * MIB)
    assert whole.ms == first.ms + second.ms
    assert whole.before_bytes == first.before_bytes
    if whole.resident_peak_bytes is not None:
        assert whole.resident_peak_bytes >= 6 * MIB


def test_the_highest_of_sums_is_never_below_nothing() -> None:
    assert highest_sum([]) == highest_sum([-5, 3]) == 0
    assert highest_sum([4, -3, 6, -7]) == 7


def test_the_cpu_reads_its_own_memory() -> None:
    assert isinstance(memory_peak_for("cpu"), CpuMemoryPeak)
