"""HyperAttention in PyTorch for any device: the estimator at a plan and its exact gradient, in linear memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hyperattn_core.exact import exact_backward, exact_forward
from hyperattn_core.exact_aten import Attended, BackwardInputs, Gradients, lse_dtype, whole_backward
from hyperattn_core.leaves import as_leaves, leaf_slices, store_leaves
from hyperattn_core.merge import merge_into
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import LevelPlan, plan_shape
from hyperattn_core.torch_backend.packing import pack, plan_sizes, unpack
from hyperattn_core.torch_backend.passes import FlatQueries, level_backward, level_forward
from hyperattn_core.torch_backend.plan import DEFAULT_TILE_SIZE, packed_plan
from hyperattn_core.torch_backend.runs import runs_backward, runs_forward
from hyperattn_core.torch_backend.scratch import Buffers
from hyperattn_core.torch_backend.tiles import LOG2_E, LevelTiles

__all__ = ["backward", "default_tile_size", "forward", "pack", "packed_plan", "plan_sizes", "unpack"]

# Rows of whole vectors: with others, a matrix product may round a row differently by where in the matrix it lies, and
# an output would depend, in its last bit, on later queries that sort before it.
_COLUMNS = 16
# Rounded to float32, a log-sum-exp of this size changes weights by some 1e-5 at most.
_LARGE_LSE = 128.0


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
        out (B, H, Nq, Dv) in the dtype of q, lse (B, H, Nq) in float64. Logits are in base 2 here and in base e in the
        fused kernels, and both must come out of lse as they went in: with another rounding a weight of 1, of the only
        key that counts, is not 1 in the backward pass where logits are large.
    """
    levels = unpack(packed, plan_shape(q, k))
    wide_q, wide_k, wide_v = (whole_columns(x).contiguous() for x in (q, k, v))
    out, lse = _forward(wide_q, wide_k, wide_v, levels, packed.settings, scale)
    return own_columns(out, v), lse


def backward(inputs: BackwardInputs, packed: Packed, scale: float) -> Gradients:
    """dq, dk and dv in the dtypes of q, k and v, from the final out and lse of every row."""
    levels = unpack(packed, plan_shape(inputs.q, inputs.k))
    wide = {name: whole_columns(x).contiguous() for name, x in vars(inputs).items() if x is not None and x.dim() == 4}
    grads = _backward(replace(inputs, **wide), levels, packed.settings, scale)
    dq, dk, dv = (own_columns(grad, x) for grad, x in zip(grads, (inputs.q, inputs.k, inputs.v), strict=True))
    return dq, dk, dv


def whole_columns(x: Tensor) -> Tensor:
    """Zero columns up to a multiple of 16; they change no logit and no other value."""
    missing = -x.shape[3] % _COLUMNS
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def own_columns(padded: Tensor, x: Tensor) -> Tensor:
    """The columns of an output, or a gradient, that belong to x (B, H, N, D) as it was before it was padded."""
    return padded[..., : x.shape[3]].contiguous()


@dataclass(frozen=True)
class AttendedLevel:
    """The estimates of one level, in the order of its query slots.

    Attributes:
        out: (slots, Dv), in float32 (float64 for float64 inputs).
        lse: (slots,), in float64.
        slots: int64 (B, H, Nq), the slot of each query; undefined for queries that are not in the level.
    """

    out: Tensor
    lse: Tensor
    slots: Tensor


def _forward(
    q: Tensor, k: Tensor, v: Tensor, levels: tuple[LevelPlan, ...], settings: Settings, scale: float
) -> Attended:
    scratch = Buffers(lse_dtype(q), q.device)
    if not settings.is_causal:
        return attend_all(levels[0], q, k, v, scale, scratch)
    out, lse = attend_leaves(q, k, v, settings.params.min_seq_len, scale)
    for level in levels:
        merge_level(out, lse, attend_level(level, q, k, v, scale, scratch), level.node_len)
    return out.to(q.dtype), lse


def attend_all(
    level: LevelPlan, q: Tensor, k: Tensor, v: Tensor, scale: float, scratch: Buffers
) -> tuple[Tensor, Tensor]:
    """A call of one level of all queries: out (B, H, Nq, Dv) in the dtype of q, and lse (B, H, Nq) in float64."""
    if in_runs(level):
        return runs_forward(level, q, k, v, scale, scratch)
    attended = attend_level(level, q, k, v, scale, scratch)
    slots = attended.slots.view(-1)
    out = attended.out.index_select(0, slots).view(*q.shape[:3], -1)
    return out.to(q.dtype), attended.lse.index_select(0, slots).view(q.shape[:3])


def in_runs(level: LevelPlan) -> bool:
    """True if a level of all queries goes run by run: on a CPU, where each query meets one block."""
    return level.tile_block.device.type == "cpu" and level.blocks_per_tile == 1


def attend_level(level: LevelPlan, q: Tensor, k: Tensor, v: Tensor, scale: float, scratch: Buffers) -> AttendedLevel:
    """Estimate one non-causal level for all its queries; q, k and v are contiguous, whole vectors wide."""
    batch, heads, num_queries, width = q.shape
    tiles = LevelTiles(level, k, v, heads, num_queries, scale, scratch.dtype)
    out, lse = level_forward(tiles, q.view(-1, width), v.shape[3], scratch)
    return AttendedLevel(out, lse, tiles.slot_of_query().view(batch, heads, num_queries))


def attend_leaves(q: Tensor, k: Tensor, v: Tensor, leaf_len: int, scale: float) -> tuple[Tensor, Tensor]:
    """Exact causal attention within each leaf: out (B, H, N, Dv), not rounded, and lse (B, H, N) in float64."""
    batch, heads, seq_len, _ = q.shape
    out = torch.empty(batch, heads, seq_len, v.shape[3], dtype=lse_dtype(q), device=q.device)
    lse = torch.empty(batch, heads, seq_len, dtype=torch.float64, device=q.device)
    for part in leaf_slices(seq_len, leaf_len):
        q_leaf, k_leaf, v_leaf = (as_leaves(x, part, leaf_len) for x in (q, k, v))
        for whole, leaves in zip((out, lse), exact_forward(q_leaf, k_leaf, v_leaf, True, scale), strict=True):
            store_leaves(whole, part, leaves)
    return out, lse


def merge_level(out: Tensor, lse: Tensor, attended: AttendedLevel, node_len: int) -> None:
    """Merge a causal level of nodes of node_len keys into out (B, H, N, Dv) and lse (B, H, N), in place."""
    batch, heads, seq_len = lse.shape
    for part in query_slices(seq_len, node_len):
        for b in range(batch):
            for h in range(heads):
                found = attended.slots[b, h, part]
                merge_into(
                    out[b, h, part],
                    lse[b, h, part],
                    attended.out.index_select(0, found),
                    attended.lse.index_select(0, found),
                )


def _backward(inputs: BackwardInputs, levels: tuple[LevelPlan, ...], settings: Settings, scale: float) -> Gradients:
    q, k, v = inputs.q, inputs.k, inputs.v
    batch, heads, num_queries, _ = q.shape
    dtype, rows = lse_dtype(q), batch * heads * num_queries
    delta = inputs.delta()
    scratch = Buffers(dtype, q.device)
    is_large = q.device.type == "cpu" and bool((inputs.lse.abs() > _LARGE_LSE).any())
    level_inputs, delta = _for_rounded_lse(inputs, delta) if is_large else (inputs, delta)
    if not settings.is_causal and in_runs(levels[0]):
        return runs_backward(levels[0], level_inputs, delta, scale, scratch)
    dq = torch.zeros(rows + 1, q.shape[3], dtype=dtype, device=q.device)
    dk, dv = torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
    leaf_len = settings.params.min_seq_len
    for part in leaf_slices(num_queries, leaf_len) if settings.is_causal else []:
        leaves = inputs.map(functools.partial(as_leaves, part=part, leaf_len=leaf_len))
        grads = _large_leaf_backward(leaves, scale) if is_large else exact_backward(leaves, True, scale)
        for whole, grad in zip((dq[:-1].view(q.shape), dk, dv), grads, strict=True):
            store_leaves(whole, part, grad)
    queries = FlatQueries(
        q.view(rows, -1),
        level_inputs.grad_out.view(rows, -1),
        torch.nn.functional.pad((inputs.lse.reshape(-1) * LOG2_E).to(dtype), (0, 1), value=torch.inf),
        torch.nn.functional.pad(delta.view(-1), (0, 1)),
    )
    grads = dq, dk.view(-1, k.shape[3]), dv.view(-1, v.shape[3])
    for level in levels:
        level_backward(LevelTiles(level, k, v, heads, num_queries, scale, dtype), queries, grads, scratch)
    return dq[:-1].view(q.shape).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _for_rounded_lse(inputs: BackwardInputs, delta: Tensor) -> tuple[BackwardInputs, Tensor]:
    """grad_out and delta for weights made of the lse in base 2 as rounded to the dtype of delta.

    Such weights are wrong by one factor in all of a row, which gradients have in common with these two.
    """
    lse = inputs.lse * LOG2_E
    factor = torch.exp2(lse.to(delta.dtype) - lse).to(delta.dtype)
    return replace(inputs, grad_out=inputs.grad_out * factor.unsqueeze(3)), delta * factor


def _large_leaf_backward(leaves: BackwardInputs, scale: float) -> Gradients:
    """Gradients of leaves whose logits are large, through the output and the lse that each had before the merge.

    With the share w of a leaf in a row these two have the gradients w grad_out and w (grad_out.leaf_out - delta). In
    sums over a row's keys large terms cancel out, if the weights of each part add up to its share in the output.
    """
    own_out, own_lse = exact_forward(leaves.q, leaves.k, leaves.v, True, scale)
    share = torch.exp(own_lse - leaves.lse)
    own_delta = replace(leaves, out=own_out, grad_lse=None).delta()
    grad_out = (leaves.grad_out * share.unsqueeze(3)).to(own_delta.dtype)
    own = replace(leaves, grad_out=grad_out, grad_lse=share * (own_delta - leaves.delta()), out=own_out, lse=own_lse)
    return exact_backward(own, True, scale, head_backward=whole_backward)


def query_slices(seq_len: int, node_len: int) -> list[slice]:
    """The positions of the queries of each node of a causal level: every second run of node_len positions."""
    return [slice(i, min(i + node_len, seq_len)) for i in range(node_len, seq_len, 2 * node_len)]
