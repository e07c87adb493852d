"""The queries that meet a block, in batches of equally many slots: calls of PyTorch's fused attention kernel for CPUs.

All queries that meet a block attend to the same keys: those of the block, then the samples, whose weights are added to
the logits as logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperattn_core.exact_aten import CPU_KERNEL_MIN_KEYS
from hyperattn_core.planning.plan import LevelPlan

Indices = np.ndarray[Any, np.dtype[np.int64]]
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
        batch, kv_heads, nodes, node_len = level.key_order.shape
        blocks, size, num_samples = level.num_blocks, level.block_size, level.sample_index.shape[3]
        num_rows = batch * kv_heads * nodes
        order = level.key_order.numpy().reshape(num_rows, node_len).astype(np.int64)
        order += (np.arange(num_rows) // nodes * num_keys)[:, None]
        samples = level.sample_index.numpy().reshape(num_rows, 1, num_samples)
        width = max(size + num_samples, CPU_KERNEL_MIN_KEYS)
        keys = np.empty((num_rows, blocks, width), np.int64)
        # Slots of no key repeat one that is met anyway, and weigh nothing.
        padded = np.pad(order, ((0, 0), (0, blocks * size - node_len)), mode="edge")
        keys[..., :size] = padded.reshape(num_rows, blocks, size)
        keys[..., size : size + num_samples] = np.take_along_axis(order[:, None], samples, axis=2)
        keys[..., size + num_samples :] = keys[..., :1]
        log_weights = np.full(keys.shape, -np.inf, np.float64 if dtype == torch.float64 else np.float32)
        log_weights[..., :size] = 0.0
        log_weights[:, -1, node_len - (blocks - 1) * size : size] = -np.inf
        is_met = samples // size == np.arange(blocks)[:, None]
        with np.errstate(divide="ignore"):
            weights = np.log(level.sample_weight.numpy()).reshape(samples.shape)
        log_weights[..., size : size + num_samples] = np.where(is_met, -np.inf, weights)
        self._keys, self._log_weights = keys.reshape(-1, width), log_weights.reshape(-1, width)

    def _lay_out_queries(self, level: LevelPlan, num_queries: int) -> None:
        """The queries in the order of the blocks that they meet, and where those of each block begin and end."""
        _, heads, nodes, query_len = level.query_order.shape
        kv_heads, per_row = level.key_order.shape[1], level.tile_count.shape[3]
        count = level.tile_count.numpy().reshape(-1)
        used = np.flatnonzero(count)
        row = used // per_row
        head = row // nodes
        kv_row = head // (heads // kv_heads) * nodes + row % nodes
        block = kv_row * level.num_blocks + level.tile_block.numpy().reshape(-1)[used]
        in_order = np.argsort(block, kind="stable")
        used, row, head, block = used[in_order], row[in_order], head[in_order], block[in_order]
        count = count[used]
        stop = np.cumsum(count, dtype=np.int64)
        # Of each tile, how much further its queries lie in query_order than in the list.
        shift = row * query_len + level.tile_first.numpy().reshape(-1)[used] - (stop - count)
        place = np.arange(stop[-1]) + np.repeat(shift, count)
        self._queries = level.query_order.numpy().reshape(-1)[place] + np.repeat(head * num_queries, count)
        last = np.flatnonzero(np.diff(block, append=-1))
        self._blocks, self._stop = block[last], stop[last]

    def __iter__(self) -> Iterator[Batch]:
        step, least, most = self._slots
        count = np.diff(self._stop, prepend=0)
        parts = -(-count // most)
        length = -(-count // (parts * step)) * step
        block = np.repeat(np.arange(len(count)), parts)
        number = np.arange(len(block)) - np.repeat(np.cumsum(parts) - parts, parts)
        first = (self._stop - count)[block] + number * length[block]
        held = np.minimum(length[block], self._stop[block] - first)
        num_slots = np.maximum(-(-held // step) * step, least)
        in_order = np.argsort(num_slots, kind="stable")
        at_once = max(1, _KEYS_PER_THREAD * torch.get_num_threads() // self._keys.shape[1])
        sizes, starts = np.unique(num_slots[in_order], return_index=True)
        for size, group in zip(sizes.tolist(), np.split(in_order, starts[1:]), strict=True):
            for i in range(0, len(group), at_once):
                part = group[i : i + at_once]
                yield self._batch(self._blocks[block[part]], first[part, None], held[part, None], np.arange(size))

    def _batch(self, blocks: Indices, first: Indices, held: Indices, slots: Indices) -> Batch:
        queries = self._queries[first + np.minimum(slots, held - 1)]
        targets = np.where(slots < held, queries, self._nowhere)
        found = (queries, targets, self._keys[blocks], self._log_weights[blocks][:, None, None])
        return Batch(*(torch.from_numpy(x) for x in found))
