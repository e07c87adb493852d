"""Draws in the kernels: bit for bit those of PyTorch."""

from __future__ import annotations

import pytest
import torch

from hyperattn_core.planning import draws
from hyperattn_core.planning.packed import Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.geometry import block_dim, geometry
from hyperattn_core.triton_backend.plan import drawn_samples, split_projections
from tests.helpers.triton_inputs import Call

SEEDS = (0, 3, -1, 2**70)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("head_dim", "num_projections"), [(1, 1), (20, 10), (64, 7), (256, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_projections(dtype: torch.dtype, head_dim: int, num_projections: int, seed: int) -> None:
    split = split_projections(seed, head_dim, num_projections, dtype, "cpu")
    expected = torch.zeros(block_dim(head_dim), 16, dtype=torch.float64)
    expected[:head_dim, :num_projections] = draws.projections(seed, head_dim, num_projections, "cpu").float()
    assert split.shape == (1 if dtype == torch.float32 else 3, *expected.shape)
    # Three terms are all of a float32 number, but for float16's smallest. (The interpreter cuts where a GPU rounds.)
    lost = (split.double().sum(0) - expected).abs()
    assert float(lost.max()) <= (6e-8 if dtype == torch.float16 else 0.0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sampling", ["iid", "stratified"])
@pytest.mark.parametrize(
    "call",
    [
        Call(queries=301, keys=389, batch=2, heads=4, kv_heads=2),
        Call(queries=331, is_causal=True, heads=2),
        # A level whose nodes are one block each has no samples.
        Call(queries=200, is_causal=True, params={"block_size": 60, "min_seq_len": 50}),
    ],
    ids=["not causal", "causal", "no samples"],
)
def test_uniform_samples(call: Call, sampling: str, seed: int) -> None:
    q, k, _ = call.inputs()
    params = Call(params={**call.params, "sampling": sampling}).parameters()
    where = geometry(plan_shape(q, k), Settings(params, call.is_causal, 16))
    levels = [draws.level_samples(level, where.shape, params, seed, "cpu")[0] for level in where.levels]
    assert torch.equal(drawn_samples(where, seed, "cpu"), torch.cat([index.flatten() for index in levels]))
