"""Making a plan in PyTorch, for any device: hash, sort, pair and sample."""

from __future__ import annotations

from torch import Tensor

from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.nodes import Planner
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.torch_backend.packing import pack_levels

DEFAULT_TILE_SIZE = 64


def packed_plan(q: Tensor, k: Tensor, seed: int, settings: Settings, scale: float) -> Packed:
    """Hash, sort, pair and sample."""
    planner, levels = Planner(q.detach(), k.detach(), seed, settings, scale), []
    hashes = None if settings.params.pairing == "routed" else planner.hash()
    for level in level_shapes(plan_shape(q, k), settings.params, is_causal=settings.is_causal):
        planned = planner.route(level) if hashes is None else planner.sort(level, hashes)
        levels.append(planner.sample(level, planned, planner.probe(level)))
    return pack_levels(tuple(levels), settings)
