"""One level of the estimator in PyTorch: the tiles of a LevelPlan, forward and backward, in chunks that stay in cache.

A chunk is a fixed number of query tiles. Its logits against the tiles' key blocks and against the samples live in
buffers that are reused by every chunk, so nothing of size Nq * (b + m) is ever stored. Chunk shapes depend on sizes
alone and never on data: a query's result does not depend, to the last bit, on how full the other tiles are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.exact_aten import Gradients
from hyperattn_core.planning.plan import LevelPlan
from hyperattn_core.torch_backend.scratch import Buffers

CHUNK_QUERIES = 2048
# Logits are in base 2: torch.exp2 is the quicker exponential on CPUs.
LOG2_E, LN_2 = 1 / math.log(2), math.log(2)


@dataclass(frozen=True)
class Chunk:
    """R rows of T tiles of t query slots of a level, flattened.

    Attributes:
        rows: slice of the level's (batch, head, node) rows.
        slots: slice of the level's query slots.
        queries: int64 (R * T * t,), row of q flattened to (B * H * Nq, D); an empty slot repeats a query of its tile.
        targets: int64 (R * T * t,), the same, but B * H * Nq for an empty slot: where results go.
        blocks: int64 (R * T,), row of each tile's block among all blocks of all kv rows.
        sample_weight: (R, T, 1, m), 0 where the sample lies in the tile's own block.
        k_samples, v_samples: (R, m, D) and (R, m, Dv), the sampled rows.
        past_end: (R * T, 1, b), -inf for the slots past the node's end, or None where every block is full.
    """

    rows: slice
    slots: slice
    queries: Tensor
    targets: Tensor
    blocks: Tensor
    sample_weight: Tensor
    k_samples: Tensor
    v_samples: Tensor
    past_end: Tensor | None

    @property
    def num_rows(self) -> int:
        """R."""
        return self.rows.stop - self.rows.start


class LevelTiles:
    """The keys, values and query slots of one level; `dtype` is that of all arithmetic.

    Args:
        level: the plan of the level.
        k: keys (B, Hkv, Nk, D), contiguous.
        v: values (B, Hkv, Nk, Dv), contiguous.
        heads, num_queries: H and Nq.
        scale: factor of the logits, folded into the keys together with log2(e).
        dtype: float32 or float64.
    """

    def __init__(
        self, level: LevelPlan, k: Tensor, v: Tensor, heads: int, num_queries: int, scale: float, dtype: torch.dtype
    ) -> None:
        batch, kv_heads, num_nodes, node_len = level.key_order.shape
        self.level, self.dtype, self.scale, self.node_len = level, dtype, scale, node_len
        self.tile_size, self.block_size, self.num_blocks = level.tile_size, level.block_size, level.num_blocks
        self.num_rows, self.num_kv_rows = batch * heads * num_nodes, batch * kv_heads * num_nodes
        self.num_samples = level.sample_index.shape[-1]
        # A query's weights add up to b + S at most: made smaller by its logarithm, no sum of finite values overflows.
        self.headroom = math.ceil(math.log2(self.block_size + node_len))
        head = torch.arange(batch * heads, device=k.device)
        kv_head = head // (heads // kv_heads)
        self.kv_rows = (kv_head.unsqueeze(1) * num_nodes + torch.arange(num_nodes, device=k.device)).view(-1)
        key_base = torch.arange(batch * kv_heads, device=k.device).view(batch, kv_heads, 1, 1) * k.shape[2]
        self.key_rows = (level.key_order + key_base).view(-1)
        self.sample_rows = (level.key_order.gather(3, level.sample_index.long()) + key_base).view(self.num_kv_rows, -1)
        self.k_blocks = self._sorted_blocks(k).mul_(scale * LOG2_E)
        self.v_blocks = self._sorted_blocks(v)
        self.k_samples = self._gather(k, self.sample_rows).mul_(scale * LOG2_E)
        self.v_samples = self._gather(v, self.sample_rows)
        self._lay_out_slots(head.repeat_interleave(num_nodes) * num_queries, batch * heads * num_queries)

    def _lay_out_slots(self, query_base: Tensor, nowhere: int) -> None:
        """Query slots of all tiles, with tiles padded by empty ones to whole chunks."""
        level, tile = self.level, self.tile_size
        count = level.tile_count.view(self.num_rows, -1)
        num_tiles = count.shape[1]
        tiles_per_chunk = max(1, CHUNK_QUERIES // tile)
        self.tiles_at_once = -(-num_tiles // -(-num_tiles // tiles_per_chunk))
        self.rows_at_once = max(1, CHUNK_QUERIES // (tile * num_tiles))
        # Chunk shapes stay those of the bound on tiles; only chunks without a query are left out, where asking is free.
        used = int((count > 0).sum(1).max()) if count.device.type == "cpu" else num_tiles
        padding = (0, -(-used // self.tiles_at_once) * self.tiles_at_once - num_tiles)
        first, count, block = (
            torch.nn.functional.pad(x.view(self.num_rows, -1), padding).unsqueeze(2)
            for x in (level.tile_first, level.tile_count, level.tile_block)
        )
        slots = torch.arange(tile, device=count.device, dtype=torch.int32)
        position = first + torch.minimum(slots, (count - 1).clamp(min=0))
        order = level.query_order.view(self.num_rows, -1)
        queries = order.gather(1, position.view(self.num_rows, -1).long()) + query_base.unsqueeze(1)
        self.queries = queries.view(self.num_rows, -1, tile)
        self.targets = torch.where(slots < count, self.queries, nowhere)
        self.nowhere = nowhere
        # An empty tile repeats the first query, so it meets the first query's block: nothing else can see a NaN in it.
        block = torch.where(count > 0, block, block[:, :1])
        self.blocks = (self.kv_rows.unsqueeze(1) * self.num_blocks + block.squeeze(2)).contiguous()
        sample_block = (level.sample_index // self.block_size).view(self.num_kv_rows, 1, -1)[self.kv_rows]
        weight = level.sample_weight.to(self.dtype).view(self.num_kv_rows, 1, -1)[self.kv_rows]
        weight = torch.where(sample_block == block, 0.0, weight)
        self.sample_weight = weight.unsqueeze(2)
        self.past_end: Tensor | None = None
        if self.num_blocks * self.block_size > self.node_len:
            key_slots = torch.arange(self.block_size, device=count.device)
            left = self.node_len - (self.num_blocks - 1) * self.block_size
            hidden = (block == self.num_blocks - 1) & (key_slots >= left)
            self.past_end = torch.where(hidden, -math.inf, 0.0).to(self.dtype).unsqueeze(2)

    def _gather(self, x: Tensor, rows: Tensor) -> Tensor:
        """Rows of x (B, Hkv, Nk, D) as (*rows.shape, D)."""
        return x.view(-1, x.shape[3]).index_select(0, rows.view(-1)).to(self.dtype).view(*rows.shape, x.shape[3])

    def _sorted_blocks(self, x: Tensor) -> Tensor:
        """Rows in sorted order as (kv rows * nb, b, D); the slots past a node's end are zero rows."""
        rows = self._gather(x, self.key_rows)
        padded = self.num_blocks * self.block_size
        if padded > self.node_len:
            rows = torch.nn.functional.pad(
                rows.view(self.num_kv_rows, self.node_len, -1), (0, 0, 0, padded - self.node_len)
            )
        return rows.view(-1, self.block_size, x.shape[3])

    def unsorted(self, blocks: Tensor, into: Tensor) -> None:
        """Add rows in sorted order (kv rows * nb, b, D) to their own rows of `into` (B * Hkv * Nk, D)."""
        width = blocks.shape[2]
        rows = blocks.view(self.num_kv_rows, -1, width)[:, : self.node_len].reshape(-1, width)
        into.index_add_(0, self.key_rows, rows)

    def slot_of_query(self) -> Tensor:
        """Slot that holds each row of q flattened to (B * H * Nq, D); undefined for rows that are not in this level."""
        slots = torch.zeros(self.nowhere + 1, dtype=torch.int64, device=self.targets.device)
        flat = self.targets.view(-1)
        return slots.index_copy_(0, flat, torch.arange(flat.shape[0], device=flat.device))[:-1]

    def chunks(self) -> Iterator[Chunk]:
        """All tiles, a fixed number at a time."""
        grouped = self.num_rows != self.num_kv_rows
        tiles_per_row = self.blocks.shape[1]
        queries, targets, blocks = self.queries.view(-1), self.targets.view(-1), self.blocks.view(-1)
        for row in range(0, self.num_rows, self.rows_at_once):
            rows = slice(row, min(row + self.rows_at_once, self.num_rows))
            kv_rows = self.kv_rows[rows] if grouped else rows
            k_samples, v_samples = self.k_samples[kv_rows], self.v_samples[kv_rows]
            # Several rows at a time come with all their tiles, so that a chunk is one run of the flattened slots.
            for start in range(0, tiles_per_row, self.tiles_at_once):
                first = row * tiles_per_row + start
                tiles = slice(first, first + (rows.stop - rows.start) * self.tiles_at_once)
                slots = slice(tiles.start * self.tile_size, tiles.stop * self.tile_size)
                part = (rows, slice(start, start + self.tiles_at_once))
                yield Chunk(
                    rows=rows,
                    slots=slots,
                    queries=queries[slots],
                    targets=targets[slots],
                    blocks=blocks[tiles],
                    sample_weight=self.sample_weight[part],
                    k_samples=k_samples,
                    v_samples=v_samples,
                    past_end=None if self.past_end is None else self.past_end[part].flatten(0, 1),
                )


def level_forward(tiles: LevelTiles, q: Tensor, value_dim: int, scratch: Buffers) -> tuple[Tensor, Tensor]:
    """Estimate one level for queries q (B * H * Nq, D), in the order of tiles.targets: out (slots, Dv), lse (slots,).

    lse is in float64: of a large one float32 would leave no more than some digits of what the weights add up to.
    """
    b, m, t = tiles.block_size, tiles.num_samples, tiles.tile_size
    out = torch.empty(tiles.queries.numel(), value_dim, dtype=tiles.dtype, device=q.device)
    lse = torch.empty(tiles.queries.numel(), 1, dtype=torch.float64, device=q.device)
    for chunk in tiles.chunks():
        rows, size = chunk.num_rows, chunk.queries.shape[0]
        x = scratch.gather("x", q, chunk.queries).to(tiles.dtype)
        keys = scratch.gather("keys", tiles.k_blocks, chunk.blocks)
        p_block = torch.bmm(x.view(-1, t, x.shape[1]), keys.transpose(1, 2), out=scratch.get("block", size // t, t, b))
        if chunk.past_end is not None:
            p_block += chunk.past_end
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
        values = scratch.gather("keys", tiles.v_blocks, chunk.blocks)
        result = torch.bmm(p_block, values, out=out[chunk.slots].view(-1, t, value_dim))
        if m:
            total += flat_sample.sum(1, keepdim=True)
            result.view(rows, -1, value_dim).baddbmm_(p_sample, chunk.v_samples)
        result.view(size, value_dim).div_(total)
        lse[chunk.slots].copy_(top).add_(total.log2_())
    return out, lse.mul_(LN_2).view(-1)


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
    b, m, t = tiles.block_size, tiles.num_samples, tiles.tile_size
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
        keys = scratch.gather("keys", tiles.k_blocks, chunk.blocks)
        values = scratch.gather("values", tiles.v_blocks, chunk.blocks)
        p = torch.bmm(xt, keys.transpose(1, 2), out=scratch.get("block", size // t, t, b))
        if chunk.past_end is not None:
            p += chunk.past_end
        p.view(size, b).sub_(row_lse).exp2_()
        ds = torch.bmm(gt, values.transpose(1, 2), out=scratch.get("block_grad", size // t, t, b))
        ds.view(size, b).sub_(row_delta)
        ds.mul_(p)
        _accumulate(dv_blocks, chunk.blocks, torch.bmm(p.transpose(1, 2), gt))
        _accumulate(dk_blocks, chunk.blocks, torch.bmm(ds.transpose(1, 2), xt))
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
