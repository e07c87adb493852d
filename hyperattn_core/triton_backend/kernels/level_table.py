"""What all kernels share: how they read the table of levels, and their matrix product."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.geometry import FIELDS
from hyperattn_core.triton_backend.support import interpreted

INTERPRETED = tl.constexpr(interpreted())

NUM_FIELDS = tl.constexpr(len(FIELDS))
NUM_NODES = tl.constexpr(FIELDS.index("num_nodes"))
NODE_LEN = tl.constexpr(FIELDS.index("node_len"))
QUERY_LEN = tl.constexpr(FIELDS.index("query_len"))
BLOCK_SIZE = tl.constexpr(FIELDS.index("block_size"))
NUM_BLOCKS = tl.constexpr(FIELDS.index("num_blocks"))
NUM_TILES = tl.constexpr(FIELDS.index("num_tiles"))
NUM_SAMPLES = tl.constexpr(FIELDS.index("num_samples"))
QUERY_ORDER = tl.constexpr(FIELDS.index("query_order"))
KEY_ORDER = tl.constexpr(FIELDS.index("key_order"))
SAMPLE_INDEX = tl.constexpr(FIELDS.index("sample_index"))
SAMPLE_POSITION = tl.constexpr(FIELDS.index("sample_position"))
TILE_FIRST = tl.constexpr(FIELDS.index("tile_first"))
TILE_COUNT = tl.constexpr(FIELDS.index("tile_count"))
TILE_BLOCK = tl.constexpr(FIELDS.index("tile_block"))
BLOCK_TILE = tl.constexpr(FIELDS.index("block_tile"))
WEIGHT = tl.constexpr(FIELDS.index("weight"))
TOTALS = tl.constexpr(FIELDS.index("totals"))
SAMPLES_DRAWN = tl.constexpr(FIELDS.index("samples_drawn"))
TEMPLATE = tl.constexpr(FIELDS.index("template"))
SAMPLE_PARTS = tl.constexpr(FIELDS.index("sample_parts"))
PARTIAL = tl.constexpr(FIELDS.index("partial"))


@triton.jit
def field(table, level, index: tl.constexpr):
    """One entry of the table of levels."""
    return tl.load(table + level * NUM_FIELDS + index)


@triton.jit
def add_product(a, b, acc):
    """acc + a b, accumulated in float32; without tf32 where a and b are float32."""
    if INTERPRETED:  # Triton's interpreter takes the bits of a bfloat16 for an integer here.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")
