"""HyperAttention in PyTorch for any device: the estimator at a plan and its exact gradient, in linear memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperattn_core.exact import as_leaves, exact_backward, exact_forward, leaf_slices, store_leaves
from hyperattn_core.exact_aten import (
    Attended,
    BackwardInputs,
    Gradients,
    in_kernel_dtype,
    lse_dtype,
    range_factor,
    whole_backward,
)
from hyperattn_core.merge import merge_into
from hyperattn_core.planning.levels import LevelShape, level_shapes
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import LevelPlan, plan_shape
from hyperattn_core.torch_backend.batches import LevelBatches
from hyperattn_core.torch_backend.fused import COLUMNS, fused_backward, fused_forward
from hyperattn_core.torch_backend.mean_keys import add_mean_key_gradients, mean_keys, merge_mean_keys
from hyperattn_core.torch_backend.packing import pack, plan_sizes, unpack
from hyperattn_core.torch_backend.passes import level_forward, tiled_backward
from hyperattn_core.torch_backend.plan import DEFAULT_TILE_SIZE, packed_plan
from hyperattn_core.torch_backend.scratch import Buffers, kept_buffers
from hyperattn_core.torch_backend.tiles import LOG2_E, LevelTiles

__all__ = ["backward", "default_tile_size", "forward", "pack", "packed_plan", "plan_sizes", "unpack"]

# Rounded to float32, a log-sum-exp of this size changes weights by some 1e-5 at most.
_LARGE_LSE = 128.0
# Queries of all leaves that are attended at once on a CPU, if they are not those of a single leaf.
_LEAF_ROWS = 16384


def default_tile_size(device: torch.device, dtype: torch.dtype, head_dim: int) -> int:
    """The tile size of a plan that is made for this backend."""
    return DEFAULT_TILE_SIZE


def forward(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float) -> Attended:
    """HyperAttention at a packed plan that has levels (Algorithm 3; Algorithm 4 if the plan is causal).

    Args:
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        v: values (B, Hkv, Nk, Dv).
        packed: made for inputs of these shapes.
        scale: factor of the logits.

    Returns:
        out (B, H, Nq, Dv) in the dtype of q, lse (B, H, Nq) in float64.
    """
    levels = unpack(packed, plan_shape(q, k))
    out, lse = _forward(equally_wide(q, k, v), levels, packed.settings, scale)
    # Elsewhere than on CPUs weights are small enough for all sums of values.
    if q.device.type == "cpu" and not bool(out.sum().isfinite()) and (factor := range_factor(v)) != 1:
        out, lse = _forward(equally_wide(q, k, v * factor), levels, packed.settings, scale)
        out = out / factor
    means = mean_keys(q, k, v, levels, packed.settings.params, is_causal=packed.settings.is_causal)
    return merge_mean_keys(q, (own_columns(out.to(q.dtype), v), lse), means, scale)


def _forward(wide: Sequence[Tensor], levels: tuple[LevelPlan, ...], settings: Settings, scale: float) -> Attended:
    """As forward, of inputs as equally_wide makes them; a causal out is not rounded."""
    q = wide[0]
    with kept_buffers(lse_dtype(q), q.device) as scratch:
        if not settings.is_causal:
            out, lse = attend_level(levels[0], wide, scale, scratch, dtype=q.dtype)
        else:
            out, lse = attend_leaves(wide, settings.params.min_seq_len, scale)
            shapes = level_shapes(plan_shape(q, wide[1]), settings.params, is_causal=True)
            for level, shape in zip(levels, shapes, strict=True):
                attended = attend_level(level, wide, scale, scratch, is_causal=True)
                merge_level(out, lse, shape.query_rows(*attended), shape)
    return out, lse


def backward(inputs: BackwardInputs, packed: Packed, scale: float) -> Gradients:
    """dq, dk and dv in the dtypes of q, k and v, from the final out and lse of every row."""
    levels = unpack(packed, plan_shape(inputs.q, inputs.k))
    names = [name for name, x in vars(inputs).items() if x is not None and x.dim() == 4]
    wide = dict(zip(names, equally_wide(*(getattr(inputs, name) for name in names)), strict=True))
    with kept_buffers(lse_dtype(inputs.q), inputs.q.device) as scratch:
        grads = _backward(replace(inputs, **wide), levels, packed.settings, scale, scratch)
    own = (inputs.q, inputs.k, inputs.v)
    dq, dk, dv = (own_columns(grad.to(x.dtype), x) for grad, x in zip(grads, own, strict=True))
    means = mean_keys(*own, levels, packed.settings.params, is_causal=packed.settings.is_causal)
    return add_mean_key_gradients(inputs, (dq, dk, dv), means, scale)


def equally_wide(*tensors: Tensor) -> list[Tensor]:
    """Tensors (B, H, N, D), contiguous, with zero columns up to a common multiple of 16: they change no other value.

    With other widths, a matrix product may round a row differently by where in the matrix it lies, and an output would
    depend, in its last bit, on later queries that sort before it.
    """
    width = -(-max(x.shape[3] for x in tensors) // COLUMNS) * COLUMNS
    missing = [width - x.shape[3] for x in tensors]
    padded = (torch.nn.functional.pad(x, (0, n)) if n else x for x, n in zip(tensors, missing, strict=True))
    return [x.contiguous() for x in padded]


def own_columns(padded: Tensor, x: Tensor) -> Tensor:
    """The columns of an output, or a gradient, that belong to x (B, H, N, D) as it was before it was padded."""
    return padded[..., : x.shape[3]].contiguous()


def attend_level(
    level: LevelPlan,
    inputs: Sequence[Tensor],
    scale: float,
    scratch: Buffers,
    *,
    is_causal: bool = False,
    dtype: torch.dtype | None = None,
) -> Attended:
    """Estimate a level for its queries: out (B, H, Nq, D) and lse (B, H, Nq), in float64; other rows are undefined.

    Args:
        level: the plan of the level.
        inputs: q, k and v, contiguous and equally wide.
        scale: factor of the logits.
        scratch: with is_causal it has the results too, until the next level.
        is_causal: the level is one of a causal call.
        dtype: of out, if not that of sums.
    """
    q, k, v = inputs
    num_rows, width = q[..., 0].numel(), q.shape[3]
    if is_causal:
        flat_out = scratch.get("level_out", num_rows + 1, width)
        flat_lse = scratch.get("level_lse", num_rows + 1, dtype=torch.float64)
    else:
        flat_out = torch.empty(num_rows + 1, width, dtype=dtype or scratch.dtype, device=q.device)
        flat_lse = torch.empty(num_rows + 1, dtype=torch.float64, device=q.device)
    out, lse = flat_out[:-1].view(q.shape), flat_lse[:-1].view(q.shape[:3])
    if _in_batches(level):
        batches = LevelBatches(level, q.shape[2], k.shape[2], scratch.dtype, is_causal=is_causal)
        fused_forward(batches, (q, k, v), scale, (flat_out, flat_lse), scratch)
        return out, lse
    tiles = LevelTiles(level, k, v, q.shape[1], q.shape[2], scale, scratch.dtype)
    slots, *found = tiles.slot_of_query(), *level_forward(tiles, q.view(-1, width), width, scratch)
    for into, rows in zip((out, lse), found, strict=True):
        into.copy_(rows.index_select(0, slots).view(into.shape))
    return out, lse


def _in_batches(level: LevelPlan) -> bool:
    """True if a level goes through the fused kernel: on a CPU, where each query meets one block."""
    return level.tile_block.device.type == "cpu" and level.blocks_per_tile == 1


def attend_leaves(inputs: Sequence[Tensor], leaf_len: int, scale: float) -> Attended:
    """Exact causal attention within each leaf: out (B, H, N, Dv), not rounded, and lse (B, H, N) in float64."""
    q = inputs[0]
    out = torch.empty_like(q, dtype=lse_dtype(q))
    lse = torch.empty(q.shape[:3], dtype=torch.float64, device=q.device)
    for part in _leaf_parts(q, leaf_len):
        q_leaf, k_leaf, v_leaf = (in_kernel_dtype(as_leaves(x, part, leaf_len)) for x in inputs)
        for whole, leaves in zip((out, lse), exact_forward(q_leaf, k_leaf, v_leaf, True, scale), strict=True):
            store_leaves(whole, part, leaves)
    return out, lse


def _leaf_parts(q: Tensor, leaf_len: int) -> list[slice]:
    """The positions of leaves that are attended at once: on a CPU no more than keep all cores busy, for less memory."""
    most = _LEAF_ROWS // (q.shape[0] * q.shape[1]) if q.device.type == "cpu" else None
    return leaf_slices(q.shape[2], leaf_len, most)


def merge_level(out: Tensor, lse: Tensor, attended: list[tuple[Tensor, ...]], level: LevelShape) -> None:
    """Merge the level.query_rows of what attend_level gave into out (B, H, N, Dv) and lse (B, H, N)."""
    for (own_out, own_lse), (other_out, other_lse) in zip(level.query_rows(out, lse), attended, strict=True):
        merge_into(own_out, own_lse, other_out, other_lse)


def _backward(
    inputs: BackwardInputs, levels: tuple[LevelPlan, ...], settings: Settings, scale: float, scratch: Buffers
) -> Gradients:
    q, k, v, dtype = inputs.q, inputs.k, inputs.v, lse_dtype(inputs.q)
    num_rows, leaf_len = q[..., 0].numel(), settings.params.min_seq_len
    is_large = q.device.type == "cpu" and bool((inputs.lse.abs() > _LARGE_LSE).any())
    dq = torch.zeros(num_rows + 1, q.shape[3], dtype=dtype, device=q.device)
    dk, dv = torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
    for part in _leaf_parts(q, leaf_len) if settings.is_causal else []:
        leaves = inputs.map(functools.partial(as_leaves, part=part, leaf_len=leaf_len)).map(in_kernel_dtype)
        grads = _large_leaf_backward(leaves, scale) if is_large else exact_backward(leaves, True, scale)
        for whole, grad in zip((dq[:-1].view(q.shape), dk, dv), grads, strict=True):
            store_leaves(whole, part, grad)
    in_batches = _in_batches(levels[0])
    if in_batches:
        batches = (LevelBatches(x, q.shape[2], k.shape[2], dtype, is_causal=settings.is_causal) for x in levels)
        fused_backward(batches, inputs, (dq, dk, dv), scale, scratch, is_large=is_large)
    else:
        tiles = (LevelTiles(x, k, v, q.shape[1], q.shape[2], scale, dtype) for x in levels)
        tiled_backward(tiles, _for_rounded_lse(inputs) if is_large else inputs, (dq, dk, dv), scratch)
    return dq[:-1].view(q.shape), dk, dv


def _for_rounded_lse(inputs: BackwardInputs) -> BackwardInputs:
    """Gradients for weights made of the lse in base 2 as rounded to the dtype of sums.

    Such weights are wrong by one factor in all of a row, which gradients have in common with these two.
    """
    lse, dtype = inputs.lse * LOG2_E, lse_dtype(inputs.q)
    factor = torch.exp2(lse.to(dtype) - lse).to(dtype)
    grad_lse = None if inputs.grad_lse is None else inputs.grad_lse * factor
    return replace(inputs, grad_out=inputs.grad_out * factor.unsqueeze(3), grad_lse=grad_lse)


def _large_leaf_backward(leaves: BackwardInputs, scale: float) -> Gradients:
    """Gradients of leaves whose logits are large, through the output and the lse that each had before the merge."""
    own = leaves.of_part(*exact_forward(leaves.q, leaves.k, leaves.v, True, scale))
    return exact_backward(own, True, scale, head_backward=whole_backward)
