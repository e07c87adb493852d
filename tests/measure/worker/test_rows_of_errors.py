"""Estimates from a part of the rows: unbiased, with intervals that cover, whatever the weight of early rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hyperbench.measure.worker.errors.rows import Rows, all_rows, draw_rows

LENGTH, DRAWN, DRAWS = 4000, 256, 300


def rows_of_attention(is_causal: bool) -> tuple[Tensor, Tensor]:
    """Squares of errors and of outputs (LENGTH,), heavy-tailed; under a mask early outputs are large."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, LENGTH, 8, generator=generator, dtype=torch.float64).square().mean(2)
    seen = torch.arange(1, LENGTH + 1, dtype=torch.float64) if is_causal else torch.full((LENGTH,), float(LENGTH))
    errors = noise[0] * (torch.arange(LENGTH) >= 100) * seen.sqrt() / LENGTH
    return errors, noise[1] / seen


@pytest.mark.parametrize("is_causal", [False, True])
def test_estimates_are_unbiased_and_their_intervals_cover(is_causal: bool) -> None:
    parts, wholes = rows_of_attention(is_causal)
    row_errors = (parts / wholes).sqrt()
    everything = all_rows(LENGTH)
    truths = {
        "root": everything.root_of_ratio(parts, wholes),
        "mean": everything.mean(row_errors),
        "p90": everything.quantile(row_errors[None], 0.9),
    }
    found: dict[str, list[tuple[float, bool]]] = {name: [] for name in truths}
    for seed in range(DRAWS):
        rows = draw_rows(LENGTH, DRAWN, is_causal, seed)
        at = rows.positions
        estimates = {
            "root": rows.root_of_ratio(parts[at], wholes[at]),
            "mean": rows.mean(row_errors[at]),
            "p90": rows.quantile(row_errors[None, at], 0.9),
        }
        for name, estimate in estimates.items():
            assert estimate.low is not None
            assert estimate.high is not None
            found[name].append((float(estimate), estimate.low <= truths[name] <= estimate.high))
    for name, values in found.items():
        mean = sum(value for value, _ in values) / DRAWS
        assert mean == pytest.approx(truths[name], rel=0.02), name
        assert sum(covers for _, covers in values) / DRAWS >= 0.9, name


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("length", "count"), [(10, 1), (10, 9), (1000, 37), (131072, 2048)])
def test_weights_add_up_to_the_number_of_rows(length: int, count: int, is_causal: bool) -> None:
    rows = draw_rows(length, count, is_causal, 5)
    assert len(rows) == count
    assert rows.weights is not None
    assert rows.positions.tolist() == sorted(rows.positions.tolist())
    assert 0 <= int(rows.positions.min()) <= int(rows.positions.max()) < length
    assert float(rows.weights.min()) >= 1.0
    if count > 30:
        assert float(rows.weights.sum()) == pytest.approx(length, rel=0.15)


def test_early_rows_are_certain_under_a_mask_alone() -> None:
    causal, free = (draw_rows(131072, 2048, mask, 0) for mask in (True, False))
    assert causal.positions[:80].tolist() == list(range(80))
    assert free.positions.diff().max() < 2 * 131072 / 2048


def test_all_rows_have_no_interval() -> None:
    rows = all_rows(3)
    values = torch.tensor([1.0, 4.0, 9.0])
    for estimate in (
        rows.root_of_ratio(values, values),
        rows.mean(values),
        rows.quantile(values, 0.5),
        rows.largest(values),
    ):
        assert (estimate.low, estimate.high) == (None, None)
    assert rows.largest(values) == 9.0


def test_the_largest_of_a_part_may_be_exceeded() -> None:
    largest = Rows(torch.arange(2), torch.ones(2) * 5).largest(torch.tensor([1.0, 4.0]))
    assert (largest, largest.low, largest.high) == (4.0, 4.0, math.inf)


@pytest.mark.parametrize("rows", [all_rows(2), Rows(torch.arange(2), torch.ones(2) * 5)])
def test_nothing_over_nothing_is_nothing(rows: Rows) -> None:
    zeros, ones = torch.zeros(2), torch.ones(2)
    assert (rows.root_of_ratio(zeros, zeros), rows.root_of_ratio(zeros, ones)) == (0.0, 0.0)
    assert rows.root_of_ratio(ones, zeros) == math.inf
