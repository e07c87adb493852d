"""Bytes and operations of every launch: the need by which a measurement is judged.

Bytes are those that must cross the device's memory: each launch reads each of its inputs once and writes each of its
outputs once. Rows that several tiles read are counted once, as they stay in the L2 cache between neighbouring programs
(a key block's tiles are neighbours, and a node's few samples are read by all of them). Scalars and tables are left out.

Operations are those of the matrix products, two for a multiplication with its addition; exponentials are counted apart.
Masked parts of short tiles are not counted: they are waste, not need.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyperattn_core.planning.samples import NUM_CLASSES
from hyperattn_core.triton_backend.geometry import SORT_TILE
from tools.roofline.call_sizes import DOUBLE_BYTES, FLOAT_BYTES, INDEX_BYTES, LSE_BYTES, CallSizes

#: Columns that the projections are padded to, and the terms each is split into for half-precision inputs.
HASH_COLUMNS = 16
HASH_TERMS = 3


@dataclass(frozen=True)
class LaunchCost:
    """One launch: bytes read and written, operations of matrix products, exponentials."""

    name: str
    read_bytes: int
    written_bytes: int
    flops: int = 0
    exponentials: int = 0

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read_bytes + self.written_bytes


def total_cost(costs: Iterable[LaunchCost]) -> LaunchCost:
    """The sum of launches."""
    columns = zip(*((c.read_bytes, c.written_bytes, c.flops, c.exponentials) for c in costs), strict=True)
    return LaunchCost("all", *map(sum, columns))


def floor_seconds(costs: Iterable[LaunchCost], flops_per_s: float, bytes_per_s: float) -> float:
    """Lower bound on the time of a pass: its bytes at full bandwidth, or its products at full rate."""
    total = total_cost(costs)
    return max(total.bytes / bytes_per_s, total.flops / flops_per_s)


def forward_costs(call: CallSizes) -> tuple[LaunchCost, ...]:
    """The launches of a forward pass, in order.

    Raises:
        ValueError: attention is exact at this shape, so that none of the kernels runs.
    """
    where, (row, value_row), tokens = call.geometry, call.row_bytes, call.queries + call.keys
    result_row, ranks = value_row + LSE_BYTES, tokens * call.rank_bytes
    # A level holds each token as a query or as a key, or not at all.
    sorted_tokens = call.level_queries + call.level_keys
    sorted_tiles = sorted_tokens * where.num_ranks // SORT_TILE
    tiles = where.sides[0].rows * sum(level.num_nodes * level.num_tiles for level in where.levels)
    totals = where.totals_rows * where.num_ranks * INDEX_BYTES
    drawn = where.drawn_size * INDEX_BYTES
    # The table of biases stands before all indices of the plan.
    biases = where.levels[0].query_order * FLOAT_BYTES
    # Sampled rows are rows of the same keys: read by every program, from the cache; their indices are extra.
    attend_read = call.level_queries * (row + INDEX_BYTES) + call.level_keys * (row + value_row + INDEX_BYTES)
    pairs = call.block_pairs + call.sample_pairs
    scores, draw = _probing_costs(call) if where.draws_probed else ((), ())
    costs = [
        _hash_cost(call, "hash", call.queries if scores else tokens),
        *scores,
        LaunchCost("scan", sorted_tiles, sorted_tiles * INDEX_BYTES + totals),
        LaunchCost("scatter", ranks + sorted_tiles * INDEX_BYTES + totals, sorted_tokens * INDEX_BYTES),
        *draw,
        LaunchCost("pair", totals + 2 * drawn, 3 * tiles * INDEX_BYTES + 2 * drawn + biases),
        *_mean_costs(call),
        LaunchCost(
            "attend", attend_read + drawn + biases, call.level_queries * result_row, 2 * pairs * sum(call.dims), pairs
        ),
    ]
    if call.is_causal:
        read = call.queries * row + call.keys * (row + value_row)
        flops = 2 * call.leaf_pairs * sum(call.dims)
        leaves, results = call.queries * (value_row + FLOAT_BYTES), call.queries + call.level_queries
        costs += [
            LaunchCost("leaves", read, leaves, flops, call.leaf_pairs),
            LaunchCost("merge", leaves + call.level_queries * result_row, call.queries * result_row, 0, results),
        ]
    return tuple(costs)


def backward_costs(call: CallSizes) -> tuple[LaunchCost, ...]:
    """The launches of a backward pass, in order, those of all levels together.

    Logits are computed by three launches: samples, queries and keys make 7 products of each pair where 5 are needed.
    Errors are those of forward_costs.
    """
    where, (row, value_row), (dim, value_dim) = call.geometry, call.row_bytes, call.dims
    columns, pairs = dim + value_dim, call.block_pairs + call.sample_pairs
    sums = where.drawn_size * columns * FLOAT_BYTES
    parts = where.sample_parts_size * columns * FLOAT_BYTES
    # Gathered rows of q and grad_out with lse2 and delta, and of k and v.
    query_read = call.level_queries * (row + value_row + INDEX_BYTES + 2 * FLOAT_BYTES)
    key_row = row + value_row + INDEX_BYTES
    read = query_read + call.level_keys * key_row
    tiles = where.sides[0].rows * sum(level.num_nodes * level.num_tiles for level in where.levels)
    # Levels of a causal call add to the gradients that are there, in float32.
    before, after = (FLOAT_BYTES, FLOAT_BYTES) if call.is_causal else (0, call.itemsize)
    dq, dk_dv = call.level_queries * dim, call.level_keys * columns
    costs = [
        LaunchCost("lse2", call.queries * LSE_BYTES, call.queries * FLOAT_BYTES),
        LaunchCost("delta", call.queries * 2 * value_row, call.queries * FLOAT_BYTES),
    ]
    costs += _mean_costs(call)
    if sums:
        sampled = query_read + where.drawn_size * key_row
        costs.append(LaunchCost("samples", sampled, parts, 4 * call.sample_pairs * columns, call.sample_pairs))
        costs.append(LaunchCost("reduce", parts, sums))
    if call.is_causal:
        costs.append(_leaves_cost(call))
    # One part of the gradients of a mean key a tile.
    mean_parts = call.has_means * tiles * columns * FLOAT_BYTES
    mean_grads = call.has_means * where.num_key_nodes * columns * FLOAT_BYTES
    costs.append(
        LaunchCost("queries", read + dq * before, dq * after + mean_parts, 2 * pairs * (2 * dim + value_dim), pairs)
    )
    if call.has_means:
        costs.append(LaunchCost("spread", mean_parts, mean_grads))
    costs += [
        LaunchCost(
            "keys", read + dk_dv * before + sums, dk_dv * after, 4 * call.block_pairs * columns, call.block_pairs
        ),
    ]
    if call.is_causal:
        # The gradients of the leaves into float32, and in the end all of them back to the dtype of the inputs.
        rounded = (call.queries * dim + call.keys * columns) * (call.itemsize + FLOAT_BYTES)
        costs.append(LaunchCost("rounding", rounded, rounded))
    return tuple(costs)


def _mean_costs(call: CallSizes) -> list[LaunchCost]:
    """The launches that make mean keys; the certain keys that are taken off are few rows, which the cache holds."""
    if not call.has_means:
        return []
    where, (row, value_row), keys = call.geometry, call.row_bytes, call.geometry.sides[1]
    mean = sum(call.dims) * FLOAT_BYTES
    read = keys.rows * sum(level.num_nodes * call.node_tiles(level) for level in where.levels) * mean
    return [
        LaunchCost("tiles", call.keys * (row + value_row), keys.rows * keys.num_tiles * mean),
        LaunchCost("means", read + 2 * where.drawn_size * INDEX_BYTES, where.num_key_nodes * mean),
    ]


def _hash_cost(call: CallSizes, name: str, tokens: int) -> LaunchCost:
    """Read and hash so many rows of q or k."""
    products = HASH_COLUMNS * (HASH_TERMS if call.itemsize == 2 else 1)
    written = tokens * call.rank_bytes + tokens * call.geometry.num_ranks // SORT_TILE
    return LaunchCost(name, tokens * call.row_bytes[0], written, 2 * tokens * call.head_dim * products)


def _probing_costs(call: CallSizes) -> tuple[tuple[LaunchCost, ...], tuple[LaunchCost, ...]]:
    """The launches of probed samples: those that hash and score the keys, and after the sort those that draw."""
    where, row = call.geometry, call.row_bytes[0]
    parts, norms = where.probe_parts_size * 2 * FLOAT_BYTES, where.probe_norms_size * FLOAT_BYTES
    pairs = sum(level.num_nodes * level.node_len * level.num_probes * where.sides[0].rows for level in where.levels)
    flops, counts = 2 * pairs * call.head_dim, where.class_tiles * NUM_CLASSES
    designs, sums = where.num_key_nodes * (2 * DOUBLE_BYTES + INDEX_BYTES), where.draw_tiles * DOUBLE_BYTES
    # Probes are few rows, which the cache holds.
    hashed = _hash_cost(call, "probe", call.keys)
    shares = where.classes_size * (INDEX_BYTES + 1) + designs
    scores = (
        LaunchCost("probe", hashed.read_bytes, hashed.written_bytes + parts, hashed.flops + flops, pairs),
        LaunchCost("norm", parts, norms),
        LaunchCost("score", call.keys * row + norms, where.classes_size + counts, flops, pairs),
    )
    draw = (
        LaunchCost("design", counts, designs),
        LaunchCost("sum", shares, sums),
        LaunchCost("draw", shares + sums, where.drawn_size * 2 * INDEX_BYTES),
    )
    return scores, draw


def _leaves_cost(call: CallSizes) -> LaunchCost:
    """The exact kernel's backward: it sums dq up in float32 in memory, and rounds it in the end."""
    queries, keys, (dim, value_dim), (row, value_row) = call.queries, call.keys, call.dims, call.row_bytes
    read = queries * (row + 2 * value_row + 2 * FLOAT_BYTES) + keys * (row + value_row)
    summed = queries * dim * FLOAT_BYTES
    written = queries * row + keys * (row + value_row)
    flops = 2 * call.leaf_pairs * (3 * dim + 2 * value_dim)
    return LaunchCost("leaves", read + summed, written + summed, flops, call.leaf_pairs)
