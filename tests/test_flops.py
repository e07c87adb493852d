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
from hyperbench.flops import exact_flops, exact_pairs, hyper_flops, hyper_pairs, work_ratio
from hyperbench.store.schema import Pass, Point
from tests.helpers.made_records import a_point

DIM = 4
lengths = st.integers(1, 200_000)
sizes = st.integers(1, 2048)


def plan_of(seq_len: int, is_causal: bool, **params: object) -> AttentionPlan:
    """The plan of one head with drawn queries and keys."""
    generator = torch.Generator().manual_seed(seq_len)
    q, k = (torch.randn(1, 1, seq_len, DIM, generator=generator) for _ in "qk")
    return make_plan(q, k, HyperAttentionParams(num_projections=3, **params), 0, is_causal=is_causal)  # type: ignore[arg-type]


def at(seq_len: int, **changes: Any) -> Point:
    """A point of one head and DIM dimensions."""
    return a_point(**{"batch": 1, "heads": 1, "kv_heads": 1, "seq_len": seq_len, "head_dim": DIM, **changes})


def counted(seq_len: int, is_causal: bool, b: int, m: int, leaf: int, sampling: str = "stratified") -> float:
    """Pairs of a query and a key, from the count of operations."""
    hyper = {"block_size": b, "sample_size": m, "min_seq_len": leaf, "sampling": sampling}
    return hyper_flops(at(seq_len, is_causal=is_causal, hyper=hyper), Pass.FORWARD) / (4 * DIM)


def executed(plan: AttentionPlan) -> float:
    """Pairs that a plan makes meet, each query with whole blocks; exact causal parts count half, as is usual."""
    num_queries = plan.shape[3]
    if plan.is_exact:
        return num_queries**2 / (2 if plan.is_causal else 1)
    pairs = 0.0
    for level in plan.levels:
        samples = level.sample_index.shape[-1]
        # The mean of the keys that are not certain to be sampled.
        has_mean = plan.params.sampling == "truncated" and 0 < samples < level.node_len
        pairs += int(level.tile_count.sum()) * (level.block_size + samples + has_mean)
    if plan.leaf_len is not None:
        for start in range(0, num_queries, plan.leaf_len):
            pairs += min(plan.leaf_len, num_queries - start) ** 2 / 2
    return pairs


@pytest.mark.parametrize("pairing", ["bucket", "rank"])
@pytest.mark.parametrize("sampling", ["stratified", "iid", "truncated"])
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
    plan = plan_of(seq_len, is_causal, block_size=b, sample_size=m, min_seq_len=leaf, sampling="stratified")
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
    point = at(n, batch=batch, heads=heads, head_dim=dim, is_causal=is_causal)
    pairs = n * n / 2 if is_causal else n * n
    assert exact_flops(point, Pass.FORWARD) == pytest.approx(4 * batch * heads * dim * pairs)


@given(st.integers(1, 5000), st.integers(1, 3), st.integers(1, 8), st.booleans())
def test_heads_multiply_and_passes_have_their_factors(n: int, batch: int, heads: int, is_causal: bool) -> None:
    hyper = {"block_size": 64, "sample_size": 64, "min_seq_len": 256, "sampling": "stratified"}
    one, many = (at(n, batch=b, heads=h, is_causal=is_causal, hyper=hyper) for b, h in ((1, 1), (batch, heads)))
    for flops in (exact_flops, hyper_flops):
        for pass_, factor in ((Pass.FORWARD, 1), (Pass.BACKWARD, 2.5), (Pass.FORWARD_BACKWARD, 3.5)):
            assert flops(many, pass_) == pytest.approx(flops(one, Pass.FORWARD) * batch * heads * factor)


@pytest.mark.parametrize(
    ("seq_len", "is_causal", "leaf", "counted"),
    [
        (4096, False, 256, 7.9),
        (16_384, False, 4096, 31.5),
        (65_536, False, 4096, 126),
        (131_072, False, 4096, 252),
        (131_072, True, 4096, 19.6),
        (131_072, True, 2048, 25.4),
        (131_072, True, 1024, 28.2),
    ],
)
def test_ratio_agrees_with_counted_work(seq_len: int, is_causal: bool, leaf: int, counted: float) -> None:
    assert work_ratio(seq_len, 256, 256, leaf, is_causal=is_causal) == pytest.approx(counted, rel=0.03)


@given(lengths, sizes, sizes, sizes, st.booleans())
def test_hyper_never_works_more_than_exact_attention(n: int, b: int, m: int, more: int, is_causal: bool) -> None:
    assert work_ratio(n, b, m, b + m + more, is_causal=is_causal) >= 1 - 1e-12


@given(st.integers(1, 5000), sizes, sizes, st.booleans())
def test_up_to_the_leaf_it_is_exact(n: int, b: int, m: int, is_causal: bool) -> None:
    assert work_ratio(n, b, m, max(n, 1), is_causal=is_causal) == 1


@given(lengths, st.booleans())
def test_a_block_of_everything_is_exact(n: int, is_causal: bool) -> None:
    assert hyper_pairs(n, n, 0, 1, is_causal=is_causal) == pytest.approx(exact_pairs(n, is_causal=is_causal), rel=1e-9)


@given(lengths, sizes, sizes, sizes, st.booleans())
def test_more_samples_cost_no_less(n: int, b: int, m: int, leaf: int, is_causal: bool) -> None:
    assert hyper_pairs(n, b, m + 1, leaf, is_causal=is_causal) >= hyper_pairs(n, b, m, leaf, is_causal=is_causal)


@pytest.mark.parametrize("bad", [(0, 1, 1, 1), (8, 0, 1, 1), (8, 1, -1, 1), (8, 1, 1, 0)])
def test_impossible_sizes_are_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        hyper_pairs(*bad, is_causal=False)
