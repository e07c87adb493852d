"""Routing: which blocks of a few consecutive keys each query chooses by their mean keys, and meets with those near it.

A query gives every block the logit of its mean key. It depends on no later query, so that the choice is causal.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyperattn_core.params import ROUTED_KEYS, ROUTED_QUERIES
from hyperattn_core.planning.levels import LevelShape, node_rows
from hyperattn_core.precision import planning_dtype

# Up to so many blocks of a node a query looks at all. Of more it looks at groups first, that many of them, and then at
# the blocks of the best groups: the work grows with the queries alone.
_MOST_BLOCKS = 4096
_MOST_IN_GROUPS = 128
# Logits, or numbers of keys gathered for them, that are held at once.
_AT_ONCE = 2**20
# The largest of many are looked for among the largest of as many.
_GROUP = 32


def routed_blocks(level: LevelShape, q: Tensor, k: Tensor, blocks_per_tile: int, scale: float) -> Tensor:
    """The blocks that each tile of ROUTED_QUERIES queries meets, int32 (B, H, G, T, R); see LevelPlan.tile_block.

    Each query of a tile chooses R / ROUTED_QUERIES of them: those whose mean keys have the largest logits with it. A
    block whose mean is not a number is chosen where there is no other.

    Args:
        level: the nodes.
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        blocks_per_tile: R.
        scale: factor of the logits.
    """
    (batch, heads), kv_heads = q.shape[:2], k.shape[1]
    num_chosen = blocks_per_tile // ROUTED_QUERIES
    num_slots = -(-level.query_len // ROUTED_QUERIES) * ROUTED_QUERIES
    chosen = torch.full((batch, heads, level.num_nodes, num_slots, num_chosen), -1, dtype=torch.int64, device=q.device)
    for b in range(batch):
        for kv_head in range(kv_heads):
            means = _mean_keys(level, k[b : b + 1, kv_head : kv_head + 1]) * scale
            for head in range(kv_head * heads // kv_heads, (kv_head + 1) * heads // kv_heads):
                queries = level.padded(q[b : b + 1, head : head + 1])
                queries = node_rows(queries, level.query_starts, level.query_len)[0, 0].to(means.dtype)
                for some, best in _best(queries, means, num_chosen):
                    chosen[b, head, :, some, : best.shape[-1]] = best
    counts = torch.tensor(level.query_counts, device=q.device).view(-1, 1, 1)
    is_there = torch.arange(num_slots, device=q.device).unsqueeze(1) < counts
    return _first_only(torch.where(is_there, chosen, -1).view(batch, heads, level.num_nodes, -1, blocks_per_tile))


def _mean_keys(level: LevelShape, k: Tensor) -> Tensor:
    """The mean key of each block of a head k (1, 1, Nk, D): (G, nb, D)."""
    rows = node_rows(k, level.key_starts, level.node_len)[0, 0].to(planning_dtype(k))
    num_blocks = -(-level.node_len // ROUTED_KEYS)
    sums = pad(rows, (0, 0, 0, num_blocks * ROUTED_KEYS - level.node_len)).unflatten(1, (num_blocks, -1)).sum(2)
    lengths = torch.full((num_blocks, 1), ROUTED_KEYS, dtype=sums.dtype, device=k.device)
    lengths[-1] = level.node_len - (num_blocks - 1) * ROUTED_KEYS
    return sums / lengths


def _best(queries: Tensor, means: Tensor, count: int) -> Iterator[tuple[slice, Tensor]]:
    """The `count` blocks with the largest logits, or all, of queries (G, Sq, D) with mean keys (G, nb, D): a slice of
    the queries at a time, with int64 (G, slice, count)."""
    num_nodes, num_blocks, width = means.shape
    per_group = -(-num_blocks // _MOST_BLOCKS)
    if per_group == 1:
        for some in _slices(queries.shape[1], num_nodes * num_blocks):
            yield some, _largest(torch.bmm(queries[:, some], means.transpose(1, 2)), count)
        return
    num_groups = -(-num_blocks // per_group)
    padded = pad(means, (0, 0, 0, num_groups * per_group - num_blocks))
    of_groups = padded.unflatten(1, (num_groups, per_group)).mean(2)
    num_kept = max(_MOST_IN_GROUPS // per_group, -(-count // per_group))
    within = torch.arange(per_group, device=means.device)
    nodes = torch.arange(num_nodes, device=means.device).view(-1, 1, 1)
    for some in _slices(queries.shape[1], num_nodes * max(num_groups, num_kept * per_group * width)):
        groups = _largest(torch.bmm(queries[:, some], of_groups.transpose(1, 2)), num_kept)
        blocks = (groups.unsqueeze(3) * per_group + within).flatten(2)
        keys = padded[nodes, blocks]
        logits = torch.matmul(keys, queries[:, some].unsqueeze(3)).squeeze(3)
        logits = logits.masked_fill(blocks >= num_blocks, -torch.inf)
        yield some, blocks.gather(2, _largest(logits, count))


def _slices(length: int, each: int) -> Iterator[slice]:
    step = max(1, _AT_ONCE // each)
    return (slice(first, min(first + step, length)) for first in range(0, length, step))


def _largest(logits: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest in each row (..., N), or of all; a NaN is smaller than any number."""
    logits = logits.nan_to_num(nan=-torch.inf)
    count = min(count, logits.shape[-1])
    if logits.shape[-1] <= max(2, count) * _GROUP:
        return logits.topk(count, -1, sorted=False).indices
    groups = pad(logits, (0, -logits.shape[-1] % _GROUP), value=-torch.inf).unflatten(-1, (-1, _GROUP))
    best = groups.amax(-1).topk(count, -1, sorted=False).indices
    among = groups.gather(-2, best.unsqueeze(-1).expand(*best.shape, _GROUP)).flatten(-2)
    at = among.topk(count, -1, sorted=False).indices
    return best.gather(-1, at // _GROUP) * _GROUP + at % _GROUP


def _first_only(blocks: Tensor) -> Tensor:
    """Blocks (..., R) as int32, with -1 for each that is in an earlier place too."""
    ordered, places = blocks.sort(dim=-1, stable=True)
    is_again = torch.zeros_like(ordered, dtype=torch.bool)
    is_again[..., 1:] = ordered[..., 1:] == ordered[..., :-1]
    return torch.empty_like(blocks).scatter_(-1, places, ordered.masked_fill(is_again, -1)).to(torch.int32)
