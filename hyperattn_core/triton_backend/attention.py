"""Plans and attention in the kernels, behind the interface of all backends; arguments are checked by the caller."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hyperattn_core.exact_aten import Attended, BackwardInputs, Gradients
from hyperattn_core.planning.draws import level_weights
from hyperattn_core.planning.levels import CallShape
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import LevelPlan
from hyperattn_core.triton_backend import backward as gradients
from hyperattn_core.triton_backend import forward as passes
from hyperattn_core.triton_backend import packing, plan
from hyperattn_core.triton_backend.configure import attend_config, backward_config, default_tile_size
from hyperattn_core.triton_backend.geometry import geometry

__all__ = ["backward", "default_tile_size", "forward", "pack", "packed_plan", "plan_sizes", "unpack"]

pack = packing.pack


def plan_sizes(shape: CallShape, settings: Settings) -> tuple[int, int]:
    """Elements of a packed plan: indices and weights."""
    where = geometry(shape, settings)
    return where.data_size, where.drawn_size


def packed_plan(q: Tensor, k: Tensor, seed: int, settings: Settings, scale: float) -> Packed:
    """Hash, sort, pair and sample; scale is the factor of the logits that probes see."""
    with torch.cuda.device_of(q):
        return plan.packed_plan(q, k, seed, settings, scale)


def unpack(packed: Packed, shape: CallShape, seed: int) -> tuple[LevelPlan, ...]:
    """The levels of a plan as views; of weights that are not uniform the kernels have rounded logarithms."""
    where, params, device = geometry(shape, packed.settings), packed.settings.params, str(packed.data.device)
    levels = packing.unpack(packed, where)
    if params.uses_probes:
        return levels
    weights = (level_weights(level, params, device) for level in where.levels)
    return tuple(
        replace(level, sample_weight=weight.expand(level.sample_index.shape))
        for level, weight in zip(levels, weights, strict=True)
    )


def forward(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float) -> Attended:
    """Output (B, H, Nq, Dv) in the dtype of q and log-sum-exp (B, H, Nq) in float64, at a packed plan."""
    with torch.cuda.device_of(q):
        config = attend_config(q.device, q.dtype, max(q.shape[3], v.shape[3]), packed.settings.tile_size)
        return passes.forward(q, k, v, packed, scale, config)


def backward(inputs: BackwardInputs, packed: Packed, scale: float) -> Gradients:
    """dq, dk and dv in the dtype of q."""
    with torch.cuda.device_of(inputs.q):
        config = backward_config(inputs.q.device, inputs.q.dtype, max(inputs.q.shape[3], inputs.v.shape[3]))
        return gradients.backward(inputs, packed, scale, config)
