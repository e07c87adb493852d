"""Tables that kernels read alongside a plan: made from the sizes of a geometry once and kept on the device."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hyperattn_core.planning.draws import level_weights
from hyperattn_core.planning.pairing import cut_tiles, rank_pairing
from hyperattn_core.triton_backend.geometry import Geometry


@cache
def level_table(plan: Geometry, device: str) -> Tensor:
    """The table of levels, int64 (L, fields), kept on the device."""
    return torch.tensor([level.row() for level in plan.levels], dtype=torch.int64, device=device)


@cache
def rank_tiles(plan: Geometry, device: str) -> Tensor:
    """The tiles of rank pairing, int32: per level first, count and block, each (G, T), and each block's first tile.

    Empty for other pairings, whose tiles follow from the data.
    """
    if plan.settings.params.pairing != "rank":
        return torch.empty(1, dtype=torch.int32, device=device)
    parts = []
    for level in plan.levels:
        block_first = rank_pairing(level, level.block_size, "cpu")
        first, count, block = cut_tiles(block_first, plan.settings.tile_size, level.num_tiles)
        parts += [x.reshape(-1) for x in (first, count, block, block_tiles(count, block, level.num_blocks))]
    return torch.cat(parts).to(device)


def block_tiles(tile_count: Tensor, tile_block: Tensor, num_blocks: int) -> Tensor:
    """The first tile of each block (..., nb + 1) from counts and blocks of tiles (..., T); the last: tiles in use."""
    used = torch.where(tile_count > 0, tile_block, num_blocks).contiguous()
    blocks = torch.arange(num_blocks + 1, dtype=used.dtype, device=used.device).expand(*used.shape[:-1], -1)
    return torch.searchsorted(used, blocks.contiguous(), out_int32=True)


def block_entries(entries: Tensor, num_blocks: int) -> tuple[Tensor, Tensor]:
    """The places of each block in the lists of blocks (..., T * R) of a node's tiles: the inverse of the lists.

    Returns:
        starts: int32 (..., nb + 1), the place of a block's first entry in `places`.
        places: int32 (..., T * R), places in the lists, in order of their blocks; those without a block come last.
    """
    blocks, places = torch.where(entries < 0, num_blocks, entries).sort(dim=-1, stable=True)
    wanted = torch.arange(num_blocks + 1, dtype=blocks.dtype, device=blocks.device).expand(*blocks.shape[:-1], -1)
    return torch.searchsorted(blocks, wanted.contiguous(), out_int32=True), places.to(torch.int32)


@cache
def uniform_weights(plan: Geometry, device: str) -> Tensor:
    """The base-2 logarithms of the weights of uniform draws of all levels, which follow from sizes, float32 flat."""
    weights = []
    for level in plan.levels:
        rows = plan.shape[0] * plan.shape[2] * level.num_nodes
        weight = level_weights(level, plan.settings.params, "cpu").log2().to(torch.float32)
        weights.append(weight.expand(rows, -1).reshape(-1))
    return torch.cat(weights).to(device)
