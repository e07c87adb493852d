"""Plans of the PyTorch backend as two flat tensors, and back as views: level after level, field after field."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperattn_core.planning.draws import sample_count
from hyperattn_core.planning.levels import CallShape, LevelShape, level_shapes
from hyperattn_core.planning.packed import Packed, PackedPlan, Settings
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan


def plan_sizes(shape: CallShape, settings: Settings) -> tuple[int, int]:
    """Elements of a packed plan: indices and weights."""
    levels = level_shapes(shape, settings.params, is_causal=settings.is_causal)
    sizes = [math.prod(x) for level in levels for x in _field_shapes(level, shape, settings).values()]
    return sum(sizes), sum(math.prod(_weight_shape(level, shape, settings)) for level in levels)


def pack(plan: AttentionPlan) -> Packed:
    """The flat tensors of any plan that has levels: those of a plan of this backend, else a copy.

    Raises:
        ValueError: the levels are not those of the plan's shape and parameters.
    """
    if isinstance(plan, PackedPlan) and (packed := plan.layout("torch")) is not None:
        return packed
    settings = Settings(plan.params, plan.is_causal, plan.levels[0].tile_size)
    shapes = level_shapes(plan.shape, plan.params, is_causal=plan.is_causal)
    expected = [(_field_shapes(x, plan.shape, settings), _weight_shape(x, plan.shape, settings)) for x in shapes]
    found = [({name: getattr(x, name).shape for name in _FIELDS}, x.sample_weight.shape) for x in plan.levels]
    if found != expected:
        raise ValueError(f"the plan's levels are not those of its shape {plan.shape} and parameters {plan.params}")
    return pack_levels(plan.levels, settings)


def pack_levels(levels: tuple[LevelPlan, ...], settings: Settings) -> Packed:
    """The flat tensors of levels, as a copy."""
    data = torch.cat([getattr(level, name).reshape(-1) for level in levels for name in _FIELDS])
    return Packed(data, torch.cat([level.sample_weight.reshape(-1) for level in levels]), settings)


def unpack(packed: Packed, shape: CallShape, seed: int | None = None) -> tuple[LevelPlan, ...]:
    """The levels of a packed plan, as views; they hold all that was drawn, so that the seed is not asked."""
    settings, levels = packed.settings, []
    at = weight_at = 0
    for level in level_shapes(shape, settings.params, is_causal=settings.is_causal):
        views: dict[str, Tensor] = {}
        for name, sizes in _field_shapes(level, shape, settings).items():
            views[name] = packed.data[at : at + math.prod(sizes)].view(sizes)
            at += math.prod(sizes)
        sizes = _weight_shape(level, shape, settings)
        weights = packed.weights[weight_at : weight_at + math.prod(sizes)].view(sizes)
        weight_at += math.prod(sizes)
        block_size = settings.tiles(level).block_size
        levels.append(LevelPlan(block_size, settings.tile_size, **views, sample_weight=weights))
    return tuple(levels)


_FIELDS = ("key_order", "query_order", "tile_first", "tile_count", "tile_block", "sample_index")


def _weight_shape(level: LevelShape, shape: CallShape, settings: Settings) -> tuple[int, int, int, int]:
    """The shape of a level's sample weights, which is that of the samples."""
    return (shape[0], shape[2], level.num_nodes, sample_count(level.node_len, settings.params))


def _field_shapes(level: LevelShape, shape: CallShape, settings: Settings) -> dict[str, tuple[int, ...]]:
    """The shape of each index tensor of a level, in the order of _FIELDS."""
    batch, heads, kv_heads = shape[:3]
    _, _, tiles, per_tile = settings.tiles(level)
    queries, keys = (batch, heads, level.num_nodes), (batch, kv_heads, level.num_nodes)
    return {
        "key_order": (*keys, level.node_len),
        "query_order": (*queries, level.query_len),
        "tile_first": (*queries, tiles),
        "tile_count": (*queries, tiles),
        "tile_block": (*queries, tiles, per_tile),
        "sample_index": (*keys, sample_count(level.node_len, settings.params)),
    }
