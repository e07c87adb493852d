"""Masses that a plan catches, against a dense softmax, the oracle's weights and a sort."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, make_plan
from hyperattn_core.oracle import weight_matrix
from hyperbench.measure.worker.errors import reference as chunking
from hyperbench.measure.worker.errors.recall import caught_masses
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from tests.helpers.brute_force import drawn, probabilities

SMALL = {"block_size": 5, "sample_size": 3, "num_projections": 3, "min_seq_len": 8}
LEAF = SMALL["min_seq_len"]
SHAPES = [(2, 1, 1, 40, 8), (1, 2, 1, 53, 8), (1, 3, 1, 17, 4)]


def reference_of(inputs: tuple[Tensor, ...], is_causal: bool, num_rows: int = 1000) -> Reference:
    """The reference of q, k and v in float64."""
    q, k, v, _ = inputs
    return make_reference(
        (q, k, v), None, is_causal=is_causal, num_rows=num_rows, dtype=torch.float64, operator_norm=False, seed=1
    )


def node_before(t: int, level: int) -> range:
    """The keys of the node in which a query is at a level of the causal recursion."""
    length = LEAF * 2**level
    part = t // length
    return range((part - 1) * length, part * length) if part % 2 else range(0)


def dense(plan: AttentionPlan, probs: Tensor) -> dict[str, Tensor]:
    """Every mass of every query (B, H, N), from the definitions."""
    n, weights = probs.shape[3], weight_matrix(plan)
    positions = torch.arange(n)
    leaf = torch.zeros(n, n, dtype=torch.bool)
    if plan.is_causal:
        leaf = (positions.unsqueeze(1) // LEAF == positions // LEAF) & (positions <= positions.unsqueeze(1))
    outside = weights.masked_fill(leaf, 0.0)
    blocks, samples = outside == 1.0, (outside != 0.0) & (outside != 1.0)
    sorted_sums = probs.masked_fill(leaf, 0.0).sort(dim=3, descending=True).values.cumsum(3)
    best, random = torch.zeros(probs.shape[:3], dtype=torch.float64), torch.zeros(probs.shape[:3], dtype=torch.float64)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, probs.shape[:3])).tolist():
        count = int((blocks | samples)[b, h, t].sum())
        best[b, h, t] = sorted_sums[b, h, t, count - 1] if count else 0.0
        nodes = [node_before(t, level) for level in range(6)] if plan.is_causal else [range(n)]
        for node in map(list, nodes):
            if node:
                share = float(blocks[b, h, t, node].sum()) / len(node)
                random[b, h, t] += share * probs[b, h, t, node].sum()
    found = {"mass_blocks": probs * blocks, "mass_sample": probs * samples}
    found |= {"mass_leaf": probs * leaf} if plan.is_causal else {}
    return {**{name: mass.sum(3) for name, mass in found.items()}, "mass_random_blocks": random, "mass_best": best}


@pytest.mark.parametrize("chunk", [150, 2**22])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_masses_are_those_of_the_dense_softmax(
    shape: tuple[int, ...], is_causal: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "_CHUNK_ELEMENTS", chunk)
    q, k, v, g = drawn(*shape)
    # Few samples of many keys: none weighs one, as a key of a block does.
    plan = make_plan(2 * q, k, HyperAttentionParams.from_dict(SMALL), seed=5, is_causal=is_causal)
    found = caught_masses(2 * q, k, plan, reference_of((2 * q, k, v, g), is_causal))
    truth = dense(plan, probabilities(2 * q, k, is_causal)[0])
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: float(mass.mean()) for name, mass in truth.items()}, rel=1e-10
    )
    caught = found["mass_blocks"] + found["mass_sample"]
    assert caught <= found["mass_best"] + 1e-12
    assert found["mass_best"] + found.get("mass_leaf", 0.0) <= 1.0 + 1e-12


def test_masses_of_drawn_rows_are_estimates_with_an_interval() -> None:
    q, k, v, g = drawn(1, 2, 1, 300, 8)
    params = HyperAttentionParams.from_dict({**SMALL, "min_seq_len": 64})
    plan = make_plan(q, k, params, seed=0)
    found = caught_masses(q, k, plan, reference_of((q, k, v, g), False, num_rows=60))
    truth = caught_masses(q, k, plan, reference_of((q, k, v, g), False))
    for name, mass in found.items():
        assert mass.low is not None
        assert mass.high is not None
        assert mass.low <= mass <= mass.high
        assert mass == pytest.approx(truth[name], rel=0.5)
        assert truth[name].low is None


@pytest.mark.parametrize("is_causal", [False, True])
def test_where_a_plan_is_exact_everything_is_caught(is_causal: bool) -> None:
    q, k, v, g = drawn(1, 1, 1, 20, 4)
    plan = make_plan(q, k, HyperAttentionParams(), is_causal=is_causal)
    found: dict[str, Any] = caught_masses(q, k, plan, reference_of((q, k, v, g), is_causal))
    whole = {"mass_leaf"} if is_causal else {"mass_blocks", "mass_random_blocks", "mass_best"}
    assert {name for name, mass in found.items() if mass == 1.0} == whole
    assert {float(mass) for name, mass in found.items() if name not in whole} == {0.0}
