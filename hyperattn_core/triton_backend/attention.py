"""make_plan and hyper_attention in the kernels; arguments are checked by the caller."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hyperattn_core.exact import exact_attention
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.draws import level_samples
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.plan import AttentionPlan, plan_shape
from hyperattn_core.triton_backend import ops
from hyperattn_core.triton_backend.configure import default_tile_size
from hyperattn_core.triton_backend.geometry import Settings, geometry
from hyperattn_core.triton_backend.packing import PackedPlan, pack, unpack
from hyperattn_core.triton_backend.plan import packed_plan


def make_plan(
    q: Tensor, k: Tensor, params: HyperAttentionParams, seed: int, *, is_causal: bool, tile_size: int | None
) -> AttentionPlan:
    """The plan of hyperattn_core.make_plan."""
    shape = plan_shape(q, k)
    if not level_shapes(shape, params, is_causal=is_causal):
        return AttentionPlan(params, seed, is_causal, shape, (), None)
    settings = Settings(params, is_causal, tile_size or default_tile_size(q.device, q.dtype, q.shape[3]))
    with torch.cuda.device_of(q):
        packed = packed_plan(q.detach(), k.detach(), seed, settings)
    where = geometry(shape, settings)
    levels = tuple(
        replace(level, sample_weight=level_samples(part, shape, params, seed, str(q.device))[1])
        for level, part in zip(unpack(packed, where), where.levels, strict=True)
    )
    return PackedPlan(params, seed, is_causal, shape, levels, params.min_seq_len if is_causal else None, packed)


def triton_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan | None,
    params: HyperAttentionParams | None,
    seed: int,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Nq, Dv) in the dtype of q and lse (B, H, Nq) in float32, differentiable through both.

    Arguments are those of hyper_attention. Without a plan, params are given and make one.
    """
    if plan is None:
        assert params is not None
        if level_shapes(plan_shape(q, k), params, is_causal=is_causal):
            tile_size = default_tile_size(q.device, q.dtype, max(q.shape[3], v.shape[3]))
            settings = Settings(params, is_causal, tile_size).to_list()
            data, weights = ops.plan(q.detach(), k.detach(), str(seed), settings)
            return ops.attend(q, k, v, data, weights, settings, scale)
    elif not plan.is_exact:
        packed = pack(plan)
        return ops.attend(q, k, v, packed.data, packed.weights, packed.settings.to_list(), scale)
    out, lse = exact_attention(q, k, v, is_causal=is_causal, scale=scale, enable_gqa=True, return_lse=True)
    return out, lse
