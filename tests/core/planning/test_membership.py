"""A plan read by position: the keys of a query's blocks and its sample are those that the oracle weighs."""

from __future__ import annotations

import pytest
import torch

from hyperattn_core import HyperAttentionParams, make_plan
from hyperattn_core.oracle import weight_matrix
from hyperattn_core.planning.membership import membership
from tests.helpers.brute_force import drawn

SHAPES = [(1, 1, 1, 40, 8), (2, 4, 2, 53, 8), (1, 3, 1, 17, 4)]


@pytest.mark.parametrize("pairing", ["rank", "bucket", "routed"])
@pytest.mark.parametrize("sampling", ["iid", "stratified"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_keys_that_are_met_are_those_with_a_weight(
    shape: tuple[int, ...], is_causal: bool, sampling: str, pairing: str
) -> None:
    q, k, _, _ = drawn(*shape)
    block_size = 32 if pairing == "routed" else 5
    params = HyperAttentionParams(block_size, 3, 3, 8, sampling, pairing)  # type: ignore[arg-type]
    plan = make_plan(q, k, params, seed=3, is_causal=is_causal)
    weights, positions = weight_matrix(plan), torch.arange(shape[3])
    own_leaf = positions.unsqueeze(1) // 8 == positions // 8 if is_causal else torch.zeros(1, dtype=torch.bool)
    for batch in range(shape[0]):
        for head in range(shape[1]):
            one = weights[batch, head].masked_fill(own_leaf, 0.0)
            blocks, samples = torch.zeros_like(one, dtype=torch.bool), torch.zeros_like(one, dtype=torch.bool)
            for level in plan.levels:
                in_block, in_node, in_sample = membership(plan, level, batch, head).met(positions)
                assert not (in_block & in_sample).any()
                assert not ((in_block | in_sample) & ~in_node).any()
                # Levels share no pair of query and key.
                assert not (blocks & in_node).any()
                blocks, samples = blocks | in_block, samples | in_sample
            # Slices of three from node lengths above five: no sample weighs one.
            assert torch.equal(blocks, one == 1.0)
            assert torch.equal(samples, (one != 1.0) & (one != 0.0))
