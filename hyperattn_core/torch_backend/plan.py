"""Making a plan in PyTorch, for any device: hash, sort, pair and sample."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.draws import level_samples, projections
from hyperattn_core.planning.levels import LevelShape, level_shapes
from hyperattn_core.planning.lsh import hash_ranks, sort_by_rank
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.pairing import block_of_rank, cut_tiles, max_tiles, rank_pairing, row_arange
from hyperattn_core.planning.plan import LevelPlan, plan_shape
from hyperattn_core.torch_backend.packing import pack_levels

DEFAULT_TILE_SIZE = 64


def packed_plan(q: Tensor, k: Tensor, seed: int, settings: Settings) -> Packed:
    """Hash, sort, pair and sample."""
    shape, device, params = plan_shape(q, k), str(q.device), settings.params
    ranks = hash_inputs(q, k, params, seed)
    levels = tuple(
        plan_level(ranks, level, params, level_samples(level, shape, params, seed, device), settings.tile_size)
        for level in level_shapes(shape, params, is_causal=settings.is_causal)
    )
    return pack_levels(levels, settings)


def hash_inputs(q: Tensor, k: Tensor, params: HyperAttentionParams, seed: int) -> tuple[Tensor, Tensor]:
    """Hash ranks of every query (B, H, Nq) and key (B, Hkv, Nk), int32: made once, used by all levels."""
    directions = projections(seed, q.shape[-1], params.num_projections, str(q.device))
    return hash_ranks(q.detach(), directions), hash_ranks(k.detach(), directions)


def plan_level(
    ranks: tuple[Tensor, Tensor],
    level: LevelShape,
    params: HyperAttentionParams,
    samples: tuple[Tensor, Tensor],
    tile_size: int | None = None,
) -> LevelPlan:
    """Sort and pair the nodes of one level; ranks are those of the whole sequence, (B, H, Nq) and (B, Hkv, Nk)."""
    tile_size = tile_size or DEFAULT_TILE_SIZE
    query_ranks, key_ranks = ranks
    (batch, heads, _), kv_heads, device = query_ranks.shape, key_ranks.shape[1], key_ranks.device
    num_ranks, node_len = 2**params.num_projections, level.node_len
    block_size = min(params.block_size, node_len)
    num_blocks = -(-node_len // block_size)

    node_keys = _nodes(key_ranks, level.key_starts, node_len, num_ranks)
    node_queries = _nodes(query_ranks, level.query_starts, level.query_len, num_ranks)
    key_order, key_rank_starts = sort_by_rank(node_keys.reshape(-1, node_len), num_ranks)
    query_order, query_rank_starts = sort_by_rank(node_queries.reshape(-1, level.query_len), num_ranks)
    if params.pairing == "bucket":
        target = block_of_rank(key_rank_starts, block_size, num_blocks).view(batch, kv_heads, -1, num_ranks)
        target = target.repeat_interleave(heads // kv_heads, dim=1).view(-1, num_ranks)
        first_rank = torch.searchsorted(target, row_arange(target.shape[0], num_blocks + 1, device))
        block_first = query_rank_starts.gather(1, first_rank)
    else:
        block_first = rank_pairing(level, block_size, device).expand(batch, heads, -1, -1).flatten(0, 2)
    tile_first, tile_count, tile_block = cut_tiles(
        block_first, tile_size, max_tiles(level.query_len, tile_size, num_blocks)
    )
    rows = (batch, heads, level.num_nodes, -1)
    return LevelPlan(
        block_size=block_size,
        tile_size=tile_size,
        key_order=_to_positions(key_order.view(batch, kv_heads, level.num_nodes, -1), level.key_starts),
        query_order=_to_positions(query_order.view(rows), level.query_starts),
        tile_first=tile_first.view(rows),
        tile_count=tile_count.view(rows),
        tile_block=tile_block.view(rows),
        sample_index=samples[0],
        sample_weight=samples[1],
    )


def _nodes(ranks: Tensor, starts: tuple[int, ...], length: int, no_row: int) -> Tensor:
    """Ranks (B, H, N) as nodes (B, H, G, length) that begin at starts, which are equally far apart."""
    if len(starts) == 1:
        node = ranks[..., starts[0] : starts[0] + length].unsqueeze(2)
    else:
        step = starts[1] - starts[0]
        ranks = ranks[..., starts[0] :]
        ranks = torch.nn.functional.pad(ranks, (0, len(starts) * step - ranks.shape[-1]), value=no_row)
        node = ranks.unflatten(2, (len(starts), step))[..., :length]
    return torch.nn.functional.pad(node, (0, length - node.shape[-1]), value=no_row)


def _to_positions(order: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Indices within nodes (B, H, G, S) to positions in the sequence."""
    if len(starts) == 1 and starts[0] == 0:
        return order
    return order + torch.tensor(starts, device=order.device, dtype=order.dtype).view(1, 1, -1, 1)
