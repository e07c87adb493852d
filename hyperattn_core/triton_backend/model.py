"""How many bytes and operations every launch of a forward pass needs: what a measurement is to be judged by.

Bytes are those that must cross the device's memory: each launch reads each of its inputs once and writes each of its
outputs once. Rows that several tiles read are counted once, as they stay in the L2 cache between neighbouring programs
(a key block's tiles are neighbours, and a node's few samples are read by all of them). Scalars and tables are left out.

Operations are those of the matrix products, two for a multiplication with its addition; exponentials are counted apart.
Masked parts of short tiles are not counted: they are waste, not need.

`python -m hyperattn_core.triton_backend.model` prints the table for a call.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.triton_backend.geometry import SORT_TILE, Geometry, LevelGeometry, Settings, geometry

#: Columns that the projections are padded to, and the terms each is split into for half-precision inputs.
HASH_COLUMNS = 16
HASH_TERMS = 3
_INDEX_BYTES = 4
_LSE_BYTES = 4


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


def launch_costs(
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
    where = geometry(shape, Settings.of(params, is_causal=is_causal, tile_size=tile_size))
    if not where.levels:
        raise ValueError(f"attention is exact at {shape} with {params}: none of these kernels runs")
    row = head_dim * itemsize
    value_row = (value_dim or head_dim) * itemsize
    costs = [*_plan_costs(where, row, itemsize), _attend_cost(where, row, value_row, head_dim, value_dim or head_dim)]
    if is_causal:
        costs += [_leaves_cost(where, row, value_row, head_dim, value_dim or head_dim), _merge_cost(where, value_row)]
    return tuple(costs)


def floor_seconds(costs: tuple[LaunchCost, ...], flops_per_s: float, bytes_per_s: float) -> float:
    """No forward pass is faster than its bytes at full bandwidth, or its products at full rate."""
    return max(sum(c.bytes for c in costs) / bytes_per_s, sum(c.flops for c in costs) / flops_per_s)


def _plan_costs(where: Geometry, row: int, itemsize: int) -> list[LaunchCost]:
    queries, keys = where.sides
    tokens = queries.rows * queries.length + keys.rows * keys.length
    rank_bytes = tokens * (1 if where.settings.num_projections <= 8 else 2)
    histograms = tokens * where.num_ranks // SORT_TILE
    # A level holds each token as a query or as a key, or not at all.
    sorted_tokens = sum(_queries(where, level) + keys.rows * _keys(level) for level in where.levels)
    sorted_tiles = sorted_tokens * where.num_ranks // SORT_TILE
    tiles = queries.rows * sum(level.shape.num_nodes * level.num_tiles for level in where.levels)
    totals = where.totals_rows * where.num_ranks * _INDEX_BYTES
    terms = HASH_TERMS if itemsize == 2 else 1
    head_dim = row // itemsize
    return [
        LaunchCost("hash", tokens * row, rank_bytes + histograms, 2 * tokens * head_dim * HASH_COLUMNS * terms),
        LaunchCost("scan", sorted_tiles, sorted_tiles * _INDEX_BYTES + totals),
        LaunchCost("scatter", rank_bytes + sorted_tiles * _INDEX_BYTES + totals, sorted_tokens * _INDEX_BYTES),
        LaunchCost(
            "pair", totals + 2 * where.drawn_size * _INDEX_BYTES, (3 * tiles + 2 * where.drawn_size) * _INDEX_BYTES
        ),
    ]


def _attend_cost(where: Geometry, row: int, value_row: int, head_dim: int, value_dim: int) -> LaunchCost:
    read = written = pairs = 0
    for level in where.levels:
        queries, keys = _queries(where, level), where.sides[1].rows * _keys(level)
        samples = where.sides[1].rows * level.shape.num_nodes * level.num_samples
        read += queries * (row + _INDEX_BYTES) + keys * (row + value_row + _INDEX_BYTES)
        # Sampled rows are rows of the same keys: read by every program, from the cache; their indices are extra.
        read += samples * 2 * _INDEX_BYTES
        written += queries * (value_row + _LSE_BYTES)
        pairs += queries * (level.block_size + level.num_samples)
    return LaunchCost("attend", read, written, 2 * pairs * (head_dim + value_dim), pairs)


def _leaves_cost(where: Geometry, row: int, value_row: int, head_dim: int, value_dim: int) -> LaunchCost:
    queries, keys = where.sides
    full, rest = divmod(queries.length, queries.chunk_len)
    pairs = queries.rows * (full * queries.chunk_len**2 + rest**2) // 2
    read = queries.rows * queries.length * row + keys.rows * keys.length * (row + value_row)
    written = queries.rows * queries.length * (value_row + _LSE_BYTES)
    return LaunchCost("leaves", read, written, 2 * pairs * (head_dim + value_dim), pairs)


def _merge_cost(where: Geometry, value_row: int) -> LaunchCost:
    tokens = where.sides[0].rows * where.sides[0].length
    partial = sum(_queries(where, level) for level in where.levels)
    return LaunchCost(
        "merge", (tokens + partial) * (value_row + _LSE_BYTES), tokens * (value_row + _LSE_BYTES), 0, tokens + partial
    )


def _queries(where: Geometry, level: LevelGeometry) -> int:
    """Queries of a level over all rows."""
    return where.sides[0].rows * sum(level.shape.query_counts)


def _keys(level: LevelGeometry) -> int:
    """Keys of a level in one row."""
    return level.shape.num_nodes * level.shape.node_len


def main(arguments: list[str] | None = None) -> int:
    """Print the table for a call."""
    parser = argparse.ArgumentParser(prog="python -m hyperattn_core.triton_backend.model", description=__doc__)
    parser.add_argument("--seq-len", type=int, default=131072)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--causal", action="store_true")
    defaults = HyperAttentionParams()
    for name in ("block_size", "sample_size", "min_seq_len"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    given = parser.parse_args(arguments)
    try:
        params = dataclasses.replace(
            defaults, block_size=given.block_size, sample_size=given.sample_size, min_seq_len=given.min_seq_len
        )
        shape = (1, given.heads, given.heads, given.seq_len, given.seq_len)
        costs = launch_costs(shape, params, is_causal=given.causal, head_dim=given.head_dim)
    except ValueError as error:
        parser.error(str(error))
    print(f"{'launch':9}{'read MB':>10}{'written MB':>12}{'GFLOP':>10}{'10^9 exp':>10}")
    total = LaunchCost("all", *(sum(getattr(c, f.name) for c in costs) for f in dataclasses.fields(LaunchCost)[1:]))
    for cost in (*costs, total):
        print(
            f"{cost.name:9}{cost.read_bytes / 1e6:10.1f}{cost.written_bytes / 1e6:12.1f}"
            f"{cost.flops / 1e9:10.1f}{cost.exponentials / 1e9:10.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
