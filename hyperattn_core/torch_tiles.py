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

from hyperattn_core.merge import merge_attention
from hyperattn_core.plan import LevelPlan

CHUNK_QUERIES = 2048


@dataclass(frozen=True)
class Chunk:
    """Tiles first_row..last_row x first_tile..last_tile of a level, flattened: R rows of T tiles of t queries.

    Attributes:
        kv_rows: int64 (R,), the row of each (batch, head, node) among (batch, kv head, node).
        rows: slice of the level's (batch, head, node) rows.
        queries: int64 (R * T * t,), row of each query in q flattened to (B * H * Nq, D); B * H * Nq for an empty slot.
        empty: bool (R * T * t, 1) or None where no slot is empty.
        blocks: int64 (R * T,), row of each tile's block among all blocks of all kv rows.
        sample_weight: (R, T, 1, m), 0 where the sample lies in the tile's own block.
    """

    kv_rows: Tensor
    rows: slice
    queries: Tensor
    empty: Tensor | None
    blocks: Tensor
    sample_weight: Tensor


class LevelTiles:
    """The keys, values and chunks of one level; `dtype` is that of all arithmetic.

    Args:
        level: the plan of the level.
        k: keys (B, Hkv, Nk, D), contiguous.
        v: values (B, Hkv, Nk, Dv), contiguous.
        heads: H, query heads.
        num_queries: Nq.
        scale: factor of the logits, folded into the keys.
        dtype: float32 or float64.
    """

    def __init__(
        self, level: LevelPlan, k: Tensor, v: Tensor, heads: int, num_queries: int, scale: float, dtype: torch.dtype
    ) -> None:
        batch, kv_heads, num_nodes, node_len = level.key_order.shape
        self.level, self.dtype, self.scale, self.num_queries = level, dtype, scale, num_queries
        self.num_kv_rows, self.node_len, self.block_size, self.num_blocks = (
            batch * kv_heads * num_nodes, node_len, level.block_size, level.num_blocks,
        )  # fmt: skip
        self.num_rows, self.num_tiles = batch * heads * num_nodes, level.tile_block.shape[-1]
        self.num_samples = level.sample_index.shape[-1]
        row = torch.arange(self.num_rows, device=k.device).view(batch, kv_heads, heads // kv_heads, num_nodes)
        kv_row = torch.arange(self.num_kv_rows, device=k.device).view(batch, kv_heads, 1, num_nodes)
        self.kv_rows = kv_row.expand_as(row).reshape(-1)
        self.query_base = (row // num_nodes * num_queries).reshape(-1, 1, 1)
        key_base = torch.arange(batch * kv_heads, device=k.device).view(batch, kv_heads, 1, 1) * k.shape[2]
        self.key_rows = (level.key_order + key_base).view(-1)
        self.sample_rows = (level.key_order.gather(3, level.sample_index.long()) + key_base).view(-1)
        self.k_blocks = self._sorted_blocks(k) * scale
        self.v_blocks = self._sorted_blocks(v)
        self.k_samples = self._rows(k, self.sample_rows).view(self.num_kv_rows, -1, k.shape[3]) * scale
        self.v_samples = self._rows(v, self.sample_rows).view(self.num_kv_rows, -1, v.shape[3])
        self.sample_block = (level.sample_index // level.block_size).view(self.num_kv_rows, -1)

    def _rows(self, x: Tensor, rows: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[3]).index_select(0, rows).to(self.dtype)

    def _sorted_blocks(self, x: Tensor) -> Tensor:
        """Rows in sorted order as (kv rows * nb, b, D); the slots past a node's end are zero rows."""
        width = x.shape[3]
        padded = self.num_blocks * self.block_size
        if padded == self.node_len:
            return self._rows(x, self.key_rows).view(-1, self.block_size, width)
        blocks = torch.zeros(self.num_kv_rows, padded, width, dtype=self.dtype, device=x.device)
        blocks[:, : self.node_len] = self._rows(x, self.key_rows).view(self.num_kv_rows, -1, width)
        return blocks.view(-1, self.block_size, width)

    def unsorted(self, blocks: Tensor, into: Tensor) -> None:
        """Add rows in sorted order (kv rows * nb, b, D) to their own rows of `into` (B * Hkv * Nk, D)."""
        width = blocks.shape[2]
        rows = blocks.view(self.num_kv_rows, -1, width)[:, : self.node_len].reshape(-1, width)
        into.index_add_(0, self.key_rows, rows)

    def past_end(self, chunk: Chunk) -> Tensor | None:
        """Additive mask (R * T, 1, b) that hides the slots past the node's end, None where every block is full."""
        if self.num_blocks * self.block_size == self.node_len:
            return None
        slots = torch.arange(self.block_size, device=chunk.blocks.device)
        last = (chunk.blocks % self.num_blocks == self.num_blocks - 1).unsqueeze(1)
        hidden = last & (slots >= self.node_len - (self.num_blocks - 1) * self.block_size)
        return torch.where(hidden, -math.inf, 0.0).to(self.dtype).unsqueeze(1)

    def chunks(self) -> Iterator[Chunk]:
        """All tiles, a fixed number at a time; on CPU, where asking costs nothing, all-empty chunks are left out."""
        level, tile = self.level, self.level.tile_size
        first = level.tile_first.view(self.num_rows, -1)
        count = level.tile_count.view(self.num_rows, -1)
        block = level.tile_block.view(self.num_rows, -1)
        order = level.query_order.view(self.num_rows, -1)
        tiles_at_once = min(self.num_tiles, max(1, CHUNK_QUERIES // tile))
        rows_at_once = max(1, CHUNK_QUERIES // (tile * tiles_at_once)) if tiles_at_once == self.num_tiles else 1
        used_tiles = self.num_tiles
        if count.device.type == "cpu":
            used_tiles = int((count > 0).sum(1).max())
        slots = torch.arange(tile, device=count.device)
        nowhere = int(self.num_rows // level.key_order.shape[2]) * self.num_queries
        for row in range(0, self.num_rows, rows_at_once):
            rows = slice(row, min(row + rows_at_once, self.num_rows))
            kv_rows = self.kv_rows[rows]
            for tile_start in range(0, used_tiles, tiles_at_once):
                # The last chunk is a full one too: it ends in tiles that are marked empty.
                index = torch.arange(tile_start, tile_start + tiles_at_once, device=count.device)
                inside = index.clamp(max=self.num_tiles - 1)
                tile_count = torch.where(index < self.num_tiles, count[rows][:, inside], 0).unsqueeze(2)
                position = first[rows][:, inside].unsqueeze(2) + slots
                filled = slots < tile_count
                found = order[rows].gather(1, position.clamp(max=order.shape[1] - 1).flatten(1).long()).view(filled.shape)
                queries = torch.where(filled, found + self.query_base[rows], nowhere).view(-1)
                tile_block = block[rows][:, inside]
                own = self.sample_block[kv_rows].unsqueeze(1) == tile_block.unsqueeze(2)
                weight = torch.where(own, 0.0, level.sample_weight.to(self.dtype)).unsqueeze(2)
                empty = ~filled.view(-1, 1)
                yield Chunk(
                    kv_rows=kv_rows,
                    rows=rows,
                    queries=queries,
                    empty=None if empty.device.type == "cpu" and not bool(empty.any()) else empty,
                    blocks=(kv_rows.unsqueeze(1) * self.num_blocks + tile_block).view(-1),
                    sample_weight=weight,
                )


def gather_rows(x: Tensor, chunk: Chunk, dtype: torch.dtype) -> Tensor:
    """Rows of x (B * H * Nq, D) that the chunk's slots hold, zero in empty slots: (R * T * t, D)."""
    rows = x.index_select(0, chunk.queries.clamp(max=x.shape[0] - 1)).to(dtype)
    return rows if chunk.empty is None else rows.masked_fill_(chunk.empty, 0.0)


class Buffers:
    """Scratch tensors by name, made once and reused by every chunk of the same shape."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A scratch tensor of this shape; what it held before is lost."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return flat[:size].view(shape)


def level_forward(tiles: LevelTiles, q: Tensor, out: Tensor, lse: Tensor, merge: bool, scratch: Buffers) -> None:
    """Estimate one level and write it to, or merge it into, out (B * H * Nq + 1, Dv) and lse (B * H * Nq + 1).

    The last row of both takes what empty slots produce. q is (B * H * Nq, D).
    """
    b, m, t = tiles.block_size, tiles.num_samples, tiles.level.tile_size
    for chunk in tiles.chunks():
        rows = chunk.rows.stop - chunk.rows.start
        size = chunk.queries.shape[0]
        x = gather_rows(q, chunk, tiles.dtype)
        block_logits = torch.bmm(
            x.view(-1, t, x.shape[1]), tiles.k_blocks.index_select(0, chunk.blocks).transpose(1, 2),
            out=scratch.get("block", size // t, t, b),
        )  # fmt: skip
        hidden = tiles.past_end(chunk)
        if hidden is not None:
            block_logits += hidden
        block_logits = block_logits.view(size, b)
        top = block_logits.amax(1, keepdim=True)
        if m:
            sample_logits = torch.bmm(
                x.view(rows, -1, x.shape[1]), tiles.k_samples[chunk.kv_rows].transpose(1, 2),
                out=scratch.get("sample", rows, size // rows, m),
            ).view(size, m)  # fmt: skip
            top = torch.maximum(top, sample_logits.amax(1, keepdim=True))
            sample_logits.sub_(top).exp_()
            sample_logits.view(rows, -1, t, m).mul_(chunk.sample_weight)
        block_logits.sub_(top).exp_()
        total = block_logits.sum(1, keepdim=True)
        result = torch.bmm(block_logits.view(-1, t, b), tiles.v_blocks.index_select(0, chunk.blocks)).view(size, -1)
        if m:
            total += sample_logits.sum(1, keepdim=True)
            result.view(rows, -1, result.shape[1]).baddbmm_(sample_logits.view(rows, -1, m), tiles.v_samples[chunk.kv_rows])
        result /= total
        chunk_lse = total.log_().add_(top).view(-1)
        if merge:
            result, chunk_lse = merge_attention(
                out.index_select(0, chunk.queries), lse.index_select(0, chunk.queries), result, chunk_lse
            )
        out.index_copy_(0, chunk.queries, result)
        lse.index_copy_(0, chunk.queries, chunk_lse)


def level_backward(
    tiles: LevelTiles, q: Tensor, grad_out: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, scratch: Buffers
) -> None:
    """Add one level's gradients to dq (B * H * Nq + 1, D), dk (B * Hkv * Nk, D) and dv (B * Hkv * Nk, Dv).

    Probabilities are recomputed from the final log-sum-exp of the whole row: p = w exp(s - lse), ds = p (grad_out.v -
    delta), with delta = rowsum(grad_out * out) - grad_lse. lse and delta are (B * H * Nq + 1); the last lse is +inf,
    so that empty slots weigh nothing.
    """
    b, m, t = tiles.block_size, tiles.num_samples, tiles.level.tile_size
    dk_blocks, dv_blocks = torch.zeros_like(tiles.k_blocks), torch.zeros_like(tiles.v_blocks)
    dk_samples = torch.zeros(tiles.num_rows, m, q.shape[1], dtype=tiles.dtype, device=q.device)
    dv_samples = torch.zeros(tiles.num_rows, m, grad_out.shape[1], dtype=tiles.dtype, device=q.device)
    for chunk in tiles.chunks():
        rows = chunk.rows.stop - chunk.rows.start
        size = chunk.queries.shape[0]
        x, g = gather_rows(q, chunk, tiles.dtype), gather_rows(grad_out, chunk, tiles.dtype)
        row_lse = lse.index_select(0, chunk.queries).unsqueeze(1)
        row_delta = delta.index_select(0, chunk.queries).unsqueeze(1)
        xt, gt = x.view(-1, t, x.shape[1]), g.view(-1, t, g.shape[1])
        keys, values = tiles.k_blocks.index_select(0, chunk.blocks), tiles.v_blocks.index_select(0, chunk.blocks)
        p = torch.bmm(xt, keys.transpose(1, 2), out=scratch.get("block", size // t, t, b))
        hidden = tiles.past_end(chunk)
        if hidden is not None:
            p += hidden
        p.view(size, b).sub_(row_lse).exp_()
        _accumulate(dv_blocks, chunk.blocks, torch.bmm(p.transpose(1, 2), gt))
        ds = torch.bmm(gt, values.transpose(1, 2), out=scratch.get("block_grad", size // t, t, b))
        ds.view(size, b).sub_(row_delta)
        ds.mul_(p)
        _accumulate(dk_blocks, chunk.blocks, torch.bmm(ds.transpose(1, 2), xt))
        dx = torch.bmm(ds, keys).view(size, -1)
        if m:
            xr, gr = x.view(rows, -1, x.shape[1]), g.view(rows, -1, g.shape[1])
            p = torch.bmm(xr, tiles.k_samples[chunk.kv_rows].transpose(1, 2), out=scratch.get("sample", rows, size // rows, m))
            p.view(size, m).sub_(row_lse).exp_()
            p.view(rows, -1, t, m).mul_(chunk.sample_weight)
            dv_samples[chunk.rows].baddbmm_(p.transpose(1, 2), gr)
            ds = torch.bmm(gr, tiles.v_samples[chunk.kv_rows].transpose(1, 2), out=scratch.get("sample_grad", rows, size // rows, m))
            ds.view(size, m).sub_(row_delta)
            ds.mul_(p)
            dk_samples[chunk.rows].baddbmm_(ds.transpose(1, 2), xr)
            dx.view(rows, -1, dx.shape[1]).baddbmm_(ds, tiles.k_samples[chunk.kv_rows])
        _accumulate(dq, chunk.queries, dx)
    tiles.unsorted(dk_blocks.mul_(tiles.scale), dk)
    tiles.unsorted(dv_blocks, dv)
    _accumulate_samples(tiles, dk_samples.mul_(tiles.scale), dk)
    _accumulate_samples(tiles, dv_samples, dv)


def _accumulate_samples(tiles: LevelTiles, grads: Tensor, into: Tensor) -> None:
    """Add the samples' gradients (rows, m, D), one set per query head, to rows of `into` (B * Hkv * Nk, D)."""
    rows = tiles.sample_rows.view(tiles.num_kv_rows, -1)[tiles.kv_rows].view(-1)
    _accumulate(into, rows, grads.view(-1, grads.shape[2]))


def _accumulate(into: Tensor, index: Tensor, rows: Tensor) -> None:
    """into[index] += rows with repeated indices, in a fixed order on every device."""
    if into.device.type == "cpu":
        into.index_add_(0, index, rows)
    else:
        into.index_put_((index,), rows, accumulate=True)
