"""The plan that the kernels make is the PyTorch plan of the same seed, element for element."""

from __future__ import annotations

import math

import pytest
import torch
from core_inputs import CHOICES, PAIRINGS, bits, laid_out, normal, qkv, small_params
from torch import Tensor
from triton_cases import DTYPES, SEED, assert_same_plan, both_plans, covered, decided

from hyperattn_core import HyperAttentionParams, draws, make_plan
from hyperattn_core.lsh import hash_ranks
from hyperattn_core.plan import hash_inputs
from hyperattn_core.triton_backend.geometry import Settings
from hyperattn_core.triton_backend.plan import PackedPlan, PlanWork, plan_buffers

BIG = {"block_size": 16, "sample_size": 20, "num_projections": 5, "min_seq_len": 40}


def inputs(params: HyperAttentionParams, layout: str = "contiguous", **sizes: int | torch.dtype) -> tuple[Tensor, ...]:
    """q and k whose hashes do not hang on rounding, in float32 unless it is said otherwise."""
    q, k, _ = qkv(**({"dtype": torch.float32} | sizes))  # type: ignore[arg-type]
    return laid_out(decided(q, params), layout), laid_out(decided(k, params), layout)


@pytest.mark.parametrize(
    ("sampling", "pairing", "is_causal", "dtype"),
    [
        (*choice, is_causal, DTYPES[(i + is_causal) % 3])
        for i, choice in enumerate(CHOICES)
        for is_causal in (False, True)
    ],
)
def test_batches_of_grouped_heads(sampling: str, pairing: str, is_causal: bool, dtype: torch.dtype) -> None:
    params = small_params(sampling, pairing, **BIG)
    q, k = inputs(params, "heads_inside", queries=131, batch=2, heads=2, kv_heads=1, dim=20, dtype=dtype)
    assert_same_plan(*both_plans(q, k, params, is_causal=is_causal))


@pytest.mark.parametrize("pairing", PAIRINGS)
class TestSizes:
    """Sizes at which the kernels go another way, for both pairings."""

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_odd_sizes(self, is_causal: bool, pairing: str) -> None:
        params = small_params("iid", pairing, block_size=7, sample_size=5, min_seq_len=23)
        q, k = inputs(params, queries=89, dim=5)
        assert_same_plan(*both_plans(q, k, params, is_causal=is_causal, tile_size=10))

    @pytest.mark.parametrize(("queries", "keys"), [(1, 90), (45, 311), (311, 45)])
    def test_other_numbers_of_queries_than_keys(self, queries: int, keys: int, pairing: str) -> None:
        params = small_params("iid", pairing)
        assert_same_plan(*both_plans(*inputs(params, queries=queries, keys=keys, dim=16), params))

    def test_several_tiles_of_the_sort(self, pairing: str) -> None:
        params = small_params("stratified", pairing, **BIG)
        assert_same_plan(*both_plans(*inputs(params, queries=413, dim=33), params))

    def test_leaves_of_several_tiles_of_the_sort(self, pairing: str) -> None:
        params = small_params("stratified", pairing, **BIG | {"min_seq_len": 140})
        assert_same_plan(*both_plans(*inputs(params, queries=431, dim=1), params, is_causal=True))

    def test_blocks_longer_than_a_node(self, pairing: str) -> None:
        params = small_params("iid", pairing, block_size=50, sample_size=9, min_seq_len=30)
        assert_same_plan(*both_plans(*inputs(params, queries=100, dim=16), params, is_causal=True))

    def test_more_samples_than_keys(self, pairing: str) -> None:
        params = small_params("iid", pairing, sample_size=300)
        assert_same_plan(*both_plans(*inputs(params, queries=90, dim=16), params))

    def test_all_rows_in_one_bucket(self, pairing: str) -> None:
        params = small_params("iid", pairing, min_seq_len=40)
        x = decided(normal(1, 1, 1, 16, dtype=torch.float32), params).expand(1, 1, 100, 16)
        assert_same_plan(*both_plans(x, x, params, is_causal=True))


@pytest.mark.parametrize(("projections", "pairing"), [(1, "bucket"), (8, "bucket"), (9, "rank"), (10, "bucket")])
def test_numbers_of_projections(projections: int, pairing: str) -> None:
    params = small_params("iid", pairing, **BIG | {"num_projections": projections})
    assert_same_plan(*both_plans(*inputs(params, queries=100, dim=16), params, is_causal=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_differ_only_where_a_projection_is_within_rounding_of_zero(dtype: torch.dtype) -> None:
    params = HyperAttentionParams()
    q, k = normal(1, 1, 10_000, 32, seed=1, dtype=dtype), normal(1, 1, 10_000, 32, seed=2, dtype=dtype)
    work = PlanWork(q, k, SEED, Settings.of(params, is_causal=False, tile_size=64))
    work.hash()
    rows, ranks = torch.cat([q, k]).double().flatten(0, 2), work.ranks.int()
    directions = draws.projections(SEED, 32, params.num_projections, "cpu")
    # Sums of 32 float32 products, of directions that are rounded to float32.
    rounding = 32 * 2.0**-24 * (rows.abs() @ directions.abs())
    undecided = ((rows @ directions).abs() <= rounding).any(1)
    for theirs in (hash_ranks(rows, directions), torch.cat([x.flatten() for x in hash_inputs(q, k, params, SEED)])):
        differ = ranks != theirs
        assert not (differ & ~undecided).any()
        assert int(differ.sum()) <= 1
    assert ranks.unique().numel() == 2**params.num_projections


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_of_nans_have_the_same_hash_in_both(dtype: torch.dtype) -> None:
    params = small_params("iid", "bucket", min_seq_len=40)
    q, k = inputs(params, queries=90, dim=16, dtype=dtype)
    q[..., ::7, :], k[..., ::5, :] = 0.0, -0.0
    q[..., 3, 2], k[..., 31, 15] = math.nan, math.nan
    assert_same_plan(*both_plans(q, k, params, is_causal=True))


@pytest.mark.parametrize("is_causal", [False, True])
def test_what_no_tile_covers_is_zero(is_causal: bool) -> None:
    params = small_params("iid", "bucket", min_seq_len=30)
    plan, _ = both_plans(*inputs(params, queries=100, dim=16), params, is_causal=is_causal)
    held = [covered(plan, number) for number in range(len(plan.levels))]
    assert is_causal == any(not x.all() for x in held)
    for level, entries in zip(plan.levels, held, strict=True):
        unused = level.tile_count == 0
        assert unused.any()
        assert not level.tile_first[unused].any()
        assert not level.query_order[~entries].any()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_every_number_of_the_buffers_is_written(pairing: str, is_causal: bool, full_memory: None) -> None:
    params = small_params("stratified", pairing, min_seq_len=30)
    q, k = inputs(params, queries=100, heads=2, kv_heads=1, dim=16)
    data, weights = plan_buffers(q, k, SEED, Settings.of(params, is_causal=is_causal, tile_size=16))
    assert int(data.min()) >= 0
    assert int(data.max()) < 100
    assert weights.isfinite().all()


def test_the_same_seed_makes_the_same_buffers_and_another_seed_others() -> None:
    params = small_params("iid", "bucket", min_seq_len=40)
    q, k = inputs(params, queries=90, dim=16)
    first, second, other = (make_plan(q, k, params, seed, is_causal=True, backend="triton") for seed in (1, 1, 2))
    assert isinstance(first, PackedPlan)
    assert isinstance(second, PackedPlan)
    assert torch.equal(first.data, second.data)
    assert torch.equal(bits(first.weights), bits(second.weights))
    assert not torch.equal(first.levels[0].key_order, other.levels[0].key_order)


def test_exact_calls_have_no_levels() -> None:
    q, k, _ = qkv(queries=40, dtype=torch.float32)
    for changes in ({"min_seq_len": 40}, {"block_size": 40}, {"sample_size": 40}):
        assert make_plan(q, k, small_params("stratified", "bucket", **changes), backend="triton").is_exact
