"""Device functions that the kernels share: the table of levels, gathered rows, matrix products.

They are inlined, so a shared prologue costs what the same lines in each kernel would (`make kernels`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core import params
from hyperattn_core.triton_backend import geometry
from hyperattn_core.triton_backend.geometry import FIELDS
from hyperattn_core.triton_backend.support import interpreted

#: Arguments that change with the sizes of a call: Triton does not compile a kernel anew for some of their values.
SIZES = [
    "level", "num_levels", "begin", "end", "leaf_len", "heads", "kv_heads", "group", "query_rows", "key_rows",
    "num_queries", "num_keys", "query_chunk", "key_chunk", "query_chunks", "key_chunks", "query_tiles", "key_tiles",
    "query_tiles_per_chunk", "key_tiles_per_chunk", "tile_size", "tiles_per_part",
]  # fmt: skip

LOG2_E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
BIAS_STEP = tl.constexpr(geometry.BIAS_STEP)
ROUTED_QUERIES = tl.constexpr(params.ROUTED_QUERIES)
#: More than the queries of a tile, or the programs of a launch.
MANY = tl.constexpr((1 << 31) - 1)
INTERPRETED = tl.constexpr(interpreted())
# As constants, so that a kernel compiled for another table is not taken from Triton's cache.
COLUMNS = tl.constexpr({name: index for index, name in enumerate(FIELDS)})
NUM_COLUMNS = tl.constexpr(len(FIELDS))


@triton.constexpr_function
def column(name):
    """The column of a field in the table of levels."""
    return COLUMNS.value[name]


@triton.jit
def field(table, level, name: tl.constexpr):
    """An entry of the table of levels, int64."""
    return tl.load(table + level * NUM_COLUMNS + column(name))


@triton.jit
def size(table, level, name: tl.constexpr):
    """An entry of the table of levels, int32: a size, not an offset."""
    return field(table, level, name).to(tl.int32)


@triton.jit
def head_base(x, batch, head, stride_b, stride_h):
    """The first row of one head."""
    return x + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h


@triton.jit
def load_rows(base, position, step, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows (len(position), BLOCK_D) gathered by position; zeros where not valid (None: all are) and past D."""
    dims = tl.arange(0, BLOCK_D)
    at = base + ((position * step)[:, None] + dims[None, :])
    if valid is None:
        if BLOCK_D == D:
            rows = tl.load(at)
        else:
            rows = tl.load(at, mask=(dims < D)[None, :], other=0.0)
    elif BLOCK_D == D:
        rows = tl.load(at, mask=valid[:, None], other=0.0)
    else:
        rows = tl.load(at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)
    return rows


@triton.jit
def row_offsets(row, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets of rows (len(row), BLOCK_D) of a contiguous (..., D), and the mask of what is there."""
    dims = tl.arange(0, BLOCK_D)
    return row[:, None] * D + dims[None, :], valid[:, None] & (dims < D)[None, :]


@triton.jit
def add_product(a, b, acc):
    """acc + a b, accumulated in float32; without tf32 where a and b are float32."""
    if INTERPRETED:  # Triton's interpreter takes the bits of a bfloat16 for an integer here.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def product(a, b):
    """a b^T in float32."""
    return add_product(a, tl.trans(b), tl.zeros((a.shape[0], b.shape[0]), tl.float32))


@triton.jit
def node_tiles(data, table, level, node_row, PER_TILE: tl.constexpr):
    """Pointers to the sorted queries of a node, and to first query, query count and PER_TILE blocks of its tiles."""
    first_tile = node_row.to(tl.int64) * size(table, level, "num_tiles")
    tile_at = data + first_tile
    query_at = data + field(table, level, "query_order") + node_row.to(tl.int64) * field(table, level, "query_len")
    return (
        query_at,
        tile_at + field(table, level, "tile_first"),
        tile_at + field(table, level, "tile_count"),
        data + field(table, level, "tile_block") + first_tile * PER_TILE,
    )


@triton.jit
def tile_queries(tiles, tile, skipped, BLOCK_M: tl.constexpr):
    """Positions of BLOCK_M queries of a tile that is in use, after those skipped, and which of them there are.

    Where there is none, the last query of the tile stands again.
    """
    query_at, first_at, count_at, _ = tiles
    slot = skipped + tl.arange(0, BLOCK_M)
    count = tl.load(count_at + tile)
    return tl.load(query_at + (tl.load(first_at + tile) + tl.minimum(slot, count - 1))), slot < count


@triton.jit
def load_grads(grad_out, lse2, delta, first_row, position, taken, valid, DV: tl.constexpr, BLOCK_DV: tl.constexpr):
    """Rows of grad_out (zero where not valid), lse2 and delta of some queries; an lse2 of +inf where not taken: it
    weighs zero."""
    g = load_rows(grad_out + first_row * DV, position, DV, valid, DV, BLOCK_DV)
    row_lse = tl.where(taken, tl.load(lse2 + first_row + position), float("inf"))
    return g, row_lse, tl.load(delta + first_row + position)


@triton.jit
def key_sizes(table, level):
    """Keys of a node, of a block, and samples. Apart from met_keys, as registers depend on where they are read."""
    return size(table, level, "node_len"), size(table, level, "block_size"), size(table, level, "num_samples")


@triton.jit
def met_keys(data, weights, table, level, key_node_row, entries, sizes, BLOCK_N: tl.constexpr, PER_TILE: tl.constexpr):
    """Keys that a tile meets, of its PER_TILE blocks at `entries` and then the samples: the number of steps of BLOCK_N,
    how many of them are of blocks, and what meet_keys reads."""
    node_len, block_size, num_samples = sizes
    key_at = data + field(table, level, "key_order") + key_node_row * node_len
    sampled_at = data + field(table, level, "sample_position") + key_node_row * num_samples
    if PER_TILE == 1:
        block = tl.load(entries)
        keys_here = tl.minimum(block_size, node_len - block * block_size)
        listed = block_biases(data, table, level, key_node_row, block)
        key_at += block * block_size
    else:
        keys_here = PER_TILE * block_size
        index_at = data + field(table, level, "sample_index") + key_node_row * num_samples
        weight_at = weights + field(table, level, "samples_drawn") + key_node_row * num_samples
        listed = weight_at, index_at, entries, block_size, node_len
    block_steps = tl.cdiv(keys_here, BLOCK_N)
    meets = key_at, sampled_at, num_samples, keys_here, listed
    return block_steps + tl.cdiv(num_samples, BLOCK_N), block_steps, meets


@triton.jit
def bias_row(length):
    """The length of a row of biases of so many keys."""
    return tl.cdiv(length, BIAS_STEP) * BIAS_STEP


@triton.jit
def block_biases(data, table, level, key_node_row, block):
    """Pointers to log2(w) of a block's own keys and of the samples, as its queries meet them."""
    num_blocks, row = size(table, level, "num_blocks"), bias_row(size(table, level, "block_size"))
    bias = level_biases(data, table, level)
    of_samples = (key_node_row * num_blocks + block) * bias_row(size(table, level, "num_samples"))
    return bias + tl.where(block == num_blocks - 1, row, 0), bias + 2 * row + of_samples


@triton.jit
def level_biases(data, table, level):
    """Pointer to the biases of a level, float32: of the keys of a block, of the last block, and of the samples."""
    return data.to(tl.pointer_type(tl.float32)) + field(table, level, "bias")


@triton.jit
def meet_keys(
    x, keys_at, values_at, qk_scale, block_steps, meets, step,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PER_TILE: tl.constexpr,
):  # fmt: skip
    """The keys of one step of BLOCK_N: their rows, those of their values, and the logits of queries x, to base 2 and
    with log2(w) added. keys_at and values_at are the first row of a head and the step between rows."""
    k_base, k_stride_n = keys_at
    v_base, v_stride_n = values_at
    if PER_TILE == 1:
        key, weight = step_keys(block_steps, meets, step, BLOCK_N)
        keys = load_rows(k_base, key, k_stride_n, None, D, BLOCK_D)
        logits = product(x, keys) * qk_scale + weight[None, :]
        values = load_rows(v_base, key, v_stride_n, None, DV, BLOCK_DV)
    else:
        key, met, weight = step_listed_keys(block_steps, meets, step, x.shape[0], BLOCK_N, PER_TILE)
        keys = load_rows(k_base, key, k_stride_n, met, D, BLOCK_D)
        logits = product(x, keys) * qk_scale
        # A NaN of a key stays with the queries that meet it.
        logits = tl.where(weight == -float("inf"), weight, logits + weight)
        values = load_rows(v_base, key, v_stride_n, met, DV, BLOCK_DV)
    return keys, values, logits


@triton.jit
def step_keys(block_steps, meets, step, BLOCK_N: tl.constexpr):
    """The keys of one step of a tile that meets one block: positions, and log2(w) (BLOCK_N).

    Past the end the last key stands again, with a weight of zero, so that nothing need be masked.
    """
    key_at, sampled_at, num_samples, keys_here, biases = meets
    block_bias, sample_bias = biases
    sampled = step >= block_steps
    slot = tl.where(sampled, step - block_steps, step) * BLOCK_N + tl.arange(0, BLOCK_N)
    last = tl.where(sampled, num_samples, keys_here) - 1
    key = tl.load(tl.where(sampled, sampled_at, key_at) + tl.minimum(slot, last))
    bias_at = tl.where(sampled, sample_bias, block_bias) + slot
    # Rows of biases are aligned, which the compiler cannot see.
    return key, tl.load(tl.max_contiguous(tl.multiple_of(bias_at, [16]), [BLOCK_N]))


@triton.jit
def step_listed_keys(block_steps, meets, step, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PER_TILE: tl.constexpr):
    """The keys of one step of a tile with a list of blocks: positions, which of them there are, and log2(w)
    (BLOCK_M, BLOCK_N), which is -inf for those that a query does not meet, or has met already."""
    key_at, sampled_at, num_samples, keys_here, listed = meets
    weight_at, index_at, entries, block_size, node_len = listed
    sampled = step >= block_steps
    slot = tl.where(sampled, step - block_steps, step) * BLOCK_N + tl.arange(0, BLOCK_N)
    met = slot < tl.where(sampled, num_samples, keys_here)
    block = tl.load(entries + slot // block_size, mask=met & ~sampled, other=0)
    at = tl.where(sampled, slot, block * block_size + slot % block_size)
    met = met & (block >= 0) & (sampled | (at < node_len))
    key = tl.load(tl.where(sampled, sampled_at, key_at) + at, mask=met, other=0)
    index = tl.load(index_at + slot, mask=met & sampled, other=-1)
    weight = tl.load(weight_at + slot, mask=met & sampled, other=0.0)
    query = tl.arange(0, BLOCK_M)[:, None]
    met_from = slot // block_size * ROUTED_QUERIES // PER_TILE
    met_upto = first_meets(entries, tl.where(sampled & met, index // block_size, -2), PER_TILE)
    is_in = met[None, :] & tl.where(sampled, query < met_upto[None, :], query >= met_from[None, :])
    return key, met, tl.where(is_in, weight[None, :], -float("inf"))


@triton.jit
def first_meets(entries, block, PER_TILE: tl.constexpr):
    """The first query of a tile that meets each of some blocks, by the tile's list; many where none does."""
    places = tl.arange(0, triton.next_power_of_2(PER_TILE))
    listed = tl.load(entries + places, mask=places < PER_TILE, other=-1)
    first = tl.where(listed[None, :] == block[:, None], (places * ROUTED_QUERIES // PER_TILE)[None, :], MANY)
    return tl.min(first, 1)
