"""Probed sampling: the probabilities add up to the sample, are met over draws, and the sample holds no key twice."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core.planning.samples import cumulative_probabilities, systematic_samples, unit
from tests.helpers.core_inputs import normal
from tests.helpers.probed import inclusion


def probabilities(scores: Tensor, count: int, floor: float) -> Tensor:
    """The probability of each key."""
    upto = cumulative_probabilities(scores, count, floor) / unit(count)
    return torch.diff(upto, dim=-1, prepend=torch.zeros_like(upto[..., :1]))


@st.composite
def rows_of_scores(draw: st.DrawFn) -> tuple[Tensor, int, float]:
    """Scores from alike to very uneven, some zero and some equal, a size of sample and a floor."""
    length = draw(st.integers(1, 300))
    scores = (draw(st.sampled_from((0.0, 1.0, 5.0, 30.0))) * normal(2, length, seed=draw(st.integers(0, 99)))).exp()
    scores[:, :: draw(st.integers(1, 9))] = draw(st.sampled_from((0.0, 1.0)))
    scores /= max(1.0, float(scores.max()))
    return scores, draw(st.integers(1, length)), draw(st.sampled_from((1e-9, 0.01, 0.1, 1.0)))


@settings(max_examples=200)
@given(rows_of_scores())
def test_probabilities_are_those_of_the_definition_and_add_up_to_the_sample(case: tuple[Tensor, int, float]) -> None:
    scores, count, floor = case
    found = probabilities(scores, count, floor)
    for row, of_row in zip(scores, found, strict=True):
        torch.testing.assert_close(of_row, inclusion(row, count, floor), rtol=1e-6, atol=1e-10)
    assert (cumulative_probabilities(scores, count, floor)[:, -1] == count * unit(count)).all()
    assert (found <= 1).all()


@settings(max_examples=200)
@given(rows_of_scores(), st.floats(0, 1, exclude_max=True))
def test_keys_are_different_and_those_of_probability_one_are_all_there(
    case: tuple[Tensor, int, float], offset: float
) -> None:
    scores, count, floor = case
    index, weight = systematic_samples(scores, count, floor, torch.full((2, 1), offset, dtype=torch.float64))
    found = probabilities(scores, count, floor)
    assert index.dtype == torch.int32
    assert index.shape == weight.shape == (2, count)
    assert (index.diff(dim=1) > 0).all()
    assert index.min() >= 0
    assert index.max() < scores.shape[1]
    assert torch.equal(weight, found.gather(1, index.long()).reciprocal())
    for row, drawn in zip(found, index, strict=True):
        assert set((row == 1).nonzero().flatten().tolist()) <= set(drawn.tolist())


@pytest.mark.parametrize("count", [1, 7, 40])
def test_each_key_is_drawn_as_often_as_its_probability_says(count: int) -> None:
    """Over draws whose offsets are equally far apart, to one draw."""
    scores, draws = (3 * normal(1, 50, seed=1)).exp() / 1000, 5000
    offsets = ((torch.arange(draws, dtype=torch.float64) + 0.5) / draws).unsqueeze(1)
    index, weight = systematic_samples(scores.expand(draws, -1), count, 0.1, offsets)
    times = torch.bincount(index.flatten(), minlength=50)
    wanted = draws * probabilities(scores, count, 0.1)[0]
    assert (times - wanted).abs().max() <= 1.0 + 1e-6
    # So the mean weight of every key is one.
    total = torch.zeros(50, dtype=torch.float64).index_add_(0, index.flatten().long(), weight.flatten())
    assert ((total / draws - 1).abs() <= (1 + 1e-6) / wanted).all()


@pytest.mark.parametrize("score", [0.0, 1.0, 1e-30, math.nan, math.inf, -math.inf])
def test_keys_of_equal_scores_or_of_none_are_sampled_alike(score: float) -> None:
    found = probabilities(torch.full((3, 60), score), 7, 0.1)
    torch.testing.assert_close(found, torch.full((3, 60), 7 / 60, dtype=torch.float64), rtol=1e-9, atol=0)


def test_every_key_is_in_a_sample_of_all() -> None:
    index, weight = systematic_samples(normal(2, 33).exp(), 33, 0.1, torch.full((2, 1), 0.99, dtype=torch.float64))
    assert index.tolist() == [list(range(33))] * 2
    assert (weight == 1).all()


def test_a_row_is_sampled_as_it_is_by_itself() -> None:
    scores, offsets = normal(5, 40).exp(), torch.rand(5, 1, dtype=torch.float64)
    together = systematic_samples(scores, 9, 0.2, offsets)
    for i in range(5):
        alone = systematic_samples(scores[i : i + 1], 9, 0.2, offsets[i : i + 1])
        assert all(torch.equal(a[i : i + 1], b) for a, b in zip(together, alone, strict=True))
