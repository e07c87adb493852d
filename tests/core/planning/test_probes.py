"""Probes: which queries they are, and what they say of the keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan
from hyperattn_core.planning.draws import probe_positions
from hyperattn_core.planning.levels import LevelShape, level_shapes
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.planning.probes import probe_scores
from tests.helpers.core_inputs import LAYOUTS, assert_close, laid_out, normal, qkv
from tests.helpers.probed import probe_weights

PARAMS = HyperAttentionParams(
    block_size=8, sample_size=6, num_projections=3, min_seq_len=16, sampling="probed", num_probes=5
)


def levels_of(q: Tensor, k: Tensor, is_causal: bool) -> tuple[LevelShape, ...]:
    """The levels of a call with PARAMS."""
    return level_shapes(plan_shape(q, k), PARAMS, is_causal=is_causal)


@settings(max_examples=25)
@given(st.booleans(), st.integers(1, 2), st.integers(1, 3), st.sampled_from(LAYOUTS), st.integers(0, 50))
def test_scores_are_those_of_the_definition(is_causal: bool, kv_heads: int, group: int, layout: str, seed: int) -> None:
    queries, keys = (83, 83) if is_causal else (41, 60)
    q, k, _ = qkv(queries=queries, keys=keys, batch=2, heads=kv_heads * group, kv_heads=kv_heads, dim=4, seed=seed)
    q, k = laid_out(q, layout), laid_out(k, layout)
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    for level in levels_of(q, k, is_causal):
        found = probe_scores(level, q, k, 5, 3, 0.7, is_causal=is_causal)
        for node, start in enumerate(level.key_starts):
            stop = start + level.node_len
            at = range(stop - 5, stop) if is_causal else probe_positions(queries, 5, 3, "cpu").tolist()
            for b in range(2):
                for h in range(kv_heads):
                    probes = q[b, h * group : (h + 1) * group, list(at)].flatten(0, 1)
                    wanted = probe_weights(probes, k[b, h, start:stop], 0.7)
                    assert_close(found[b, h, node] / found[b, h, node].sum(), wanted / wanted.sum())


def test_drawn_probes_lie_one_in_each_slice_of_the_queries() -> None:
    for seed in range(20):
        drawn = probe_positions(103, 10, seed, "cpu").tolist()
        assert all(i * 103 // 10 <= x < (i + 1) * 103 // 10 for i, x in enumerate(drawn))
    assert probe_positions(3, 10, 0, "cpu").tolist() == [0, 1, 2]
    assert probe_positions(500, 10, 0, "cpu").tolist() != probe_positions(500, 10, 1, "cpu").tolist()


@pytest.mark.parametrize("is_causal", [False, True])
def test_equal_keys_are_sampled_uniformly(is_causal: bool) -> None:
    q, k, _ = qkv(queries=90, heads=2, dtype=torch.float32)
    for level in make_plan(q, k[:, :, :1].expand_as(k), PARAMS, is_causal=is_causal).levels:
        even = torch.full_like(level.sample_weight, level.node_len / 6)
        torch.testing.assert_close(level.sample_weight, even, rtol=1e-5, atol=0)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_key_that_draws_every_query_is_always_sampled_with_weight_one(is_causal: bool) -> None:
    q, k, _ = qkv(queries=90)
    q[..., 0], k[:, :, 2, 0] = 9.0, 9.0
    for seed in range(5):
        for level in make_plan(q, k, PARAMS, seed, is_causal=is_causal).levels:
            sampled = level.key_order.gather(3, level.sample_index.long())[0, 0, 0]
            assert level.sample_weight[0, 0, 0][sampled == 2].tolist() == [1.0]


def test_the_scale_is_that_of_the_call() -> None:
    """Scaling q and dividing the scale by the same power of two changes no weight that a probe gives."""
    q, k, v = qkv(queries=90)
    one = make_plan(q, k, PARAMS, is_causal=True, scale=0.5)
    other = make_plan(4 * q, k, PARAMS, is_causal=True, scale=0.125)
    assert all(torch.equal(a.sample_weight, b.sample_weight) for a, b in zip(one.levels, other.levels, strict=True))
    by_plan = hyper_attention(q, k, v, plan=one, is_causal=True, scale=0.5)
    assert torch.equal(by_plan, hyper_attention(q, k, v, params=PARAMS, is_causal=True, scale=0.5))
    assert not torch.equal(by_plan, hyper_attention(q, k, v, params=PARAMS, is_causal=True, scale=0.1))


@pytest.mark.parametrize("where", ["probe", "key"])
def test_a_nan_among_probes_or_keys_makes_the_sampling_of_its_node_uniform(where: str) -> None:
    q, k, _ = qkv(queries=90)
    (q if where == "probe" else k)[:, :, 30] = torch.nan
    plan = make_plan(q, k, PARAMS, is_causal=True)
    for level in plan.levels:
        for node, keys in enumerate(level.key_order[0, 0].tolist()):
            is_there = 30 in keys and (where == "key" or max(keys) - 4 <= 30)
            weight = level.sample_weight[0, 0, node]
            assert torch.allclose(weight, torch.full_like(weight, level.node_len / 6)) == is_there


@pytest.mark.parametrize("is_causal", [False, True])
def test_probes_of_half_precision_are_taken_in_float32(is_causal: bool) -> None:
    q, k = (normal(1, 2, 90, 8, seed=i, dtype=torch.bfloat16) for i in range(2))
    (level, *_) = levels_of(q, k, is_causal)
    half, single = (
        probe_scores(level, x, y, 5, 0, 0.3, is_causal=is_causal) for x, y in ((q, k), (q.float(), k.float()))
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, single)
