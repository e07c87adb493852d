"""What a launch needs: what a measurement is to be judged by.

Bytes are those that must cross the device's memory: each launch reads each of its inputs once and writes each of its
outputs once. Rows that several tiles read are counted once, as they stay in the L2 cache between neighbouring programs
(a key block's tiles are neighbours, and a node's few samples are read by all of them). Scalars and tables are left out.

Operations are those of the matrix products, two for a multiplication with its addition; exponentials are counted apart.
Masked parts of short tiles are not counted: they are waste, not need.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyperattn_core.triton_backend.geometry import Geometry, LevelGeometry

INDEX_BYTES = 4
FLOAT_BYTES = 4


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


def total_cost(costs: Iterable[LaunchCost], name: str = "all") -> LaunchCost:
    """The sum of launches."""
    costs = list(costs)
    return LaunchCost(
        name,
        sum(c.read_bytes for c in costs),
        sum(c.written_bytes for c in costs),
        sum(c.flops for c in costs),
        sum(c.exponentials for c in costs),
    )


def floor_seconds(costs: Iterable[LaunchCost], flops_per_s: float, bytes_per_s: float) -> float:
    """No pass is faster than its bytes at full bandwidth, or its products at full rate."""
    total = total_cost(costs)
    return max(total.bytes / bytes_per_s, total.flops / flops_per_s)


def level_queries(where: Geometry, level: LevelGeometry) -> int:
    """Queries of a level over all rows."""
    return where.sides[0].rows * sum(level.query_counts)


def level_keys(where: Geometry, level: LevelGeometry) -> int:
    """Keys of a level over all rows."""
    return where.sides[1].rows * level.num_nodes * level.node_len


def leaf_pairs(where: Geometry) -> int:
    """Pairs of query and key on the exact leaves of a causal call, over all rows."""
    queries = where.sides[0]
    full, rest = divmod(queries.length, queries.chunk_len)
    return queries.rows * (full * queries.chunk_len**2 + rest**2) // 2
