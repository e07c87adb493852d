"""Routing: the blocks that queries choose, and those that they meet because queries before them chose them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperattn_core import HyperAttentionParams, LevelPlan, hyper_attention, make_plan
from hyperattn_core.oracle import weight_matrix
from hyperattn_core.planning import routing
from tests.helpers.core_inputs import Case, bits, cases, qkv, small_params


def chosen(level: LevelPlan, row: tuple[int, int, int], tile: int) -> list[list[int]]:
    """The entries of a tile's list by the query that chose them."""
    return level.tile_block[row][tile].view(8, -1).tolist()


@settings(max_examples=40)
@given(cases(pairings=("routed",)), st.sampled_from((None, -0.5)))
def test_every_query_meets_the_blocks_with_the_largest_mean_logits(case: Case, scale: float | None) -> None:
    plan = make_plan(case.q, case.k, case.params, is_causal=case.is_causal, scale=scale)
    count = case.params.block_size // 32
    for level in plan.levels:
        batch, heads, nodes, slots = level.query_order.shape
        for row in ((b, h, g) for b in range(batch) for h in range(heads) for g in range(nodes)):
            key_row = (row[0], row[1] * case.k.shape[1] // heads, row[2])
            keys = case.k[key_row[:2]][level.key_order[key_row].long()]
            means = (-1 if scale else 1) * torch.stack([block.mean(0) for block in keys.split(4)])
            for tile in range(-(-slots // 8)):
                met: set[int] = set()
                for i, entries in enumerate(chosen(level, row, tile)):
                    if i >= int(level.tile_count[row][tile]):
                        assert set(entries) == {-1}
                        continue
                    found = [block for block in entries if block >= 0]
                    assert not met & set(found)
                    assert len(set(found)) == len(found)
                    met |= set(found)
                    logits = means @ case.q[row[:2]][level.query_order[row][8 * tile + i]]
                    least = logits.sort(descending=True).values[:count][-1]
                    assert (logits[list(met)] >= least - 1e-9).sum() >= min(count, len(means))


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_block_whose_mean_is_not_a_number_is_not_chosen(is_causal: bool) -> None:
    q, k, _ = qkv(queries=90)
    k[:, :, 7] = torch.nan
    plan = make_plan(q, k, small_params("iid", "routed", min_seq_len=20), is_causal=is_causal)
    for level in plan.levels:
        assert not (level.tile_block[:, :, 0] == 1).any()
    assert weight_matrix(plan)[..., 7].gt(0).any()  # as a sample, and in its own leaf


@pytest.mark.parametrize("is_causal", [False, True])
def test_keys_and_queries_stay_where_they_are(is_causal: bool) -> None:
    q, k, _ = qkv(queries=83)
    for level in make_plan(q, k, small_params("iid", "routed"), is_causal=is_causal).levels:
        for order in (level.key_order, level.query_order):
            assert (order.diff(dim=-1) == 1).all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_of_very_many_blocks_the_best_are_looked_for_in_groups(
    is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all blocks of the best groups are looked at, the blocks are those of looking at all of them."""
    q, k, _ = qkv(queries=400, heads=2)
    params = small_params("iid", "routed", block_size=64, min_seq_len=50)
    everything = make_plan(q, k, params, is_causal=is_causal)
    monkeypatch.setattr(routing, "_MOST_BLOCKS", 16)
    grouped = make_plan(q, k, params, is_causal=is_causal)
    assert grouped == everything
    monkeypatch.setattr(routing, "_MOST_IN_GROUPS", 16)
    fewer = make_plan(q, k, params, is_causal=is_causal)
    assert fewer != everything
    for few, all_ in zip(fewer.levels, everything.levels, strict=True):
        assert (few.tile_block == all_.tile_block).double().mean() > 0.15


def test_largest_are_those_of_a_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    for width, count in ((5, 8), (64, 3), (129, 2), (1000, 7)):
        logits = torch.randn(20, width, generator=generator)
        found = logits.gather(1, routing._largest(logits, count)).sort(descending=True).values
        assert torch.equal(found, logits.sort(descending=True).values[:, :count])


def test_a_query_does_not_depend_on_the_choices_of_later_ones() -> None:
    """To the last bit, within the eight queries that share their blocks too."""
    q, k, v = qkv(queries=120, dtype=torch.float32)
    params = small_params("probed", "routed", min_seq_len=40)
    out = hyper_attention(q, k, v, is_causal=True, params=params)
    other = q.clone()
    other[:, :, 83:] = -other[:, :, 83:]
    found = hyper_attention(other, k, v, is_causal=True, params=params)
    assert torch.equal(bits(found[:, :, :83]), bits(out[:, :, :83]))


@pytest.mark.parametrize("block_size", [1, 16, 33, 100])
def test_other_block_sizes_are_refused(block_size: int) -> None:
    with pytest.raises(ValueError, match=r"^block_size must be a multiple of 32 with pairing='routed', got "):
        HyperAttentionParams(block_size=block_size, pairing="routed")


def test_hashing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^pairing='routed' hashes nothing: leave hashing out, got 'centred'$"):
        HyperAttentionParams(pairing="routed", hashing="centred")
