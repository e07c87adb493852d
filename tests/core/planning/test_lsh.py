"""Angular hashing: bucket codes, their rank along the Gray code, and the sort by rank."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperattn_core.planning.lsh import bucket_codes, gray_rank, hash_ranks, sort_by_rank
from tests.helpers.core_inputs import normal

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("num_projections", range(1, 16))
def test_neighbouring_ranks_differ_in_one_projection(num_projections: int) -> None:
    ranks = gray_rank(torch.arange(2**num_projections, dtype=torch.int32), num_projections)
    assert torch.equal(ranks.sort().values, torch.arange(2**num_projections, dtype=torch.int32))
    code_of_rank = ranks.argsort()
    differing = code_of_rank[1:] ^ code_of_rank[:-1]
    assert (differing > 0).all()
    assert (differing & (differing - 1) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_projections", [1, 7, 15])
def test_a_code_has_a_bit_for_every_positive_projection(dtype: torch.dtype, num_projections: int) -> None:
    x, directions = normal(40, 6, seed=1, dtype=dtype), normal(6, num_projections, seed=2)
    wide = x.to(torch.promote_types(dtype, torch.float32))
    codes = bucket_codes(x, directions)
    assert codes.dtype == torch.int32
    for row, code in zip(wide, codes.tolist(), strict=True):
        positive = [float(row @ directions[:, i].to(wide.dtype)) > 0 for i in range(num_projections)]
        assert code == sum(2**i for i, bit in enumerate(positive) if bit)


def test_a_projection_of_zero_or_nan_leaves_its_bit_unset() -> None:
    rows = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [1.0, math.nan]])
    assert bucket_codes(rows, torch.ones(2, 4)).tolist() == [0, 0, 0]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_a_rank_depends_on_the_direction_alone(seed: int, factor: float) -> None:
    x, directions = normal(2, 3, 20, 5, seed=seed), normal(5, 9, seed=seed + 1)
    ranks = hash_ranks(x, directions)
    assert ranks.shape == x.shape[:-1]
    assert torch.equal(ranks, hash_ranks(factor * x, directions))


def test_two_rows_share_a_bit_with_the_probability_of_their_angle() -> None:
    draws, angle = 40_000, 1.0
    pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    bits = [bucket_codes(pair, normal(2, 10, seed=seed)) for seed in range(draws // 10)]
    differing = torch.stack([codes[0] ^ codes[1] for codes in bits])
    parted = sum(int((differing >> i & 1).sum()) for i in range(10)) / draws
    expected = angle / math.pi
    assert abs(parted - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)


@given(
    st.integers(1, 5).flatmap(
        lambda r: st.tuples(
            st.just(2**r),
            st.integers(0, 30).flatmap(
                lambda n: st.lists(st.lists(st.integers(0, 2**r), min_size=n, max_size=n), min_size=1, max_size=4)
            ),
        )
    )
)
def test_sorting_is_stable_and_says_where_each_rank_begins(case: tuple[int, list[list[int]]]) -> None:
    num_ranks, rows = case
    ranks = torch.tensor(rows, dtype=torch.int32).view(len(rows), -1)
    order, starts = sort_by_rank(ranks, num_ranks)
    for row, got, begins in zip(rows, order.tolist(), starts.tolist(), strict=True):
        assert got == sorted(range(len(row)), key=lambda i: row[i])
        assert begins == [sum(r < rank for r in row) for rank in range(num_ranks + 1)]
