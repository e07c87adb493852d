"""Pairing: which key block each query meets, and the tiles of queries that meet the same one."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperattn_core.planning.levels import LevelShape


def block_of_rank(rank_starts: Tensor, block_size: int, num_blocks: int) -> Tensor:
    """The key block in the middle of each rank's range of sorted keys: int32 (R, num_ranks), ascending."""
    middle = (rank_starts[:, :-1] + rank_starts[:, 1:]) // 2
    return (middle // block_size).clamp(max=num_blocks - 1)


def rank_pairing(level: LevelShape, block_size: int, device: torch.device | str) -> Tensor:
    """First sorted query of each block, int32 (G, nb + 1): sorted query p meets sorted key floor(p * S / count)."""
    counts = torch.tensor(level.query_counts, device=device, dtype=torch.int64).unsqueeze(1)
    edges = torch.arange(-(-level.node_len // block_size) + 1, device=device, dtype=torch.int64) * block_size
    return (-(-(edges.clamp(max=level.node_len) * counts) // level.node_len)).to(torch.int32)


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
