"""Inputs and plans as the kernels read them: dense rows, and flat buffers laid out as geometry says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperattn_core.planning.packed import Packed, PackedPlan, Settings
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan
from hyperattn_core.triton_backend.device_tables import block_entries, block_tiles
from hyperattn_core.triton_backend.geometry import Geometry, bias_row, geometry

_INDEX_LIMIT = 2**31


def dense_rows(x: Tensor) -> Tensor:
    """x (..., N, D) with rows that are one run of memory, all within reach of 32-bit indices: itself, or a copy."""
    return x if x.stride(-1) == 1 and x.shape[-2] * x.stride(-2) < _INDEX_LIMIT else x.contiguous()


def unpack(packed: Packed, where: Geometry) -> tuple[LevelPlan, ...]:
    """The levels of a packed plan, as views."""
    batch, heads, kv_heads, _, _ = where.shape
    levels = []
    for level in where.levels:

        def view(offset: int, row_heads: int, length: int, nodes: int = level.num_nodes) -> Tensor:
            size = batch * row_heads * nodes * length
            return packed.data[offset : offset + size].view(batch, row_heads, nodes, length)

        drawn = batch * kv_heads * level.num_nodes * level.num_samples
        weights = packed.weights[level.samples_drawn : level.samples_drawn + drawn]
        levels.append(
            LevelPlan(
                block_size=level.block_size,
                tile_size=where.settings.tile_size,
                key_order=view(level.key_order, kv_heads, level.node_len),
                query_order=view(level.query_order, heads, level.query_len),
                tile_first=view(level.tile_first, heads, level.num_tiles),
                tile_count=view(level.tile_count, heads, level.num_tiles),
                tile_block=view(level.tile_block, heads, level.num_tiles * level.blocks_per_tile).unflatten(
                    3, (level.num_tiles, level.blocks_per_tile)
                ),
                sample_index=view(level.sample_index, kv_heads, level.num_samples),
                sample_weight=weights.view(batch, kv_heads, level.num_nodes, level.num_samples).double().exp2(),
            )
        )
    return tuple(levels)


def pack(plan: AttentionPlan) -> Packed:
    """The flat buffers of any plan that has levels: those of a plan that the kernels made, else a copy.

    All indices are int32, the base-2 logarithms of the samples' weights float32.

    Raises:
        ValueError: the levels are not those of the plan's shape and parameters.
    """
    if isinstance(plan, PackedPlan) and (packed := plan.layout("triton")) is not None:
        return packed
    settings = Settings(plan.params, plan.is_causal, plan.levels[0].tile_size)
    return pack_levels(plan.levels, geometry(plan.shape, settings))


def pack_levels(levels: Sequence[LevelPlan], where: Geometry) -> Packed:
    """The flat buffers of levels, as a copy.

    Raises:
        ValueError: the levels are not those of the geometry.
    """
    biases, data, weights = [], [], []
    for level in map(ascending, levels):
        position = level.key_order.gather(3, level.sample_index.long())
        data += [
            level.query_order, level.key_order, level.sample_index, position,
            level.tile_first, level.tile_count, level.tile_block,
        ]  # fmt: skip
        if where.settings.params.pairing == "routed":
            data += block_entries(level.tile_block.flatten(3), level.num_blocks)
        else:
            data.append(block_tiles(level.tile_count, level.tile_block.squeeze(4), level.num_blocks))
            biases += level_biases(level)
        weights.append(level.sample_weight.log2().reshape(-1))
    flat = torch.cat([*(x.view(torch.int32) for x in biases), *(x.reshape(-1).to(torch.int32) for x in data)])
    log_weights = torch.cat(weights).to(torch.float32)
    if flat.numel() != where.data_size or log_weights.numel() != where.drawn_size:
        raise ValueError(
            f"the plan's levels are not those of its shape {where.shape} and parameters {where.settings.params}"
        )
    return Packed(flat, log_weights, where.settings)


def ascending(level: LevelPlan) -> LevelPlan:
    """The level with the samples of each node in ascending order, as every plan has them that is made here."""
    index, order = level.sample_index.sort(dim=-1, stable=True)
    return replace(level, sample_index=index, sample_weight=level.sample_weight.gather(-1, order))


def level_biases(level: LevelPlan) -> list[Tensor]:
    """log2(w) of the keys of a block, of the last block, and of the samples as each block meets them: float32, flat.

    It is -inf for samples of the block, and past the end of a row.
    """
    lengths = (level.block_size, level.node_len - (level.num_blocks - 1) * level.block_size)
    weight = level.sample_weight.log2().to(torch.float32)
    blocks = torch.arange(level.num_blocks, device=weight.device).unsqueeze(1)
    is_own = (level.sample_index // level.block_size).unsqueeze(3) == blocks
    rows = [weight.new_zeros(length) for length in lengths]
    rows.append(torch.where(is_own, -torch.inf, weight.unsqueeze(3)))
    padded = zip(rows, (level.block_size, level.block_size, weight.shape[3]), strict=True)
    return [
        torch.nn.functional.pad(x, (0, bias_row(length) - x.shape[-1]), value=-torch.inf).reshape(-1)
        for x, length in padded
    ]
