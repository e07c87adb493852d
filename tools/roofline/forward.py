"""How many bytes and operations every launch of a forward pass needs."""

from __future__ import annotations

from hyperattn_core.triton_backend.geometry import SORT_TILE
from tools.roofline.call_sizes import CallSizes
from tools.roofline.launch_cost import (
    FLOAT_BYTES,
    INDEX_BYTES,
    LaunchCost,
    leaf_pairs,
    level_keys,
    level_queries,
)

#: Columns that the projections are padded to, and the terms each is split into for half-precision inputs.
HASH_COLUMNS = 16
HASH_TERMS = 3


def forward_costs(call: CallSizes) -> tuple[LaunchCost, ...]:
    """The launches of a forward pass, in order.

    Raises:
        ValueError: attention is exact at this shape, so that none of the kernels runs.
    """
    costs = [*_plan_costs(call), _attend_cost(call)]
    if call.is_causal:
        costs += [_leaves_cost(call), _merge_cost(call)]
    return tuple(costs)


def _plan_costs(call: CallSizes) -> list[LaunchCost]:
    where, tokens = call.geometry, call.queries + call.keys
    rank_bytes = tokens * (1 if where.settings.params.num_projections <= 8 else 2)
    histograms = tokens * where.num_ranks // SORT_TILE
    # A level holds each token as a query or as a key, or not at all.
    sorted_tokens = sum(level_queries(where, level) + level_keys(where, level) for level in where.levels)
    sorted_tiles = sorted_tokens * where.num_ranks // SORT_TILE
    tiles = where.sides[0].rows * sum(level.num_nodes * level.num_tiles for level in where.levels)
    totals = where.totals_rows * where.num_ranks * INDEX_BYTES
    products = HASH_COLUMNS * (HASH_TERMS if call.itemsize == 2 else 1)
    return [
        LaunchCost("hash", tokens * call.row_bytes[0], rank_bytes + histograms, 2 * tokens * call.head_dim * products),
        LaunchCost("scan", sorted_tiles, sorted_tiles * INDEX_BYTES + totals),
        LaunchCost("scatter", rank_bytes + sorted_tiles * INDEX_BYTES + totals, sorted_tokens * INDEX_BYTES),
        LaunchCost(
            "pair", totals + 2 * where.drawn_size * INDEX_BYTES, (3 * tiles + 2 * where.drawn_size) * INDEX_BYTES
        ),
    ]


def _attend_cost(call: CallSizes) -> LaunchCost:
    where, (row, value_row) = call.geometry, call.row_bytes
    read = written = pairs = 0
    for level in where.levels:
        queries, keys = level_queries(where, level), level_keys(where, level)
        samples = where.sides[1].rows * level.num_nodes * level.num_samples
        read += queries * (row + INDEX_BYTES) + keys * (row + value_row + INDEX_BYTES)
        # Sampled rows are rows of the same keys: read by every program, from the cache; their indices are extra.
        read += samples * 2 * INDEX_BYTES
        written += queries * (value_row + FLOAT_BYTES)
        pairs += queries * (level.block_size + level.num_samples)
    return LaunchCost("attend", read, written, 2 * pairs * sum(call.dims), pairs)


def _leaves_cost(call: CallSizes) -> LaunchCost:
    pairs, (row, value_row) = leaf_pairs(call.geometry), call.row_bytes
    read = call.queries * row + call.keys * (row + value_row)
    written = call.queries * (value_row + FLOAT_BYTES)
    return LaunchCost("leaves", read, written, 2 * pairs * sum(call.dims), pairs)


def _merge_cost(call: CallSizes) -> LaunchCost:
    where, tokens, value_row = call.geometry, call.queries, call.row_bytes[1]
    partial = sum(level_queries(where, level) for level in where.levels)
    return LaunchCost(
        "merge", (tokens + partial) * (value_row + FLOAT_BYTES), tokens * (value_row + FLOAT_BYTES), 0, tokens + partial
    )
