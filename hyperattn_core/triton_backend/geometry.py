"""Where everything of a plan lies in flat buffers: offsets and strides that follow from the sizes of a call alone.

One int32 buffer holds, level after level, the sorted queries and keys, the samples, the tiles and each block's first
tile; a small table of offsets tells the kernels where, so that one launch serves all levels of a causal call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.draws import sample_count
from hyperattn_core.planning.levels import LevelShape, level_shapes
from hyperattn_core.planning.pairing import max_tiles

TILES_PER_PART = 64
"""Query tiles whose part of the samples' gradients one program sums up."""

SORT_TILE = 128
"""Tokens that the sort ranks among themselves at once; a histogram of one byte a bucket counts them."""

# Columns of the table of levels, in the order in which the kernels read them.
FIELDS = (
    "num_nodes",
    "node_len",
    "query_len",
    "block_size",
    "num_blocks",
    "num_tiles",
    "num_samples",
    "query_order",
    "key_order",
    "sample_index",
    "sample_position",
    "tile_first",
    "tile_count",
    "tile_block",
    "block_tile",
    "weight",
    "totals",
    "samples_drawn",
    "template",
    "partial",
    "sample_parts",
)


@dataclass(frozen=True)
class Settings:
    """What a plan is made with, as plain integers: the part of a call that custom operators take as a list."""

    is_causal: bool
    block_size: int
    sample_size: int
    num_projections: int
    min_seq_len: int
    stratified: bool
    bucket: bool
    tile_size: int

    @classmethod
    def of(cls, params: HyperAttentionParams, *, is_causal: bool, tile_size: int) -> Settings:
        """The settings of a call."""
        return cls(
            is_causal, params.block_size, params.sample_size, params.num_projections, params.min_seq_len,
            params.sampling == "stratified", params.pairing == "bucket", tile_size,
        )  # fmt: skip

    @classmethod
    def from_list(cls, values: list[int]) -> Settings:
        """The inverse of to_list."""
        causal, block, sample, projections, leaf, stratified, bucket, tile = values
        return cls(bool(causal), block, sample, projections, leaf, bool(stratified), bool(bucket), tile)

    def to_list(self) -> list[int]:
        """As integers."""
        return [
            int(self.is_causal), self.block_size, self.sample_size, self.num_projections, self.min_seq_len,
            int(self.stratified), int(self.bucket), self.tile_size,
        ]  # fmt: skip

    @property
    def params(self) -> HyperAttentionParams:
        """The parameters of the estimator."""
        return HyperAttentionParams(
            block_size=self.block_size,
            sample_size=self.sample_size,
            num_projections=self.num_projections,
            min_seq_len=self.min_seq_len,
            sampling="stratified" if self.stratified else "iid",
            pairing="bucket" if self.bucket else "rank",
        )


@dataclass(frozen=True)
class LevelGeometry:
    """One level: its sizes and the offsets of its parts, in elements."""

    shape: LevelShape
    block_size: int
    num_blocks: int
    num_tiles: int
    num_samples: int
    query_order: int
    key_order: int
    sample_index: int
    sample_position: int
    tile_first: int
    tile_count: int
    tile_block: int
    block_tile: int
    weight: int
    totals: int
    samples_drawn: int
    template: int
    partial: int
    sample_parts: int

    def row(self) -> list[int]:
        """The level as a row of the table."""
        shape = self.shape
        own = {"num_nodes": shape.num_nodes, "node_len": shape.node_len, "query_len": shape.query_len}
        return [own[name] if name in own else getattr(self, name) for name in FIELDS]


@dataclass(frozen=True)
class Side:
    """The queries or the keys as the sort walks them: chunks of the sequence, each cut into tiles of SORT_TILE."""

    rows: int
    length: int
    chunk_len: int

    @property
    def tiles_per_chunk(self) -> int:
        """Tiles of a chunk; the last one may be short."""
        return -(-self.chunk_len // SORT_TILE)

    @property
    def num_chunks(self) -> int:
        """Chunks of a row; the last one may be short."""
        return -(-self.length // self.chunk_len)

    @property
    def num_tiles(self) -> int:
        """Tiles of a row."""
        return self.num_chunks * self.tiles_per_chunk


@dataclass(frozen=True, eq=False)
class Geometry:
    """All levels of a call with inputs of `shape` (B, H, Hkv, Nq, Nk). Compared by identity: geometry() keeps them.

    Attributes:
        data_size: int32 elements of the buffer that holds the plan.
        weight_size: float32 elements of the log weights of all levels.
        partial_rows: rows of the partial outputs of all levels; 0 when not causal.
        totals_rows: (row, node) pairs of all levels, queries then keys.
        drawn_size: sampled indices of all levels.
        template_size: int32 elements of the tiles that rank pairing makes from sizes alone.
        sample_parts_size: rows of the partial sums of the samples' gradients.
    """

    shape: tuple[int, int, int, int, int]
    settings: Settings
    levels: tuple[LevelGeometry, ...]
    data_size: int
    weight_size: int
    partial_rows: int
    totals_rows: int
    drawn_size: int
    template_size: int
    sample_parts_size: int

    @property
    def num_ranks(self) -> int:
        """Buckets, at least 16 so that vectors of them have a size that the hardware likes."""
        return max(16, 2**self.settings.num_projections)

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """Queries and keys."""
        batch, heads, kv_heads, num_queries, num_keys = self.shape
        leaf = self.settings.min_seq_len if self.settings.is_causal else None
        return (
            Side(batch * heads, num_queries, leaf or num_queries),
            Side(batch * kv_heads, num_keys, leaf or num_keys),
        )

    @property
    def max_nodes(self) -> int:
        """The most nodes of a level."""
        return max(level.shape.num_nodes for level in self.levels)

    @property
    def max_attend_tiles(self) -> int:
        """The most query tiles of a level, over all rows."""
        return max(level.num_tiles * level.shape.num_nodes for level in self.levels) * self.sides[0].rows

    @property
    def max_node_tiles(self) -> int:
        """The most query tiles of a node, or blocks and one where those are more."""
        return max(max(level.num_tiles, level.num_blocks + 1) for level in self.levels)


@cache
def geometry(shape: tuple[int, int, int, int, int], settings: Settings) -> Geometry:
    """The geometry of a call; no levels where attention is exact."""
    batch, heads, kv_heads, _, _ = shape
    params = settings.params
    query_rows, key_rows = batch * heads, batch * kv_heads
    data = weight = totals = drawn = template = partial = sample_parts = 0
    levels = []
    for level in level_shapes(shape, params, is_causal=settings.is_causal):
        block_size = min(settings.block_size, level.node_len)
        num_blocks = -(-level.node_len // block_size)
        num_tiles = max_tiles(level.query_len, settings.tile_size, num_blocks)
        samples = sample_count(level.node_len, params)
        nodes = level.num_nodes
        offsets = {
            "weight": weight, "totals": totals, "samples_drawn": drawn, "template": template, "partial": partial,
            "sample_parts": sample_parts,
        }  # fmt: skip
        for name, size in (
            ("query_order", query_rows * nodes * level.query_len),
            ("key_order", key_rows * nodes * level.node_len),
            ("sample_index", key_rows * nodes * samples),
            ("sample_position", key_rows * nodes * samples),
            ("tile_first", query_rows * nodes * num_tiles),
            ("tile_count", query_rows * nodes * num_tiles),
            ("tile_block", query_rows * nodes * num_tiles),
            ("block_tile", query_rows * nodes * (num_blocks + 1)),
        ):
            offsets[name] = data
            data += size
        weight += samples
        totals += (query_rows + key_rows) * nodes
        drawn += key_rows * nodes * samples
        template += 0 if settings.bucket else nodes * (3 * num_tiles + num_blocks + 1)
        partial += query_rows * nodes * level.query_len if settings.is_causal else 0
        sample_parts += query_rows * nodes * -(-num_tiles // TILES_PER_PART) * samples
        levels.append(LevelGeometry(level, block_size, num_blocks, num_tiles, samples, **offsets))
    return Geometry(shape, settings, tuple(levels), data, weight, partial, totals, drawn, template, sample_parts)
