"""Probed samples by the kernels: those that PyTorch draws, but for scores within rounding of a threshold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hyperattn_core import AttentionPlan, make_plan
from hyperattn_core.planning.packed import Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.planning.probes import probe_scores
from hyperattn_core.planning.samples import score_classes
from hyperattn_core.triton_backend.geometry import geometry
from hyperattn_core.triton_backend.plan import PlanWork
from tests.helpers.slow import slow, slow_in
from tests.helpers.triton_inputs import Call


def probed(*, params: dict[str, Any] | None = None, **others: Any) -> Call:
    """A call with probed samples."""
    return Call(**others, params={"sampling": "probed", **(params or {})})


PROBED = {
    "one tile": probed(queries=70, keys=111),
    "several tiles": probed(queries=50, keys=2500, params={"sample_size": 300}),
    "causal, grouped heads, batch": probed(is_causal=True, queries=130, batch=2, heads=2, kv_heads=1),
    "causal, leaves of several tiles": probed(is_causal=True, queries=700, params={"min_seq_len": 150}),
    "grouped heads, stored by heads": probed(heads=4, kv_heads=2, batch=2, transposed=True),
    "one probe": probed(params={"num_probes": 1}),
    "more probes than a block": probed(is_causal=True, params={"num_probes": 40}),
    "fewer queries than probes": probed(queries=5, keys=130),
    "one sample": probed(params={"sample_size": 1}),
    "as many samples as keys": probed(queries=60, keys=90, params={"sample_size": 90, "block_size": 8}),
    "one block holds the shortest nodes": probed(is_causal=True, queries=201, params={"block_size": 40}),
    "no floor to speak of": probed(params={"probe_floor": 1e-6}),
    "nothing but the floor": probed(params={"probe_floor": 1.0}),
    "bfloat16": probed(dim=64, dtype=torch.bfloat16, heads=2),
    "float16, causal": probed(dim=64, dtype=torch.float16, is_causal=True, queries=170),
    "odd head size": probed(dim=20),
    "large logits": probed(scale=40.0),
    "scale zero": probed(scale=0.0),
}
SLOW = (
    "one tile", "more probes than a block", "one sample", "bfloat16", "odd head size", "nothing but the floor",
    "grouped heads, stored by heads", "no floor to speak of", "scale zero",
)  # fmt: skip


def differing(plan: AttentionPlan, expected: AttentionPlan) -> tuple[int, int]:
    """Samples that differ between two plans, of how many; the weights of the others are nearly the same."""
    differ = total = 0
    for level, other in zip(plan.levels, expected.levels, strict=True):
        same = level.sample_index == other.sample_index
        torch.testing.assert_close(level.sample_weight[same], other.sample_weight[same], rtol=1e-4, atol=0)
        differ, total = differ + int((~same).sum()), total + same.numel()
    return differ, total


@pytest.mark.parametrize("name", slow_in(PROBED, SLOW))
def test_samples_are_those_that_pytorch_draws(name: str) -> None:
    differ, total = differing(*(PROBED[name].plan(backend) for backend in ("triton", "torch")))
    assert differ <= total // 200


@pytest.mark.parametrize("name", ["causal, grouped heads, batch", "several tiles"])
def test_classes_of_scores_are_those_that_pytorch_finds(name: str) -> None:
    """But for scores within rounding of the next class."""
    call = PROBED[name]
    q, k, _ = call.inputs()
    settings = Settings(call.parameters(), call.is_causal, 16)
    work = PlanWork(q, k, 3, settings, 0.25)
    work.probe()
    for level in geometry(plan_shape(q, k), settings).levels:
        scores = probe_scores(level, q, k, settings.params.num_probes, 3, 0.25, is_causal=call.is_causal)
        wanted = score_classes(scores)
        found = work.probing.classes[level.classes : level.classes + wanted.numel()].view_as(wanted).long()
        at_edge = score_classes(scores * (1 - 1e-5)) != score_classes(scores * (1 + 1e-5))
        assert torch.equal(found[~at_edge], wanted[~at_edge])
        assert (found - wanted).abs().max() <= 1
        tiles = work.probing.class_counts.view(-1, 128)[level.class_tiles :][
            : level.probe_tiles * scores[..., 0].numel()
        ]
        counts = tiles.view(*scores.shape[:3], level.probe_tiles, 128).sum(3)
        assert torch.equal(counts, torch.nn.functional.one_hot(found, 128).sum(3))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), *slow(float("inf"), -float("inf"))])
@pytest.mark.parametrize("where", ["probe", "key"])
def test_what_is_no_number_does_to_samples_what_it_does_in_pytorch(is_causal: bool, bad: float, where: str) -> None:
    # Without a mask every query is a probe; under one the query before the first node's.
    sizes = {"num_probes": 5, "min_seq_len": 40} if is_causal else {"num_probes": 169, "min_seq_len": 169}
    call = probed(is_causal=is_causal, queries=170, params=sizes)
    q, k, _ = call.inputs()
    (q if where == "probe" else k)[:, :, 39, 0] = bad
    options = {"is_causal": is_causal, "tile_size": 16}
    plan, other = (make_plan(q, k, call.parameters(), backend=backend, **options) for backend in ("triton", "torch"))
    assert differing(plan, other)[0] == 0
    if math.isnan(bad):
        even = torch.full((24,), plan.levels[0].node_len / 24, dtype=torch.float64)
        assert torch.allclose(plan.levels[0].sample_weight[0, 0, 0], even, rtol=1e-5)


@pytest.mark.slow
def test_samples_by_the_kernels_are_met_as_often_as_their_weights_say() -> None:
    """Over seeds: the mean weight of every key is one, within what so many draws allow."""
    call, seeds = probed(queries=90, params={"sample_size": 12, "num_probes": 80, "min_seq_len": 89}), 150
    q, k, _ = call.inputs()
    total = torch.zeros(90, dtype=torch.float64)
    most = torch.zeros(90, dtype=torch.float64)
    for seed in range(seeds):
        (level,) = make_plan(q, k, call.parameters(), seed, tile_size=16, backend="triton").levels
        keys = level.key_order[0, 0, 0, level.sample_index[0, 0, 0].long()].long()
        assert keys.unique().numel() == 12
        total.index_add_(0, keys, level.sample_weight[0, 0, 0])
        most[keys] = level.sample_weight[0, 0, 0]
    spread = ((most - 1).clamp(min=0) / seeds).sqrt()
    assert ((total / seeds - 1).abs() <= 4.5 * spread + 1e-5).all()
