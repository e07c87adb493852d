"""The plan that the Triton kernels make is the torch plan of the same seed, element for element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, make_plan
from hyperattn_core.planning import draws
from hyperattn_core.planning.lsh import hash_ranks
from hyperattn_core.planning.packed import Settings
from hyperattn_core.triton_backend.geometry import geometry
from hyperattn_core.triton_backend.plan import drawn_samples, split_projections
from tests.gpu.gpu_cases import CHOICES, DEVICE, DTYPES, heads_inside, normal, qkv, small_params

SEED = 3
TILE_SIZE = 64


def decided(x: Tensor, params: HyperAttentionParams) -> Tensor:
    """x with every row whose hash hangs on rounding replaced by the row before it that does not."""
    directions = draws.projections(SEED, x.shape[3], params.num_projections, str(x.device)).double()
    hangs = ((x.double() @ directions).abs().amin(3) < 1e-3 * x.double().norm(dim=3)).flatten()
    rows = torch.arange(hangs.numel(), device=x.device)
    source = torch.where(hangs, 0, rows).cummax(0).values.clamp(min=int((~hangs).nonzero()[0]))
    return x.flatten(0, 2)[source].view(x.shape)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("sampling", ["iid", "stratified"])
def test_draws_are_those_of_the_cpu_to_the_last_bit(sampling: str, is_causal: bool) -> None:
    params = small_params(sampling)
    where = geometry((2, 4, 2, 3001, 3001), Settings(params, is_causal, TILE_SIZE))
    levels = [draws.level_samples(level, where.shape, params, SEED, "cpu")[0] for level in where.levels]
    for level, expected in zip(where.levels, levels, strict=True):
        assert torch.equal(draws.level_samples(level, where.shape, params, SEED, DEVICE)[0].cpu(), expected)
        offsets = [draws.sample_offsets(level, where.shape, SEED, device).cpu() for device in ("cpu", DEVICE)]
        assert torch.equal(*offsets)
    drawn = torch.cat([index.flatten() for index in levels])
    assert torch.equal(drawn_samples(where, SEED, DEVICE).cpu(), drawn)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "projections"), [(64, 7), (80, 10), (256, 1)])
def test_projections_are_those_of_the_cpu_to_the_last_bit(dtype: torch.dtype, head_dim: int, projections: int) -> None:
    expected = draws.projections(SEED, head_dim, projections, "cpu")
    assert torch.equal(draws.projections(SEED, head_dim, projections, DEVICE).cpu(), expected)
    left = expected.float()
    for term in split_projections(SEED, head_dim, projections, dtype, DEVICE).cpu():
        assert torch.equal(term[:head_dim, :projections], left.to(dtype))
        left = left - left.to(dtype).float()


def both_plans(q: Tensor, k: Tensor, params: HyperAttentionParams, *, is_causal: bool) -> list[AttentionPlan]:
    """The plans of the two backends."""
    return [
        make_plan(q, k, params, SEED, is_causal=is_causal, tile_size=TILE_SIZE, backend=backend)
        for backend in ("triton", "torch")
    ]


def assert_same(one: AttentionPlan, other: AttentionPlan) -> None:
    """Every field is equal, but for sorted queries that no tile covers."""
    assert (one.params, one.seed, one.is_causal, one.shape, one.leaf_len) == (
        other.params, other.seed, other.is_causal, other.shape, other.leaf_len,
    )  # fmt: skip
    assert len(one.levels) == len(other.levels) > 0
    for a, b in zip(one.levels, other.levels, strict=True):
        assert (a.block_size, a.tile_size) == (b.block_size, b.tile_size)
        for name in ("key_order", "sample_index", "tile_first", "tile_count", "tile_block"):
            mine, theirs = getattr(a, name), getattr(b, name)
            assert mine.dtype == theirs.dtype, name
            assert torch.equal(mine, theirs), name
        # Of probed samples the kernels have the weights as logarithms in float32 alone.
        tolerance = 1e-6 if one.params.uses_probes else 0.0
        torch.testing.assert_close(a.sample_weight, b.sample_weight, rtol=tolerance, atol=0.0)
        covered = torch.arange(a.query_order.shape[3], device=DEVICE) < a.tile_count.sum(3, keepdim=True)
        assert covered.sum() > 0
        assert torch.equal(a.query_order[covered], b.query_order[covered])


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_backends_make_the_same_plan(dtype: torch.dtype, sampling: str, pairing: str, is_causal: bool) -> None:
    params = small_params(sampling, pairing, num_projections=7)
    q, k, _ = qkv(2003, batch=2, heads=4, kv_heads=2, dtype=dtype)
    assert_same(*both_plans(decided(q, params), decided(k, params), params, is_causal=is_causal))


@pytest.mark.parametrize("length", [61, 97, 1024, 4099, 40000])
@pytest.mark.parametrize("is_causal", [False, True])
def test_lengths(length: int, is_causal: bool) -> None:
    params = small_params(num_projections=7)
    q, k, _ = (heads_inside(decided(x, params)) for x in qkv(length, dim=80))
    assert_same(*both_plans(q, k, params, is_causal=is_causal))


@pytest.mark.parametrize(("queries", "keys"), [(1, 700), (133, 2000), (2000, 133)])
@pytest.mark.parametrize("pairing", ["rank", "bucket"])
def test_other_numbers_of_queries_than_keys(queries: int, keys: int, pairing: str) -> None:
    params = small_params(pairing=pairing)
    q, k, _ = qkv(queries, keys=keys)
    assert_same(*both_plans(decided(q, params), decided(k, params), params, is_causal=False))


@pytest.mark.parametrize("projections", [1, 4, 8, 10])
def test_numbers_of_projections(projections: int) -> None:
    params = small_params(num_projections=projections)
    q, k, _ = qkv(3000)
    assert_same(*both_plans(decided(q, params), decided(k, params), params, is_causal=True))


def test_all_rows_in_one_bucket() -> None:
    params = small_params()
    x = decided(normal(1, 1, 1, 64, dtype=torch.bfloat16), params).expand(1, 2, 3000, 64)
    assert_same(*both_plans(x, x, params, is_causal=True))


def test_at_most_one_row_in_a_hundred_thousand_hashes_otherwise() -> None:
    q, k, _ = qkv(131072, heads=8, dtype=torch.float32)
    params = HyperAttentionParams()
    plan = make_plan(q, k, params, SEED, backend="triton")
    ranks = hash_ranks(k, draws.projections(SEED, k.shape[3], params.num_projections, DEVICE))
    order = plan.levels[0].key_order.squeeze(2).long()
    assert torch.equal(order.sort(2).values, torch.arange(131072, device=DEVICE).expand_as(order))
    # In the kernels' order the torch ranks ascend but where a row's rank is another there.
    sorted_ranks = ranks.gather(2, order)
    descents = (sorted_ranks[..., 1:] < sorted_ranks[..., :-1]).sum()
    assert int(descents) <= order.numel() / 100_000


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_same_seed_makes_the_same_plan(is_causal: bool) -> None:
    q, k, _ = qkv(5000)
    one, other = (make_plan(q, k, small_params(), SEED, is_causal=is_causal, backend="triton") for _ in range(2))
    assert_same(one, other)
