"""The tiles of one level of a plan, laid out for PyTorch in chunks that stay in cache.

A chunk is a fixed number of query tiles. Chunk shapes depend on sizes alone and never on data: a query's result does
not depend, to the last bit, on how full the other tiles are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.planning.plan import LevelPlan

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
        blocks: int64 (R * T * blocks of a tile,), row of each block that a tile meets among those of all kv rows.
        sample_weight: (R, T, 1 or t, m), 0 where the sample lies in a block that the query meets.
        k_samples, v_samples: (R, m, D) and (R, m, Dv), the sampled rows.
        hidden: bool (R * T, 1 or t, keys of a tile), True for slots of no key, or of one that the query does not meet;
            None where there are none.
    """

    rows: slice
    slots: slice
    queries: Tensor
    targets: Tensor
    blocks: Tensor
    sample_weight: Tensor
    k_samples: Tensor
    v_samples: Tensor
    hidden: Tensor | None

    @property
    def num_rows(self) -> int:
        """R."""
        return self.rows.stop - self.rows.start


class RoutedTiles:
    """The keys that queries of a tile meet with "routed" pairing: of the blocks that each and the ones before it chose.

    Attributes:
        is_not_met: bool (t, keys of a tile), True for keys that only later queries of the tile have chosen.
    """

    def __init__(self, level: LevelPlan) -> None:
        device, per_tile, size = level.tile_block.device, level.blocks_per_tile, level.block_size
        self._tile_size, self._num_samples = level.tile_size, level.sample_index.shape[-1]
        # The first query that meets a block, for each place in a tile's list of blocks.
        first = torch.arange(per_tile, device=device) * level.tile_size // per_tile
        self._first = first.repeat_interleave(size)
        self._slots = torch.arange(level.tile_size, device=device).unsqueeze(1)
        self.is_not_met = self._slots < self._first
        index = level.sample_index.flatten(0, 2).long()
        numbers = torch.arange(self._num_samples, device=device).expand_as(index)
        none = torch.full((len(index), level.num_blocks * size), self._num_samples, device=device)
        sample_at = none.scatter(1, index, numbers)
        # A key that is sampled several times has one number here.
        self._same = sample_at.gather(1, index)
        self._sample_at = sample_at.view(len(index), level.num_blocks, size)
        self._weight = level.sample_weight.flatten(0, 2)

    def sample_weight(self, tile_block: Tensor, kv_rows: Tensor) -> Tensor:
        """Weights (rows, T, t, m) of the samples for tiles that meet blocks (rows, T, R), 0 for keys met already."""
        rows, tiles = tile_block.shape[:2]
        found = self._sample_at[kv_rows.view(-1, 1, 1), tile_block.clamp(min=0)]
        found = found.masked_fill((tile_block < 0).unsqueeze(3), self._num_samples).view(rows, tiles, -1)
        seen = torch.full((rows, tiles, self._num_samples + 1), self._tile_size, device=tile_block.device)
        seen.scatter_reduce_(2, found, self._first.expand_as(found), "amin")
        same = self._same[kv_rows].unsqueeze(1).expand(rows, tiles, -1)
        is_outside = self._slots < seen.gather(2, same).unsqueeze(2)
        return torch.where(is_outside, self._weight[kv_rows].view(rows, 1, 1, -1), 0.0)


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
        self.keys_per_tile = level.blocks_per_tile * level.block_size
        # A query's weights add up to b + S at most: made smaller by its logarithm, no sum of finite values overflows.
        self.headroom = math.ceil(math.log2(self.keys_per_tile + node_len))
        head = torch.arange(batch * heads, device=k.device)
        kv_head = head // (heads // kv_heads)
        self.kv_rows = (kv_head.unsqueeze(1) * num_nodes + torch.arange(num_nodes, device=k.device)).view(-1)
        self.routed: RoutedTiles | None = None
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
            torch.nn.functional.pad(x.view(self.num_rows, num_tiles, -1), (0, 0, *padding))
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
        self.tile_block = torch.where(count > 0, block, block[:, :1])
        self.blocks = self.kv_rows.view(-1, 1, 1) * self.num_blocks + self.tile_block
        # A block of zeros behind all others stands where a tile's list has none.
        self.blocks = torch.where(self.tile_block < 0, self.num_kv_rows * self.num_blocks, self.blocks)
        if level.blocks_per_tile > 1:
            self.routed = RoutedTiles(level)
            return
        sample_block = (level.sample_index // self.block_size).view(self.num_kv_rows, 1, -1)[self.kv_rows]
        weight = level.sample_weight.to(self.dtype).view(self.num_kv_rows, 1, -1)[self.kv_rows]
        self.sample_weight = torch.where(sample_block == self.tile_block, 0.0, weight).unsqueeze(2)

    def _sample_weight(self, rows: slice, tiles: slice) -> Tensor:
        """The weights of the samples in the sums of some tiles, as Chunk.sample_weight."""
        if self.routed is None:
            return self.sample_weight[rows, tiles]
        kv_rows = self.kv_rows[rows]
        return self.routed.sample_weight(self.tile_block[rows, tiles], kv_rows).to(self.dtype)

    def _hidden(self, rows: slice, tiles: slice) -> Tensor | None:
        """See Chunk.hidden."""
        if self.routed is None and self.num_blocks * self.block_size == self.node_len:
            return None
        blocks = self.tile_block[rows, tiles].flatten(0, 1)
        left = self.node_len - (self.num_blocks - 1) * self.block_size
        is_past = torch.arange(self.block_size, device=blocks.device) >= left
        is_hidden = ((blocks == self.num_blocks - 1).unsqueeze(2) & is_past) | (blocks < 0).unsqueeze(2)
        is_hidden = is_hidden.flatten(1).unsqueeze(1)
        return is_hidden if self.routed is None else is_hidden | self.routed.is_not_met

    def _gather(self, x: Tensor, rows: Tensor) -> Tensor:
        """Rows of x (B, Hkv, Nk, D) as (*rows.shape, D)."""
        return x.view(-1, x.shape[3]).index_select(0, rows.view(-1)).to(self.dtype).view(*rows.shape, x.shape[3])

    def _sorted_blocks(self, x: Tensor) -> Tensor:
        """Rows in sorted order as (kv rows * nb, b, D), if routed with one more; slots past a node's end are zero."""
        rows = self._gather(x, self.key_rows)
        padded = self.num_blocks * self.block_size
        if padded > self.node_len:
            rows = torch.nn.functional.pad(
                rows.view(self.num_kv_rows, self.node_len, -1), (0, 0, 0, padded - self.node_len)
            )
        blocks = rows.view(-1, self.block_size, x.shape[3])
        return blocks if self.level.blocks_per_tile == 1 else torch.nn.functional.pad(blocks, (*(0, 0) * 2, 0, 1))

    def unsorted(self, blocks: Tensor, into: Tensor) -> None:
        """Add rows in sorted order, as k_blocks has them, to their own rows of `into` (B * Hkv * Nk, D)."""
        width = blocks.shape[2]
        of_nodes = blocks[: self.num_kv_rows * self.num_blocks].view(self.num_kv_rows, -1, width)
        rows = of_nodes[:, : self.node_len].reshape(-1, width)
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
        queries, targets = self.queries.view(-1), self.targets.view(-1)
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
                    blocks=self.blocks[part].flatten(),
                    sample_weight=self._sample_weight(*part),
                    k_samples=k_samples,
                    v_samples=v_samples,
                    hidden=self._hidden(*part),
                )
