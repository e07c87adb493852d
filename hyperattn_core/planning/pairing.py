"""Pairing: which key block each query meets, and the tiles of queries that meet the same one."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperattn_core.planning.levels import LevelShape, node_rows
from hyperattn_core.precision import planning_dtype

# Logits of queries with mean keys that are held at once.
_LOGITS_AT_ONCE = 2**20


def block_of_rank(rank_starts: Tensor, block_size: int, num_blocks: int) -> Tensor:
    """The key block in the middle of each rank's range of sorted keys: int32 (R, num_ranks), ascending."""
    middle = (rank_starts[:, :-1] + rank_starts[:, 1:]) // 2
    return (middle // block_size).clamp(max=num_blocks - 1)


def rank_pairing(level: LevelShape, block_size: int, device: torch.device | str) -> Tensor:
    """First sorted query of each block, int32 (G, nb + 1): sorted query p meets sorted key floor(p * S / count)."""
    counts = torch.tensor(level.query_counts, device=device, dtype=torch.int64).unsqueeze(1)
    edges = torch.arange(-(-level.node_len // block_size) + 1, device=device, dtype=torch.int64) * block_size
    return (-(-(edges.clamp(max=level.node_len) * counts) // level.node_len)).to(torch.int32)


def routed_blocks(level: LevelShape, q: Tensor, k: Tensor, key_order: Tensor, block_size: int, scale: float) -> Tensor:
    """The block of sorted keys whose mean key has the largest logit with a query, int64 (B, H, G, Sq).

    A block whose mean is not a number is met by no query that could meet another one.

    Args:
        level: the nodes.
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        key_order: int32 (B, Hkv, G, S), positions of the sorted keys.
        block_size: b.
        scale: factor of the logits.
    """
    (batch, heads), kv_heads, dtype = q.shape[:2], k.shape[1], planning_dtype(q)
    num_blocks = -(-level.node_len // block_size)
    lengths = torch.full((num_blocks, 1), block_size, dtype=dtype, device=k.device)
    lengths[-1] = level.node_len - (num_blocks - 1) * block_size
    blocks = torch.empty(batch, heads, level.num_nodes, level.query_len, dtype=torch.int64, device=q.device)
    at_once = max(1, _LOGITS_AT_ONCE // (level.num_nodes * num_blocks))
    for b in range(batch):
        for kv_head in range(kv_heads):
            rows = k[b, kv_head].index_select(0, key_order[b, kv_head].view(-1)).to(dtype)
            rows = rows.view(level.num_nodes, level.node_len, -1)
            rows = torch.nn.functional.pad(rows, (0, 0, 0, num_blocks * block_size - level.node_len))
            means = rows.unflatten(1, (num_blocks, block_size)).sum(2) * (scale / lengths)
            for head in range(kv_head * heads // kv_heads, (kv_head + 1) * heads // kv_heads):
                queries = level.padded(q[b : b + 1, head : head + 1])
                queries = node_rows(queries, level.query_starts, level.query_len)[0, 0]
                for first in range(0, level.query_len, at_once):
                    some = slice(first, first + at_once)
                    logits = torch.bmm(queries[:, some].to(dtype), means.transpose(1, 2))
                    blocks[b, head, :, some] = logits.nan_to_num(nan=-torch.inf).argmax(2)
    return blocks


def max_tiles(query_len: int, tile_size: int, num_blocks: int) -> int:
    """Bound on the tiles of a node for every distribution of its queries over the blocks, so that none is counted."""
    return -(-query_len // tile_size) + num_blocks - 1


def cut_tiles(block_first: Tensor, tile_size: int, num_tiles: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut each block's run of sorted queries into tiles; block_first (R, nb + 1) says where the runs begin and end.

    Returns first, count and block of every tile, int32 (R, num_tiles); unused tiles come last with count 0. The bound
    ceil(Nq / tile_size) + nb - 1 on num_tiles holds for every distribution, so no device is asked.
    """
    num_rows, num_blocks = block_first.shape[0], block_first.shape[1] - 1
    run = block_first[:, 1:] - block_first[:, :-1]
    last_tile = ((run + tile_size - 1) // tile_size).cumsum(1).to(torch.int32)
    tile = row_arange(num_rows, num_tiles, block_first.device)
    block = torch.searchsorted(last_tile, tile, right=True).clamp(max=num_blocks - 1)
    tiles_before = torch.nn.functional.pad(last_tile, (1, 0)).gather(1, block)
    first = block_first.gather(1, block) + (tile - tiles_before) * tile_size
    count = (block_first.gather(1, block + 1) - first).clamp(min=0, max=tile_size)
    count = torch.where(tile < last_tile[:, -1:], count, 0)
    return torch.where(count > 0, first, 0), count, block.to(torch.int32)


def row_arange(num_rows: int, length: int, device: torch.device) -> Tensor:
    """0..length-1 in every row, int32 (num_rows, length)."""
    return torch.arange(length, device=device, dtype=torch.int32).expand(num_rows, length).contiguous()
