"""How many bytes and operations every launch of a forward pass needs."""

from __future__ import annotations

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.triton_backend.geometry import SORT_TILE, Geometry
from hyperattn_core.triton_backend.launch_cost import (
    FLOAT_BYTES,
    INDEX_BYTES,
    LaunchCost,
    call_geometry,
    leaf_pairs,
    level_keys,
    level_queries,
)

#: Columns that the projections are padded to, and the terms each is split into for half-precision inputs.
HASH_COLUMNS = 16
HASH_TERMS = 3


def forward_costs(
    shape: tuple[int, int, int, int, int],
    params: HyperAttentionParams,
    *,
    is_causal: bool,
    head_dim: int,
    value_dim: int | None = None,
    itemsize: int = 2,
    tile_size: int = 64,
) -> tuple[LaunchCost, ...]:
    """The launches of a forward pass, in order.

    Args:
        shape: (B, H, Hkv, Nq, Nk).
        params: the estimator's parameters.
        is_causal: whether the call is causal.
        head_dim: D.
        value_dim: Dv, D if None.
        itemsize: bytes of an element of q, k, v and out.
        tile_size: queries per tile.

    Raises:
        ValueError: attention is exact at this shape, so that none of the kernels runs.
    """
    where = call_geometry(shape, params, is_causal=is_causal, tile_size=tile_size)
    row = head_dim * itemsize
    value_row = (value_dim or head_dim) * itemsize
    costs = [*_plan_costs(where, row, itemsize), _attend_cost(where, row, value_row, head_dim, value_dim or head_dim)]
    if is_causal:
        costs += [_leaves_cost(where, row, value_row, head_dim, value_dim or head_dim), _merge_cost(where, value_row)]
    return tuple(costs)


def _plan_costs(where: Geometry, row: int, itemsize: int) -> list[LaunchCost]:
    queries, keys = where.sides
    tokens = queries.rows * queries.length + keys.rows * keys.length
    rank_bytes = tokens * (1 if where.settings.num_projections <= 8 else 2)
    histograms = tokens * where.num_ranks // SORT_TILE
    # A level holds each token as a query or as a key, or not at all.
    sorted_tokens = sum(level_queries(where, level) + level_keys(where, level) for level in where.levels)
    sorted_tiles = sorted_tokens * where.num_ranks // SORT_TILE
    tiles = queries.rows * sum(level.shape.num_nodes * level.num_tiles for level in where.levels)
    totals = where.totals_rows * where.num_ranks * INDEX_BYTES
    terms = HASH_TERMS if itemsize == 2 else 1
    head_dim = row // itemsize
    return [
        LaunchCost("hash", tokens * row, rank_bytes + histograms, 2 * tokens * head_dim * HASH_COLUMNS * terms),
        LaunchCost("scan", sorted_tiles, sorted_tiles * INDEX_BYTES + totals),
        LaunchCost("scatter", rank_bytes + sorted_tiles * INDEX_BYTES + totals, sorted_tokens * INDEX_BYTES),
        LaunchCost(
            "pair", totals + 2 * where.drawn_size * INDEX_BYTES, (3 * tiles + 2 * where.drawn_size) * INDEX_BYTES
        ),
    ]


def _attend_cost(where: Geometry, row: int, value_row: int, head_dim: int, value_dim: int) -> LaunchCost:
    read = written = pairs = 0
    for level in where.levels:
        queries, keys = level_queries(where, level), level_keys(where, level)
        samples = where.sides[1].rows * level.shape.num_nodes * level.num_samples
        read += queries * (row + INDEX_BYTES) + keys * (row + value_row + INDEX_BYTES)
        # Sampled rows are rows of the same keys: read by every program, from the cache; their indices are extra.
        read += samples * 2 * INDEX_BYTES
        written += queries * (value_row + FLOAT_BYTES)
        pairs += queries * (level.block_size + level.num_samples)
    return LaunchCost("attend", read, written, 2 * pairs * (head_dim + value_dim), pairs)


def _leaves_cost(where: Geometry, row: int, value_row: int, head_dim: int, value_dim: int) -> LaunchCost:
    queries, keys = where.sides
    pairs = leaf_pairs(where)
    read = queries.rows * queries.length * row + keys.rows * keys.length * (row + value_row)
    written = queries.rows * queries.length * (value_row + FLOAT_BYTES)
    return LaunchCost("leaves", read, written, 2 * pairs * (head_dim + value_dim), pairs)


def _merge_cost(where: Geometry, value_row: int) -> LaunchCost:
    tokens = where.sides[0].rows * where.sides[0].length
    partial = sum(level_queries(where, level) for level in where.levels)
    return LaunchCost(
        "merge", (tokens + partial) * (value_row + FLOAT_BYTES), tokens * (value_row + FLOAT_BYTES), 0, tokens + partial
    )
