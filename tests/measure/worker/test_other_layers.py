"""The work between two calls: bounded, on a CPU alone, and what it made lives until the next time."""

from __future__ import annotations

import dataclasses
import time
import weakref

import pytest
import torch

from hyperbench.measure.worker.memory import CpuMemoryPeak
from hyperbench.measure.worker.timing.other_layers import OtherLayers, other_layers
from tests.helpers.made_records import a_point
from tests.helpers.made_runs import tiny

PROTOCOL = tiny().config.protocol


@pytest.mark.parametrize(("num_tokens", "width", "rows"), [(1, 1, 1), (100, 8, 100), (10**9, 64, 4096)])
def test_it_takes_memory_for_a_hidden_state_of_bounded_size(num_tokens: int, width: int, rows: int) -> None:
    work = OtherLayers(num_tokens, width)
    work()
    _, (cost, _) = CpuMemoryPeak().measure([work], time.perf_counter)
    hidden_bytes = 4 * rows * width
    assert cost.peak_bytes is not None
    assert 5 * hidden_bytes <= cost.peak_bytes <= 20 * hidden_bytes + 10_000


def test_what_it_made_lives_until_the_next_time_and_needs_no_gradient() -> None:
    work = OtherLayers(10, 8)
    work()
    made = [weakref.ref(x) for x in work._made]
    assert all(x() is not None and not x().requires_grad for x in made)  # type: ignore[union-attr]
    work()
    assert not any(x() is not None for x in made)


def test_settings_of_the_process_do_not_reach_it() -> None:
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        work = OtherLayers(10, 8)
        work()
    finally:
        torch.set_default_dtype(dtype)
    assert {x.dtype for x in work._made} == {torch.float32}


def test_a_gpu_and_the_authors_way_do_without() -> None:
    point = a_point(head_dim=8, seq_len=16)
    assert other_layers(point, PROTOCOL) is not None
    assert other_layers(dataclasses.replace(point, device="cuda"), PROTOCOL) is None
    assert other_layers(point, dataclasses.replace(PROTOCOL, as_paper=True)) is None
