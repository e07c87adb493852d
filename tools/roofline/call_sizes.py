"""Sizes of a call of hyper_attention, from which its bytes, operations and peak memory are counted: no tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.packed import Settings
from hyperattn_core.triton_backend.geometry import Geometry, LevelGeometry, geometry
from hyperattn_core.triton_backend.sampling import has_means

INDEX_BYTES = 4
FLOAT_BYTES = 4
DOUBLE_BYTES = 8
# Of a log-sum-exp between the passes.
LSE_BYTES = 8


@dataclass(frozen=True)
class CallSizes:
    """One call.

    Attributes:
        shape: (B, H, Hkv, Nq, Nk).
        head_dim: D.
        value_dim: Dv, D if None.
        is_causal: of the call.
        params: the estimator's parameters, the library's defaults if not given.
        itemsize: bytes of an element of q, k, v and out.
        tile_size: queries per tile.
    """

    shape: tuple[int, int, int, int, int]
    head_dim: int
    value_dim: int | None = None
    is_causal: bool = False
    params: HyperAttentionParams = field(default_factory=HyperAttentionParams)
    itemsize: int = 2
    tile_size: int = 64

    @property
    def dims(self) -> tuple[int, int]:
        """D and Dv."""
        return self.head_dim, self.value_dim or self.head_dim

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Bytes of a row of q or k, and of a row of v or out."""
        return self.dims[0] * self.itemsize, self.dims[1] * self.itemsize

    @property
    def queries(self) -> int:
        """Queries over all rows (B * H * Nq)."""
        batch, heads, _, num_queries, _ = self.shape
        return batch * heads * num_queries

    @property
    def keys(self) -> int:
        """Keys over all rows (B * Hkv * Nk)."""
        batch, _, kv_heads, _, num_keys = self.shape
        return batch * kv_heads * num_keys

    @cached_property
    def geometry(self) -> Geometry:
        """The geometry of the call.

        Raises:
            ValueError: attention is exact at this shape, so that none of the kernels runs.
        """
        where = geometry(self.shape, Settings(self.params, self.is_causal, self.tile_size))
        if not where.levels:
            raise ValueError(f"attention is exact at {self.shape} with {self.params}: none of these kernels runs")
        return where

    @property
    def rank_bytes(self) -> int:
        """Bytes of a hash rank."""
        return 1 if self.params.num_projections <= 8 else 2

    @property
    def level_queries(self) -> int:
        """Queries of all levels, over all rows."""
        return self._over_levels(lambda level: sum(level.query_counts))

    @property
    def level_keys(self) -> int:
        """Keys of all levels, over all rows."""
        return self.geometry.sides[1].rows * sum(level.num_nodes * level.node_len for level in self.geometry.levels)

    @property
    def block_pairs(self) -> int:
        """Pairs of a query and a key of its block, of all levels."""
        return self._over_levels(lambda level: sum(level.query_counts) * level.block_size)

    @property
    def sample_pairs(self) -> int:
        """Pairs of a query and a sample, of all levels."""
        return self._over_levels(lambda level: sum(level.query_counts) * level.num_samples)

    @property
    def has_means(self) -> bool:
        """True if nodes have mean keys."""
        return has_means(self.geometry.settings)

    def node_tiles(self, level: LevelGeometry) -> int:
        """Tiles, as the sort cuts them, of the keys of a node of a level."""
        keys = self.geometry.sides[1]
        return level.node_len // keys.chunk_len * keys.tiles_per_chunk

    @property
    def leaf_pairs(self) -> int:
        """Pairs of query and key on the exact leaves of a causal call."""
        queries = self.geometry.sides[0]
        full, rest = divmod(queries.length, queries.chunk_len)
        return queries.rows * (full * queries.chunk_len**2 + rest**2) // 2

    def _over_levels(self, count: Callable[[LevelGeometry], int]) -> int:
        """The sum of a count over levels and rows of queries."""
        return self.geometry.sides[0].rows * sum(map(count, self.geometry.levels))
