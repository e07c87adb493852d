"""hyper_attention in the kernels: the operators, or exact attention where the estimator is exact."""

from __future__ import annotations

from torch import Tensor

from hyperattn_core.exact import exact_attention
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.plan import AttentionPlan, plan_shape
from hyperattn_core.triton_backend import ops
from hyperattn_core.triton_backend.geometry import Settings
from hyperattn_core.triton_backend.plan import pack
from hyperattn_core.triton_backend.tuning.configure import default_tile_size


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

    Arguments are those of hyper_attention, checked by the caller. Without a plan, params are given and make one.
    """
    if plan is None:
        assert params is not None
        if level_shapes(plan_shape(q, k), params, is_causal=is_causal):
            tile_size = default_tile_size(q.device, q.dtype, max(q.shape[3], v.shape[3]))
            settings = Settings.of(params, is_causal=is_causal, tile_size=tile_size).to_list()
            data, weights = ops.plan(q.detach(), k.detach(), str(seed), settings)
            return ops.attend(q, k, v, data, weights, settings, scale)
    elif not plan.is_exact:
        data, weights, packed = pack(plan)
        return ops.attend(q, k, v, data, weights, packed.to_list(), scale)
    out, lse = exact_attention(q, k, v, is_causal=is_causal, scale=scale, enable_gqa=True, return_lse=True)
    return out, lse
