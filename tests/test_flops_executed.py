"""Operations counted from the configuration, against pairs counted one by one in the plans that are executed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperattn_core import HyperAttentionParams, make_plan
from hyperattn_core.oracle import weight_matrix
from hyperattn_core.planning.plan import AttentionPlan
from hyperbench.flops import exact_flops, exact_pairs, hyper_flops, hyper_pairs
from hyperbench.store.schema import Pass, Point
from tests.helpers.made_records import a_point

DIM = 4


def plan_of(seq_len: int, is_causal: bool, **params: object) -> AttentionPlan:
    """The plan of one head with drawn queries and keys."""
    generator = torch.Generator().manual_seed(seq_len)
    q, k = (torch.randn(1, 1, seq_len, DIM, generator=generator) for _ in "qk")
    return make_plan(q, k, HyperAttentionParams(num_projections=3, **params), 0, is_causal=is_causal)  # type: ignore[arg-type]


def shaped(seq_len: int, is_causal: bool, batch: int = 1, heads: int = 1, dim: int = DIM, **changes: Any) -> Point:
    """A point of a shape."""
    shape = {"batch": batch, "heads": heads, "kv_heads": 1, "seq_len": seq_len, "head_dim": dim}
    return a_point(is_causal=is_causal, **shape, **changes)


def counted(seq_len: int, is_causal: bool, b: int, m: int, leaf: int, sampling: str = "stratified") -> float:
    """Pairs of a query and a key, from the count of operations."""
    hyper = {"block_size": b, "sample_size": m, "min_seq_len": leaf, "sampling": sampling}
    return hyper_flops(shaped(seq_len, is_causal, hyper=hyper), Pass.FORWARD) / (4 * DIM)


def executed(plan: AttentionPlan) -> float:
    """Pairs that a plan makes meet, each query with whole blocks; exact causal parts count half, as is usual."""
    num_queries = plan.shape[3]
    if plan.is_exact:
        return num_queries**2 / (2 if plan.is_causal else 1)
    pairs = 0.0
    for level in plan.levels:
        pairs += int(level.tile_count.sum()) * (level.block_size + level.sample_index.shape[-1])
    if plan.leaf_len is not None:
        for start in range(0, num_queries, plan.leaf_len):
            pairs += min(plan.leaf_len, num_queries - start) ** 2 / 2
    return pairs


@pytest.mark.parametrize("pairing", ["bucket", "rank"])
@pytest.mark.parametrize("sampling", ["stratified", "iid"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("seq_len", [16, 17, 64, 100, 131, 256])
@pytest.mark.parametrize(
    ("b", "m", "leaf"), [(8, 8, 16), (16, 4, 16), (4, 32, 16), (40, 16, 32), (300, 8, 16), (8, 400, 16)]
)
def test_the_count_is_what_the_plan_executes(
    seq_len: int, b: int, m: int, leaf: int, is_causal: bool, sampling: str, pairing: str
) -> None:
    plan = plan_of(
        seq_len, is_causal, block_size=b, sample_size=m, min_seq_len=leaf, sampling=sampling, pairing=pairing
    )
    assert counted(seq_len, is_causal, b, m, leaf, sampling) == executed(plan)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("seq_len", "b", "m", "leaf"), [(64, 8, 8, 16), (128, 16, 8, 32), (64, 16, 16, 64), (256, 16, 16, 32)]
)
def test_the_count_is_that_of_the_keys_with_a_weight(seq_len: int, b: int, m: int, leaf: int, is_causal: bool) -> None:
    plan = plan_of(seq_len, is_causal, block_size=b, sample_size=m, min_seq_len=leaf)
    met = int((weight_matrix(plan) > 0).sum())
    if plan.is_exact:
        expected = seq_len * (seq_len + 1) / 2 if is_causal else seq_len**2
        assert met == expected
        return
    # A sample within the query's own block is computed and weighs nothing: m b / S of them where slices fit blocks.
    hidden = sum(int(level.tile_count.sum()) * m * b / level.node_len for level in plan.levels)
    # The diagonal of an exact causal part is counted as a half.
    diagonal = seq_len / 2 if is_causal else 0
    assert counted(seq_len, is_causal, b, m, leaf) == met + hidden - diagonal


@given(st.integers(1, 100_000), st.integers(1, 64), st.integers(1, 64), st.integers(0, 2000), st.booleans())
def test_operations_are_those_of_the_pairs(seq_len: int, b: int, m: int, more: int, is_causal: bool) -> None:
    leaf = b + m + more
    pairs = hyper_pairs(seq_len, b, m, leaf, is_causal=is_causal)
    assert counted(seq_len, is_causal, b, m, leaf) == pytest.approx(pairs, rel=1e-12)


@given(
    st.integers(1, 5000), st.integers(1, 600), st.integers(1, 600), st.integers(1, 600), st.booleans(),
    st.sampled_from(["stratified", "iid"]),
)  # fmt: skip
def test_no_less_is_executed_than_the_work_ratio_says(
    seq_len: int, b: int, m: int, leaf: int, is_causal: bool, sampling: str
) -> None:
    pairs = hyper_pairs(seq_len, b, m, leaf, is_causal=is_causal)
    assert counted(seq_len, is_causal, b, m, leaf, sampling) >= pairs * (1 - 1e-12)


@given(st.integers(1, 10**6), st.integers(1, 4), st.integers(1, 32), st.integers(1, 256), st.booleans())
def test_exact_attention_is_two_products_of_n_by_n(n: int, batch: int, heads: int, dim: int, is_causal: bool) -> None:
    flops = exact_flops(shaped(n, is_causal, batch, heads, dim), Pass.FORWARD)
    assert flops == pytest.approx(4 * batch * heads * dim * exact_pairs(n, is_causal=is_causal))


@given(st.integers(1, 5000), st.integers(1, 3), st.integers(1, 8), st.booleans())
def test_heads_multiply_and_passes_have_their_factors(n: int, batch: int, heads: int, is_causal: bool) -> None:
    sizes = {"block_size": 64, "sample_size": 64, "min_seq_len": 256}
    small, large = shaped(n, is_causal, hyper=sizes), shaped(n, is_causal, batch, heads, hyper=sizes)
    one = hyper_flops(small, Pass.FORWARD)
    for pass_, factor in ((Pass.FORWARD, 1), (Pass.BACKWARD, 2.5), (Pass.FORWARD_BACKWARD, 3.5)):
        assert hyper_flops(large, pass_) == pytest.approx(one * batch * heads * factor)
        assert exact_flops(small, pass_) == pytest.approx(exact_flops(small, Pass.FORWARD) * factor)
