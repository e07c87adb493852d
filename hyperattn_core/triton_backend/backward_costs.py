"""How many bytes and operations every launch of a backward pass needs."""

from __future__ import annotations

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.triton_backend.geometry import Geometry, LevelGeometry
from hyperattn_core.triton_backend.launch_cost import (
    FLOAT_BYTES,
    INDEX_BYTES,
    LaunchCost,
    call_geometry,
    leaf_pairs,
    level_keys,
    level_queries,
    total_cost,
)


def backward_costs(
    shape: tuple[int, int, int, int, int],
    params: HyperAttentionParams,
    *,
    is_causal: bool,
    head_dim: int,
    value_dim: int | None = None,
    itemsize: int = 2,
    tile_size: int = 64,
) -> tuple[LaunchCost, ...]:
    """The launches of a backward pass, in order, those of all levels together.

    Logits are computed by three launches: samples, queries and keys make 7 products of each pair where 5 are needed.
    Arguments and errors are those of forward_costs.
    """
    where = call_geometry(shape, params, is_causal=is_causal, tile_size=tile_size)
    dims = head_dim, value_dim or head_dim
    sums_bytes = where.drawn_size * sum(dims) * FLOAT_BYTES
    parts_bytes = where.sample_parts_size * sum(dims) * FLOAT_BYTES
    costs = [_delta_cost(where, dims[1] * itemsize)]
    if sums_bytes:
        costs.append(_sample_cost(where, dims, itemsize, parts_bytes))
        costs.append(LaunchCost("reduce", parts_bytes, sums_bytes))
    if is_causal:
        costs.append(_leaves_cost(where, dims, itemsize))
    costs.append(total_cost((_query_cost(where, level, dims, itemsize) for level in where.levels), "queries"))
    keys = total_cost((_key_cost(where, level, dims, itemsize) for level in where.levels), "keys")
    costs.append(LaunchCost("keys", keys.read_bytes + sums_bytes, keys.written_bytes, keys.flops, keys.exponentials))
    if is_causal:
        costs.append(_rounding_cost(where, dims, itemsize))
    return tuple(costs)


def _delta_cost(where: Geometry, value_row: int) -> LaunchCost:
    rows = where.sides[0].rows * where.sides[0].length
    return LaunchCost("delta", rows * 2 * value_row, rows * FLOAT_BYTES)


def _query_read(queries: int, dims: tuple[int, int], itemsize: int) -> int:
    """Gathered rows of q and grad_out, with lse and delta."""
    return queries * (sum(dims) * itemsize + INDEX_BYTES + 2 * FLOAT_BYTES)


def _key_read(keys: int, dims: tuple[int, int], itemsize: int) -> int:
    """Gathered rows of k and v."""
    return keys * (sum(dims) * itemsize + INDEX_BYTES)


def _sample_cost(where: Geometry, dims: tuple[int, int], itemsize: int, parts_bytes: int) -> LaunchCost:
    """s, dp, dv and dk of every query with its node's samples."""
    read = pairs = 0
    for level in where.levels:
        queries = level_queries(where, level)
        samples = where.sides[1].rows * level.shape.num_nodes * level.num_samples
        read += _query_read(queries, dims, itemsize) + _key_read(samples, dims, itemsize)
        pairs += queries * level.num_samples
    return LaunchCost("samples", read, parts_bytes, 4 * pairs * sum(dims), pairs)


def _leaves_cost(where: Geometry, dims: tuple[int, int], itemsize: int) -> LaunchCost:
    """The exact kernel's backward: it sums dq up in float32 in memory, and rounds it in the end."""
    queries, keys = (side.rows * side.length for side in where.sides)
    pairs, columns = leaf_pairs(where), sum(dims)
    read = queries * ((dims[0] + 2 * dims[1]) * itemsize + 2 * FLOAT_BYTES) + keys * columns * itemsize
    summed = queries * dims[0] * FLOAT_BYTES
    written = (queries * dims[0] + keys * columns) * itemsize
    return LaunchCost("leaves", read + summed, written + summed, 2 * pairs * (3 * dims[0] + 2 * dims[1]), pairs)


def _total_bytes(where: Geometry, itemsize: int) -> tuple[int, int]:
    """Read and written bytes of a gradient's number: levels add to what is there in float32."""
    return (FLOAT_BYTES, FLOAT_BYTES) if where.settings.is_causal else (0, itemsize)


def _query_cost(where: Geometry, level: LevelGeometry, dims: tuple[int, int], itemsize: int) -> LaunchCost:
    """s, dp and dq of every query with its block and its node's samples."""
    queries, keys = level_queries(where, level), level_keys(where, level)
    pairs = queries * (level.block_size + level.num_samples)
    before, after = (queries * dims[0] * size for size in _total_bytes(where, itemsize))
    read = _query_read(queries, dims, itemsize) + _key_read(keys, dims, itemsize)
    return LaunchCost("queries", read + before, after, 2 * pairs * (2 * dims[0] + dims[1]), pairs)


def _key_cost(where: Geometry, level: LevelGeometry, dims: tuple[int, int], itemsize: int) -> LaunchCost:
    """s, dp, dv and dk of every key with the queries that meet its block."""
    queries, keys = level_queries(where, level), level_keys(where, level)
    pairs, columns = queries * level.block_size, sum(dims)
    before, after = (keys * columns * size for size in _total_bytes(where, itemsize))
    read = _query_read(queries, dims, itemsize) + _key_read(keys, dims, itemsize)
    return LaunchCost("keys", read + before, after, 4 * pairs * columns, pairs)


def _rounding_cost(where: Geometry, dims: tuple[int, int], itemsize: int) -> LaunchCost:
    """The gradients of the leaves into float32, and in the end all of them back to the dtype of the inputs."""
    queries, keys = (side.rows * side.length for side in where.sides)
    numbers = queries * dims[0] + keys * sum(dims)
    both_ways = numbers * (itemsize + FLOAT_BYTES)
    return LaunchCost("rounding", both_ways, both_ways)
