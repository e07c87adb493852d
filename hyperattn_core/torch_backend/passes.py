"""One level of the estimator in PyTorch, forward and backward, a chunk of tiles after the other.

Logits of a chunk against its tiles' key blocks and against the samples live in buffers that are reused by every chunk,
so nothing of size Nq * (b + m) is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.exact_aten import BackwardInputs, Gradients
from hyperattn_core.torch_backend.scratch import Buffers
from hyperattn_core.torch_backend.tiles import LN_2, LOG2_E, LevelTiles


def level_forward(tiles: LevelTiles, q: Tensor, value_dim: int, scratch: Buffers) -> tuple[Tensor, Tensor]:
    """Estimate one level for queries q (B * H * Nq, D), in the order of tiles.targets: out (slots, Dv), lse (slots,).

    lse is in float64: of a large one float32 would leave no more than some digits of what the weights add up to.
    """
    b, m, t = tiles.keys_per_tile, tiles.num_samples, tiles.tile_size
    out = torch.empty(tiles.queries.numel(), value_dim, dtype=tiles.dtype, device=q.device)
    lse = torch.empty(tiles.queries.numel(), 1, dtype=torch.float64, device=q.device)
    for chunk in tiles.chunks():
        rows, size = chunk.num_rows, chunk.queries.shape[0]
        x = scratch.gather("x", q, chunk.queries).to(tiles.dtype)
        keys = scratch.gather("keys", tiles.k_blocks, chunk.blocks).view(-1, b, x.shape[1])
        p_block = torch.bmm(x.view(-1, t, x.shape[1]), keys.transpose(1, 2), out=scratch.get("block", size // t, t, b))
        if chunk.hidden is not None:
            p_block.masked_fill_(chunk.hidden, -torch.inf)
        flat_block = p_block.view(size, b)
        top = flat_block.amax(1, keepdim=True)
        if m:
            x = x.view(rows, -1, x.shape[1])
            p_sample = torch.bmm(x, chunk.k_samples.transpose(1, 2), out=scratch.get("sample", rows, size // rows, m))
            flat_sample = p_sample.view(size, m)
            top = torch.maximum(top, flat_sample.amax(1, keepdim=True))
        top += tiles.headroom
        if m:
            flat_sample.sub_(top).exp2_()
            p_sample.view(rows, -1, t, m).mul_(chunk.sample_weight)
        flat_block.sub_(top).exp2_()
        total = flat_block.sum(1, keepdim=True)
        values = scratch.gather("keys", tiles.v_blocks, chunk.blocks).view(-1, b, value_dim)
        result = torch.bmm(p_block, values, out=out[chunk.slots].view(-1, t, value_dim))
        if m:
            total += flat_sample.sum(1, keepdim=True)
            result.view(rows, -1, value_dim).baddbmm_(p_sample, chunk.v_samples)
        result.view(size, value_dim).div_(total)
        lse[chunk.slots].copy_(top).add_(total.log2_())
    return out, lse.mul_(LN_2).view(-1)


def tiled_backward(levels: Iterable[LevelTiles], inputs: BackwardInputs, grads: Gradients, scratch: Buffers) -> None:
    """Add the gradients of all levels to dq (B * H * Nq + 1, D), dk (B, Hkv, Nk, D) and dv (B, Hkv, Nk, Dv)."""
    (rows, dtype), (dq, dk, dv) = (inputs.q[..., 0].numel(), scratch.dtype), grads
    queries = FlatQueries(
        inputs.q.view(rows, -1),
        inputs.grad_out.view(rows, -1),
        torch.nn.functional.pad((inputs.lse.reshape(-1) * LOG2_E).to(dtype), (0, 1), value=torch.inf),
        torch.nn.functional.pad(inputs.delta().view(-1), (0, 1)),
    )
    flat = dq, dk.view(-1, dk.shape[3]), dv.view(-1, dv.shape[3])
    for tiles in levels:
        level_backward(tiles, queries, flat, scratch)


@dataclass(frozen=True)
class FlatQueries:
    """The queries of all heads as rows, with what their gradients need.

    Attributes:
        q: (B * H * Nq, D).
        grad_out: (B * H * Nq, Dv).
        lse: (B * H * Nq + 1,), of the whole row, to base 2; the last is +inf, so that empty slots weigh nothing.
        delta: (B * H * Nq + 1,), rowsum(grad_out * out) - grad_lse.
    """

    q: Tensor
    grad_out: Tensor
    lse: Tensor
    delta: Tensor


def level_backward(tiles: LevelTiles, queries: FlatQueries, grads: Gradients, scratch: Buffers) -> None:
    """Add one level's gradients to dq (B * H * Nq + 1, D), dk (B * Hkv * Nk, D) and dv (B * Hkv * Nk, Dv).

    Probabilities are recomputed from the final log-sum-exp: p = w exp(s - lse), ds = p (grad_out.v - delta).
    """
    q, grad_out, (dq, dk, dv) = queries.q, queries.grad_out, grads
    b, m, t = tiles.keys_per_tile, tiles.num_samples, tiles.tile_size
    dk_blocks, dv_blocks = torch.zeros_like(tiles.k_blocks), torch.zeros_like(tiles.v_blocks)
    dk_samples = torch.zeros(tiles.num_rows, m, q.shape[1], dtype=tiles.dtype, device=q.device)
    dv_samples = torch.zeros(tiles.num_rows, m, grad_out.shape[1], dtype=tiles.dtype, device=q.device)
    for chunk in tiles.chunks():
        rows, size = chunk.num_rows, chunk.queries.shape[0]
        x = scratch.gather("x", q, chunk.queries).to(tiles.dtype)
        g = scratch.gather("g", grad_out, chunk.queries).to(tiles.dtype)
        row_lse = queries.lse.index_select(0, chunk.targets).unsqueeze(1)
        row_delta = queries.delta.index_select(0, chunk.queries).unsqueeze(1)
        xt, gt = x.view(-1, t, x.shape[1]), g.view(-1, t, g.shape[1])
        keys = scratch.gather("keys", tiles.k_blocks, chunk.blocks).view(-1, b, x.shape[1])
        values = scratch.gather("values", tiles.v_blocks, chunk.blocks).view(-1, b, g.shape[1])
        p = torch.bmm(xt, keys.transpose(1, 2), out=scratch.get("block", size // t, t, b))
        if chunk.hidden is not None:
            p.masked_fill_(chunk.hidden, -torch.inf)
        p.view(size, b).sub_(row_lse).exp2_()
        ds = torch.bmm(gt, values.transpose(1, 2), out=scratch.get("block_grad", size // t, t, b))
        ds.view(size, b).sub_(row_delta)
        ds.mul_(p)
        for into, grad in (
            (dv_blocks, torch.bmm(p.transpose(1, 2), gt)),
            (dk_blocks, torch.bmm(ds.transpose(1, 2), xt)),
        ):
            _accumulate(into, chunk.blocks, grad.view(-1, *into.shape[1:]))
        dx = torch.bmm(ds, keys).view(size, -1)
        if m:
            xr, gr = x.view(rows, -1, x.shape[1]), g.view(rows, -1, g.shape[1])
            p = torch.bmm(xr, chunk.k_samples.transpose(1, 2), out=scratch.get("sample", rows, size // rows, m))
            p.view(size, m).sub_(row_lse).exp2_()
            p.view(rows, -1, t, m).mul_(chunk.sample_weight)
            ds = torch.bmm(gr, chunk.v_samples.transpose(1, 2), out=scratch.get("sample_grad", rows, size // rows, m))
            ds.view(size, m).sub_(row_delta)
            ds.mul_(p)
            dv_samples[chunk.rows].baddbmm_(p.transpose(1, 2), gr)
            dk_samples[chunk.rows].baddbmm_(ds.transpose(1, 2), xr)
            dx.view(rows, -1, dx.shape[1]).baddbmm_(ds, chunk.k_samples)
        dq.index_add_(0, chunk.targets, dx.mul_(LN_2))
    tiles.unsorted(dk_blocks.mul_(tiles.scale), dk)
    tiles.unsorted(dv_blocks, dv)
    sample_rows = tiles.sample_rows[tiles.kv_rows].view(-1)
    _accumulate(dk, sample_rows, dk_samples.mul_(tiles.scale).view(-1, dk.shape[1]))
    _accumulate(dv, sample_rows, dv_samples.view(-1, dv.shape[1]))


def _accumulate(into: Tensor, index: Tensor, rows: Tensor) -> None:
    """into[index] += rows with repeated indices, in a fixed order on every device."""
    if into.device.type == "cpu":
        into.index_add_(0, index, rows)
    else:
        into.index_put_((index,), rows, accumulate=True)
