"""The queries that meet a block, in batches of equally many slots: calls of PyTorch's fused attention kernel for CPUs.

All queries that meet a block attend to the same keys: those of the block, then the samples, whose weights are added to
the logits as logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hyperattn_core.exact_aten import CPU_KERNEL_MIN_KEYS
from hyperattn_core.planning.plan import LevelPlan

# Rows of keys that a core's share of a batch holds: they, their values and the scores stay in its cache.
_KEYS_PER_THREAD = 4096


class _Slots(NamedTuple):
    """Query slots of a part: a multiple of `step`, from `least` to `most`.

    The kernel takes 64 queries at a time where there are 192 to 767, and 32 where there are fewer. Within one of these
    ranges, and with whole steps of it, a query's products have the same shape whatever else meets the block.
    """

    step: int
    least: int
    most: int


_MANY, _FEW, _ANY = _Slots(64, 192, 512), _Slots(32, 32, 160), _Slots(32, 32, 512)


@dataclass(frozen=True)
class Batch:
    """Parts of at most Q queries, each with the K keys of its block and samples.

    Attributes:
        queries: int64 (parts, Q), rows of q flattened to (B * H * Nq, D); an empty slot repeats a query of its part.
        targets: int64 (parts, Q), the same, but B * H * Nq for an empty slot: where results go.
        keys: int64 (parts, K), rows of k flattened to (B * Hkv * Nk, D).
        log_weights: (parts, 1, 1, K), -inf where a sample lies in the block, and for slots of no key.
    """

    queries: Tensor
    targets: Tensor
    keys: Tensor
    log_weights: Tensor


class LevelBatches:
    """All queries of a level, part by part.

    Args:
        level: the plan of the level, where a tile meets one block.
        num_queries, num_keys: Nq and Nk.
        dtype: that of the weights' logarithms.
        is_causal: a query's result must not depend, to the last bit, on how many others meet its block.
    """

    def __init__(
        self, level: LevelPlan, num_queries: int, num_keys: int, dtype: torch.dtype, *, is_causal: bool
    ) -> None:
        self._nowhere = level.query_order.shape[0] * level.query_order.shape[1] * num_queries
        self._lay_out_keys(level, num_keys, dtype)
        self._lay_out_queries(level, num_queries)
        if is_causal:
            mean = level.query_order.numel() / (level.key_order[..., 0].numel() * level.num_blocks)
            self._slots = _MANY if mean > _FEW.most else _FEW
        else:
            self._slots = _ANY

    def _lay_out_keys(self, level: LevelPlan, num_keys: int, dtype: torch.dtype) -> None:
        """The keys that queries of each block of each kv row meet, and the logarithms of their weights."""
        device, (batch, kv_heads, nodes, node_len) = level.key_order.device, level.key_order.shape
        blocks, size, num_samples = level.num_blocks, level.block_size, level.sample_index.shape[3]
        num_rows = batch * kv_heads * nodes
        base = (torch.arange(num_rows, device=device) // nodes * num_keys).unsqueeze(1)
        order = level.key_order.view(num_rows, node_len) + base
        samples = level.sample_index.view(num_rows, num_samples).long()
        slot = torch.arange(blocks * size, device=device).clamp(max=node_len - 1)
        width = max(size + num_samples, CPU_KERNEL_MIN_KEYS)
        keys = order.new_empty(num_rows, blocks, width)
        keys[..., :size] = order[:, slot].view(num_rows, blocks, size)
        keys[..., size : size + num_samples] = order.gather(1, samples).unsqueeze(1)
        keys[..., size + num_samples :] = keys[..., :1]
        log_weights = torch.full(keys.shape, -math.inf, dtype=dtype, device=device)
        log_weights[..., :size] = 0.0
        log_weights[:, -1, node_len - (blocks - 1) * size : size] = -math.inf
        is_met = (samples // size).unsqueeze(1) == torch.arange(blocks, device=device).unsqueeze(1)
        weights = level.sample_weight.view(num_rows, 1, num_samples).log().to(dtype)
        log_weights[..., size : size + num_samples] = torch.where(is_met, -math.inf, weights)
        self._keys, self._log_weights = keys.flatten(0, 1), log_weights.flatten(0, 1)

    def _lay_out_queries(self, level: LevelPlan, num_queries: int) -> None:
        """The queries in the order of the blocks that they meet, and how many meet each."""
        batch, heads, nodes, query_len = level.query_order.shape
        kv_heads, per_row = level.key_order.shape[1], level.tile_count.shape[3]
        count = level.tile_count.view(-1)
        used = count.nonzero().view(-1)
        row = used // per_row
        head = row // nodes
        kv_row = head // (heads // kv_heads) * nodes + row % nodes
        block = kv_row * level.num_blocks + level.tile_block.view(-1)[used]
        block, in_order = block.sort(stable=True)
        used, row, head = used[in_order], row[in_order], head[in_order]
        count = count[used].long()
        before = count.cumsum(0) - count
        # Of each tile, how much further its queries lie in query_order than in the list.
        shift = row * query_len + level.tile_first.view(-1)[used] - before
        both = torch.stack([shift, head * num_queries]).repeat_interleave(count, dim=1)
        place = torch.arange(both.shape[1], device=count.device) + both[0]
        self._queries = level.query_order.view(-1)[place] + both[1]
        self._blocks, tiles = block.unique_consecutive(return_counts=True)
        last = tiles.cumsum(0) - 1
        self._stop = (before + count)[last]

    def __iter__(self) -> Iterator[Batch]:
        step, least, most = self._slots
        count = self._stop.diff(prepend=self._stop.new_zeros(1))
        parts = -(-count // most)
        length = -(-count // (parts * step)) * step
        block = torch.arange(len(count), device=count.device).repeat_interleave(parts)
        number = torch.arange(len(block), device=count.device) - (parts.cumsum(0) - parts)[block]
        first = (self._stop - count)[block] + number * length[block]
        left = torch.minimum(length[block], self._stop[block] - first)
        num_slots, in_order = (-(-left // step) * step).clamp(min=least).sort(stable=True)
        block, first, left = self._blocks[block[in_order]], first[in_order], left[in_order]
        at_once = max(1, _KEYS_PER_THREAD * torch.get_num_threads() // self._keys.shape[1])
        sizes, groups = num_slots.unique_consecutive(return_counts=True)
        for size, *group in zip(sizes.tolist(), *(x.split(groups.tolist()) for x in (block, first, left)), strict=True):
            slots = torch.arange(size, device=left.device)
            for blocks, start, held in zip(*(x.split(at_once) for x in group), strict=True):
                start, held = start.unsqueeze(1), held.unsqueeze(1)
                queries = self._queries[start + torch.minimum(slots, held - 1)]
                targets = torch.where(slots < held, queries, self._nowhere)
                yield Batch(queries, targets, self._keys[blocks], self._log_weights[blocks, None, None])
