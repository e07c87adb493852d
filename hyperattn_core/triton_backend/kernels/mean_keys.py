"""Mean keys of truncated samples: the kernels that make them, how a tile of queries meets one, and its gradient.

The keys of a node that are not certain, with their values, have one mean; certain are the samples that weigh one. The
mean key weighs what the samples lack of the number of such keys, times the part of the keys that is not in a query's
block. `hyperattn_core.torch_backend.mean_keys` says the same in PyTorch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.common import SIZES, add_product, field, head_base, load_rows, product, size
from hyperattn_core.triton_backend.kernels.probe import tile_keys

#: Behind a mean key and its value in their row: log2(w), and the share 1 / U that each of its U keys has in it.
ENTRIES = tl.constexpr(2)


@triton.jit
def load_row(at, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A row (BLOCK_D) of float32; zeros past D."""
    dims = tl.arange(0, BLOCK_D)
    return tl.load(at + dims, mask=dims < D, other=0.0)


@triton.jit
def store_row(at, row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a row of D floats."""
    dims = tl.arange(0, BLOCK_D)
    tl.store(at + dims, row, mask=dims < D)


@triton.jit(do_not_specialize=SIZES)
def tile_kernel(
    k, v, tile_means,
    k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    kv_heads, num_keys, key_chunk, key_tiles,
    D: tl.constexpr, DV: tl.constexpr, TILE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """1 / TILE of the sums of keys and values of each tile that the keys are cut into for the sort: (D + DV) floats."""
    row, _, _, position, valid = tile_keys(key_tiles, key_chunk, num_keys, TILE)
    batch, head = row // kv_heads, row % kv_heads
    keys = load_rows(head_base(k, batch, head, k_stride_b, k_stride_h), position, k_stride_n, valid, D, BLOCK_D)
    values = load_rows(head_base(v, batch, head, v_stride_b, v_stride_h), position, v_stride_n, valid, DV, BLOCK_DV)
    to = tile_means + tl.program_id(0).to(tl.int64) * (D + DV)
    # Divided first, sums of finite numbers are finite.
    store_row(to, tl.sum(keys.to(tl.float32) * (1.0 / TILE), 0), D, BLOCK_D)
    store_row(to + D, tl.sum(values.to(tl.float32) * (1.0 / TILE), 0), DV, BLOCK_DV)


@triton.jit(do_not_specialize=SIZES)
def mean_kernel(
    k, v, data, weights, table, tile_means, means,
    k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    kv_heads, key_rows, key_chunk, key_tiles,
    D: tl.constexpr, DV: tl.constexpr, TILE: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """The mean key of every node of every level: the mean of its tiles, less its certain keys."""
    level = tl.program_id(1)
    num_nodes, node_len = size(table, level, "num_nodes"), size(table, level, "node_len")
    row, node = tl.program_id(0) // num_nodes, tl.program_id(0) % num_nodes
    if row < key_rows:
        num_samples = size(table, level, "num_samples")
        node_row = tl.program_id(0).to(tl.int64)
        # Nodes of keys are whole chunks of the sequence; under a causal mask, between two lies one of queries.
        tiles = node_len // key_chunk * tl.cdiv(key_chunk, TILE)
        sums = tile_means + (row.to(tl.int64) * key_tiles + 2 * node * tiles) * (D + DV)
        key = tl.zeros((BLOCK_D,), tl.float32)
        value = tl.zeros((BLOCK_DV,), tl.float32)
        for start in range(0, tiles, AT_ONCE):
            tile = start + tl.arange(0, AT_ONCE)
            part = TILE / node_len.to(tl.float32)
            key += tl.sum(load_rows(sums, tile, D + DV, tile < tiles, D, BLOCK_D) * part, 0)
            value += tl.sum(load_rows(sums + D, tile, D + DV, tile < tiles, DV, BLOCK_DV) * part, 0)
        batch, head = row // kv_heads, row % kv_heads
        k_base = head_base(k, batch, head, k_stride_b, k_stride_h)
        v_base = head_base(v, batch, head, v_stride_b, v_stride_h)
        count = node_len
        weight = tl.zeros((), tl.float32)
        for start in range(0, num_samples, AT_ONCE):
            slot = start + tl.arange(0, AT_ONCE)
            at = node_row * num_samples + slot
            drawn = slot < num_samples
            log_weight = tl.load(weights + field(table, level, "samples_drawn") + at, mask=drawn, other=-float("inf"))
            is_certain = log_weight == 0.0
            num_certain = tl.sum(is_certain.to(tl.int32), 0)
            count -= num_certain
            if num_certain > 0:
                position = tl.load(data + field(table, level, "sample_position") + at, mask=is_certain, other=0)
                part = 1.0 / node_len.to(tl.float32)
                keys = load_rows(k_base, position, k_stride_n, is_certain, D, BLOCK_D).to(tl.float32)
                values = load_rows(v_base, position, v_stride_n, is_certain, DV, BLOCK_DV).to(tl.float32)
                key -= tl.sum(keys * part, 0)
                value -= tl.sum(values * part, 0)
            weight += tl.sum(tl.where(is_certain, 0.0, tl.exp2(log_weight)), 0)
        # Where every key is sampled, or one block holds all, nothing is lacking.
        lacks = (num_samples > 0) & (num_samples < node_len)
        met = size(table, level, "block_size") * size(table, level, "blocks_per_tile")
        lack = (count.to(tl.float32) - weight) * tl.maximum(1.0 - met.to(tl.float32) / node_len.to(tl.float32), 0.0)
        lacks &= lack > 0.0
        share = tl.where(lacks, 1.0 / tl.maximum(count, 1).to(tl.float32), 0.0)
        part = node_len.to(tl.float32) * share
        to = means + (field(table, level, "key_nodes") + node_row) * (D + DV + ENTRIES)
        store_row(to, tl.where(lacks, key * part, 0.0), D, BLOCK_D)
        store_row(to + D, tl.where(lacks, value * part, 0.0), DV, BLOCK_DV)
        tl.store(to + (D + DV), tl.where(lacks, tl.log2(tl.where(lacks, lack, 1.0)), -float("inf")))
        tl.store(to + (D + DV + 1), share)


@triton.jit
def as_rows(row, dtype: tl.constexpr, TERMS: tl.constexpr):
    """The 16 rows that tensor cores take at least; the first TERMS add up to a row of float32, the others are zero."""
    rows = tl.arange(0, 16)[:, None]
    term = row.to(dtype).to(tl.float32)
    found = tl.where(rows == 0, term[None, :], 0.0)
    for place in tl.static_range(1, TERMS):
        # Of what is infinite nothing is left.
        row = tl.where(tl.abs(term) < float("inf"), row - term, 0.0)
        term = row.to(dtype).to(tl.float32)
        found = tl.where(rows == place, term[None, :], found)
    return found.to(dtype)


@triton.jit
def products(x, row):
    """The inner product of each row of x with a row of float32."""
    terms: tl.constexpr = 1 if x.dtype == tl.float32 else 3
    return tl.sum(product(x, as_rows(row, x.dtype, terms)), 1)


@triton.jit
def weighted_sum(weights, x):
    """The sum of the rows of x with weights, which are rounded to the dtype of x as those of other keys are."""
    columns = tl.trans(as_rows(weights, x.dtype, 1))
    return tl.sum(add_product(tl.trans(x), columns, tl.zeros((x.shape[1], 16), tl.float32)), 1)


@triton.jit
def meet_mean(
    x, means, table, level, key_node_row, qk_scale,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """The mean key of a node, its value, and its logits with queries x, to base 2 and with log2(w) added."""
    at = means + (field(table, level, "key_nodes") + key_node_row) * (D + DV + ENTRIES)
    key = load_row(at, D, BLOCK_D)
    logits = products(x, key) * qk_scale + tl.load(at + (D + DV))
    return key, load_row(at + D, DV, BLOCK_DV), logits


@triton.jit
def through_mean(
    x, g, row_lse, row_delta, means, table, level, key_node_row, qk_scale, part_at,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """ds k of the mean key for some queries; what they add to ds^T q and to p^T grad_out is written at part_at."""
    key, value, logits = meet_mean(x, means, table, level, key_node_row, qk_scale, D, DV, BLOCK_D, BLOCK_DV)
    p = tl.exp2(logits - row_lse)
    ds = p * (products(g, value) - row_delta)
    store_row(part_at, weighted_sum(ds, x), D, BLOCK_D)
    store_row(part_at + D, weighted_sum(p, g), DV, BLOCK_DV)
    return ds[:, None] * key[None, :]


@triton.jit(do_not_specialize=SIZES)
def mean_grad_kernel(
    data, table, means, parts, grads,
    level, group,
    D: tl.constexpr, DV: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """The gradients of each of the U keys of a mean key, for every node of a level: 1 / U of the sum of parts."""
    num_nodes, num_tiles = size(table, level, "num_nodes"), size(table, level, "num_tiles")
    key_row, node = tl.program_id(0) // num_nodes, tl.program_id(0) % num_nodes
    dk = tl.zeros((BLOCK_D,), tl.float32)
    dv = tl.zeros((BLOCK_DV,), tl.float32)
    for member in range(group):
        first_tile = ((key_row * group + member) * num_nodes + node).to(tl.int64) * num_tiles
        counts = data + field(table, level, "tile_count") + first_tile
        rows = parts + first_tile * (SPLIT * (D + DV))
        for start in range(0, num_tiles * SPLIT, AT_ONCE):
            piece = start + tl.arange(0, AT_ONCE)
            count = tl.load(counts + piece // SPLIT, mask=piece < num_tiles * SPLIT, other=0)
            # Of a piece without queries nothing was written.
            used = count > piece % SPLIT * BLOCK_M
            dk += tl.sum(load_rows(rows, piece, D + DV, used, D, BLOCK_D), 0)
            dv += tl.sum(load_rows(rows + D, piece, D + DV, used, DV, BLOCK_DV), 0)
    node_at = field(table, level, "key_nodes") + tl.program_id(0)
    share = tl.load(means + node_at * (D + DV + ENTRIES) + (D + DV + 1))
    store_row(grads + node_at * (D + DV), dk * share, D, BLOCK_D)
    store_row(grads + node_at * (D + DV) + D, dv * share, DV, BLOCK_DV)
