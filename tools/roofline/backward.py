"""How many bytes and operations every launch of a backward pass needs."""

from __future__ import annotations

from hyperattn_core.triton_backend.geometry import LevelGeometry
from tools.roofline.call_sizes import CallSizes
from tools.roofline.launch_cost import (
    FLOAT_BYTES,
    INDEX_BYTES,
    LaunchCost,
    leaf_pairs,
    level_keys,
    level_queries,
    total_cost,
)


def backward_costs(call: CallSizes) -> tuple[LaunchCost, ...]:
    """The launches of a backward pass, in order, those of all levels together.

    Logits are computed by three launches: samples, queries and keys make 7 products of each pair where 5 are needed.
    Errors are those of forward_costs.
    """
    where, columns = call.geometry, sum(call.dims)
    sums_bytes = where.drawn_size * columns * FLOAT_BYTES
    parts_bytes = where.sample_parts_size * columns * FLOAT_BYTES
    costs = [_delta_cost(call)]
    if sums_bytes:
        costs.append(_sample_cost(call, parts_bytes))
        costs.append(LaunchCost("reduce", parts_bytes, sums_bytes))
    if call.is_causal:
        costs.append(_leaves_cost(call))
    costs.append(total_cost((_query_cost(call, level) for level in where.levels), "queries"))
    keys = total_cost((_key_cost(call, level) for level in where.levels), "keys")
    costs.append(LaunchCost("keys", keys.read_bytes + sums_bytes, keys.written_bytes, keys.flops, keys.exponentials))
    if call.is_causal:
        costs.append(_rounding_cost(call))
    return tuple(costs)


def _delta_cost(call: CallSizes) -> LaunchCost:
    return LaunchCost("delta", call.queries * 2 * call.row_bytes[1], call.queries * FLOAT_BYTES)


def _query_read(call: CallSizes, queries: int) -> int:
    """Gathered rows of q and grad_out, with lse and delta."""
    return queries * (sum(call.row_bytes) + INDEX_BYTES + 2 * FLOAT_BYTES)


def _key_read(call: CallSizes, keys: int) -> int:
    """Gathered rows of k and v."""
    return keys * (sum(call.row_bytes) + INDEX_BYTES)


def _sample_cost(call: CallSizes, parts_bytes: int) -> LaunchCost:
    """s, dp, dv and dk of every query with its node's samples."""
    where = call.geometry
    read = pairs = 0
    for level in where.levels:
        queries = level_queries(where, level)
        samples = where.sides[1].rows * level.num_nodes * level.num_samples
        read += _query_read(call, queries) + _key_read(call, samples)
        pairs += queries * level.num_samples
    return LaunchCost("samples", read, parts_bytes, 4 * pairs * sum(call.dims), pairs)


def _leaves_cost(call: CallSizes) -> LaunchCost:
    """The exact kernel's backward: it sums dq up in float32 in memory, and rounds it in the end."""
    queries, keys, dims, pairs = call.queries, call.keys, call.dims, leaf_pairs(call.geometry)
    row, value_row = call.row_bytes
    read = queries * (row + 2 * value_row + 2 * FLOAT_BYTES) + keys * (row + value_row)
    summed = queries * dims[0] * FLOAT_BYTES
    written = queries * row + keys * (row + value_row)
    return LaunchCost("leaves", read + summed, written + summed, 2 * pairs * (3 * dims[0] + 2 * dims[1]), pairs)


def _total_bytes(call: CallSizes) -> tuple[int, int]:
    """Read and written bytes of a gradient's number: levels add to what is there in float32."""
    return (FLOAT_BYTES, FLOAT_BYTES) if call.is_causal else (0, call.itemsize)


def _query_cost(call: CallSizes, level: LevelGeometry) -> LaunchCost:
    """s, dp and dq of every query with its block and its node's samples."""
    where, dims = call.geometry, call.dims
    queries, keys = level_queries(where, level), level_keys(where, level)
    pairs = queries * (level.block_size + level.num_samples)
    before, after = (queries * dims[0] * size for size in _total_bytes(call))
    read = _query_read(call, queries) + _key_read(call, keys)
    return LaunchCost("queries", read + before, after, 2 * pairs * (2 * dims[0] + dims[1]), pairs)


def _key_cost(call: CallSizes, level: LevelGeometry) -> LaunchCost:
    """s, dp, dv and dk of every key with the queries that meet its block."""
    where, columns = call.geometry, sum(call.dims)
    queries, keys = level_queries(where, level), level_keys(where, level)
    pairs = queries * level.block_size
    before, after = (keys * columns * size for size in _total_bytes(call))
    read = _query_read(call, queries) + _key_read(call, keys)
    return LaunchCost("keys", read + before, after, 4 * pairs * columns, pairs)


def _rounding_cost(call: CallSizes) -> LaunchCost:
    """The gradients of the leaves into float32, and in the end all of them back to the dtype of the inputs."""
    numbers = call.queries * call.head_dim + call.keys * sum(call.dims)
    both_ways = numbers * (call.itemsize + FLOAT_BYTES)
    return LaunchCost("rounding", both_ways, both_ways)
