"""Layout of a plan in flat buffers: offsets and sizes, which follow from the sizes of a call alone.

One int32 buffer holds, level after level, the sorted queries and keys, the samples, the tiles and each block's first
tile, or with "routed" pairing each block's entries in the tiles' lists; a small table of sizes and offsets tells the
kernels where, so that one launch serves all levels of a causal call.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any

from hyperattn_core.params import MAX_WEIGHT, ROUTED_KEYS, HyperAttentionParams
from hyperattn_core.planning.draws import sample_count
from hyperattn_core.planning.levels import CallShape, LevelShape, level_shapes
from hyperattn_core.planning.packed import Settings
from hyperattn_core.planning.samples import UNIT_BITS, unit_bits

TILES_PER_PART = 64
"""Query tiles whose part of the samples' gradients one program sums up."""

SORT_TILE = 128
"""Tokens that the sort ranks among themselves at once; a histogram of one byte a bucket counts them."""

DRAW_TILE = 1024
"""Sorted keys whose probabilities one program adds up."""

BIAS_STEP = 64
"""The most keys of a step of the online softmax: rows of biases are a multiple of it."""

_PAIR_ELEMENTS = 2048


def num_ranks(params: HyperAttentionParams) -> int:
    """Buckets, at least 16."""
    return max(16, 2**params.num_projections)


def pair_tiles(params: HyperAttentionParams) -> int:
    """Tiles that a program of the pair kernel looks up among the buckets."""
    return max(16, min(64, _PAIR_ELEMENTS // num_ranks(params)))


def block_dim(head_dim: int) -> int:
    """The head size in registers: the next power of two, at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def blocks_per_tile(settings: Settings) -> int:
    """Blocks that a tile meets."""
    return settings.params.block_size // ROUTED_KEYS if settings.params.pairing == "routed" else 1


def dim_constants(head_dim: int, value_dim: int) -> dict[str, int]:
    """The compile-time values that say the head sizes."""
    return {"D": head_dim, "DV": value_dim, "BLOCK_D": block_dim(head_dim), "BLOCK_DV": block_dim(value_dim)}


@dataclass(frozen=True)
class LevelGeometry(LevelShape):
    """One level: its sizes and the offsets of its parts, in elements.

    The kernels read num_nodes, node_len, query_len and every field of this class, by its name, from a table of levels.
    """

    block_size: int
    num_blocks: int
    num_tiles: int
    num_samples: int
    blocks_per_tile: int
    bias: int
    query_order: int
    key_order: int
    sample_index: int
    sample_position: int
    tile_first: int
    tile_count: int
    tile_block: int
    block_tile: int
    block_entry: int
    totals: int
    samples_drawn: int
    template: int
    partial: int
    sample_parts: int
    pair_programs: int
    num_probes: int
    probe_tiles: int
    probe_floor: int
    probe_part: int
    probe_norm: int
    classes: int
    class_tiles: int
    key_nodes: int
    draw_tiles: int
    draw_tile: int
    unit_bits: int
    max_log_weight: int

    def row(self) -> list[int]:
        """The level as a row of the table."""
        return [getattr(self, name) for name in FIELDS]


#: Columns of the table of levels.
FIELDS = ("num_nodes", "node_len", "query_len", *(f.name for f in fields(LevelGeometry)[len(fields(LevelShape)) :]))


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
        totals_rows: (row, node) pairs of all levels, queries then keys.
        num_key_nodes: those of keys alone.
        drawn_size: samples of all levels, and so float32 elements of their log weights.
        partial_rows: rows of the partial outputs of all levels; 0 when not causal.
        sample_parts_size: rows of the partial sums of the samples' gradients.
        pair_programs: programs of the pair kernel: one for pair_tiles tiles or blocks of a node, one for its samples.
        probe_parts_size: pairs of a probe and a tile of keys, of all levels; this and what follows are 0 unless kernels
            draw probed samples.
        probe_norms_size: probes of all levels.
        classes_size: keys of all levels.
        class_tiles: tiles of the keys of all levels, as the sort cuts them.
        draw_tiles: tiles of DRAW_TILE sorted keys of all levels.
    """

    shape: CallShape
    settings: Settings
    levels: tuple[LevelGeometry, ...]
    data_size: int
    totals_rows: int
    num_key_nodes: int
    drawn_size: int
    partial_rows: int
    sample_parts_size: int
    pair_programs: int
    probe_parts_size: int
    probe_norms_size: int
    classes_size: int
    class_tiles: int
    draw_tiles: int

    @property
    def draws_probed(self) -> bool:
        """True if the kernels draw probed samples."""
        return self.probe_norms_size > 0

    @property
    def num_ranks(self) -> int:
        """Buckets, at least 16 so that vectors of them have a size that the hardware likes."""
        return num_ranks(self.settings.params)

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """Queries and keys."""
        batch, heads, kv_heads, num_queries, num_keys = self.shape
        leaf = self.settings.params.min_seq_len if self.settings.is_causal else None
        return (
            Side(batch * heads, num_queries, leaf or num_queries),
            Side(batch * kv_heads, num_keys, leaf or num_keys),
        )

    @property
    def max_nodes(self) -> int:
        """The most nodes of a level."""
        return max(level.num_nodes for level in self.levels)

    @property
    def max_attend_tiles(self) -> int:
        """The most query tiles of a level, over all rows."""
        return max(level.num_tiles * level.num_nodes for level in self.levels) * self.sides[0].rows


@cache
def geometry(shape: CallShape, settings: Settings) -> Geometry:
    """The geometry of a call; no levels where attention is exact."""
    batch, heads, kv_heads, _, _ = shape
    params, is_causal = settings.params, settings.is_causal
    levels = []
    shapes = level_shapes(shape, params, is_causal=is_causal)
    # The biases of all levels come first, so that each row begins at a multiple of its step.
    bias_sizes = [_bias_size(level, batch * kv_heads, settings) for level in shapes]
    used = Counter(data_size=sum(bias_sizes))
    for level, bias_size in zip(shapes, bias_sizes, strict=True):
        block_size, num_blocks, num_tiles, per_tile = settings.tiles(level)
        samples = sample_count(level.node_len, params)
        nodes = level.num_nodes
        query_rows, key_rows = batch * heads * nodes, batch * kv_heads * nodes
        programs = -(-max(num_tiles, num_blocks + 1) // pair_tiles(params)) + 1
        probed = _probed(level, shape, settings)
        offsets: dict[str, Any] = {}
        for buffer, name, size in (
            ("bias", "bias", bias_size),
            ("data_size", "query_order", query_rows * level.query_len),
            ("data_size", "key_order", key_rows * level.node_len),
            ("data_size", "sample_index", key_rows * samples),
            ("data_size", "sample_position", key_rows * samples),
            ("data_size", "tile_first", query_rows * num_tiles),
            ("data_size", "tile_count", query_rows * num_tiles),
            ("data_size", "tile_block", query_rows * num_tiles * per_tile),
            ("data_size", "block_tile", query_rows * (num_blocks + 1)),
            ("data_size", "block_entry", query_rows * num_tiles * per_tile if params.pairing == "routed" else 0),
            ("totals_rows", "totals", query_rows + key_rows),
            ("drawn_size", "samples_drawn", key_rows * samples),
            ("template", "template", nodes * (params.pairing == "rank") * (3 * num_tiles + num_blocks + 1)),
            ("partial_rows", "partial", query_rows * level.query_len if is_causal else 0),
            ("pair_programs", "pair_programs", query_rows * programs),
            ("sample_parts_size", "sample_parts", query_rows * -(-num_tiles // TILES_PER_PART) * samples),
            ("probe_parts_size", "probe_part", query_rows * probed["probe_tiles"] * probed["num_probes"]),
            ("probe_norms_size", "probe_norm", query_rows * probed["num_probes"]),
            ("classes_size", "classes", key_rows * level.node_len * (probed["num_probes"] > 0)),
            ("class_tiles", "class_tiles", key_rows * probed["probe_tiles"]),
            ("num_key_nodes", "key_nodes", key_rows),
            ("draw_tiles", "draw_tile", key_rows * probed["draw_tiles"]),
        ):
            offsets[name] = used[buffer]
            used[buffer] += size
        offsets |= {"block_size": block_size, "num_blocks": num_blocks, "num_tiles": num_tiles, "num_samples": samples}
        offsets |= {"blocks_per_tile": per_tile, **probed}
        levels.append(LevelGeometry(**vars(level), **offsets))
    sizes = {f.name: used[f.name] for f in fields(Geometry)[3:]}
    return Geometry(shape, settings, tuple(levels), **sizes)


def _probed(level: LevelShape, shape: CallShape, settings: Settings) -> dict[str, int]:
    """Sizes that the draw of probed samples goes by, all 0 where kernels draw none."""
    params, causal = settings.params, settings.is_causal
    # Of what PyTorch sorts or routes it draws the probed samples as well.
    by_kernels = params.uses_probes and params.pairing != "routed" and params.hashing == "angular"
    if not by_kernels or sample_count(level.node_len, params) == 0:
        names = ("num_probes", "probe_tiles", "probe_floor", "draw_tiles", "unit_bits", "max_log_weight")
        return dict.fromkeys(names, 0)
    chunk = params.min_seq_len if causal else level.node_len
    (floor,) = struct.unpack("<q", struct.pack("<d", params.probe_floor))
    return {
        "num_probes": min(params.num_probes, level.node_len if causal else shape[3]),
        "probe_tiles": level.node_len // chunk * -(-chunk // SORT_TILE),
        "probe_floor": floor,
        "draw_tiles": -(-level.node_len // DRAW_TILE),
        "unit_bits": unit_bits(sample_count(level.node_len, params)),
        # In base 2; a probability is at least one unit.
        "max_log_weight": round(math.log2(MAX_WEIGHT)) if params.sampling == "truncated" else UNIT_BITS,
    }


def _bias_size(level: LevelShape, key_rows: int, settings: Settings) -> int:
    """Biases of a level: of the keys of a block and of the last block, and of the samples as each block meets them."""
    if settings.params.pairing == "routed":
        return 0
    block_size, num_blocks, _, _ = settings.tiles(level)
    samples = bias_row(sample_count(level.node_len, settings.params))
    return 2 * bias_row(block_size) + key_rows * level.num_nodes * num_blocks * samples


def bias_row(length: int) -> int:
    """The length of a row of biases of so many keys."""
    return -(-length // BIAS_STEP) * BIAS_STEP
