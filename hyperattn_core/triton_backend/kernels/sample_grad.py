"""The kernels of the sampled keys' gradients: parts of the queries apart, then their sum in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.attend import LOG2_E, load_rows
from hyperattn_core.triton_backend.kernels.key_grad import tile_grads
from hyperattn_core.triton_backend.kernels.level_table import (
    BLOCK_SIZE,
    BLOCK_TILE,
    NUM_BLOCKS,
    NUM_NODES,
    NUM_SAMPLES,
    NUM_TILES,
    QUERY_LEN,
    QUERY_ORDER,
    SAMPLE_INDEX,
    SAMPLE_PARTS,
    SAMPLE_POSITION,
    SAMPLES_DRAWN,
    TILE_BLOCK,
    TILE_COUNT,
    TILE_FIRST,
    WEIGHT,
    field,
)


@triton.jit(do_not_specialize=["heads", "group", "query_rows", "num_queries", "tiles_per_part"])
def sample_kernel(
    q,
    k,
    v,
    grad_out,
    lse,
    delta,
    data,
    weights,
    table,
    parts_k,
    parts_v,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    heads,
    group,
    query_rows,
    num_queries,
    tiles_per_part,
    scale,
    D: tl.constexpr,
    DV: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """What a part of a node's query tiles gives to dk and dv of BLOCK_N sampled keys, as a partial sum of its own."""
    level = tl.program_id(1)
    num_nodes = field(table, level, NUM_NODES).to(tl.int32)
    num_samples = field(table, level, NUM_SAMPLES).to(tl.int32)
    num_tiles = field(table, level, NUM_TILES).to(tl.int32)
    chunk = tl.program_id(2)
    parts = tl.cdiv(num_tiles, tiles_per_part)
    part, node_row = tl.program_id(0) % parts, tl.program_id(0) // parts
    row, node = node_row // num_nodes, node_row % num_nodes
    if (row < query_rows) & (chunk * BLOCK_N < num_samples):
        block_size = field(table, level, BLOCK_SIZE).to(tl.int32)
        num_blocks = field(table, level, NUM_BLOCKS).to(tl.int32)
        used = tl.load(data + field(table, level, BLOCK_TILE) + node_row.to(tl.int64) * (num_blocks + 1) + num_blocks)
        key_node_row = ((row // group) * num_nodes + node).to(tl.int64)
        batch, head = row // heads, row % heads
        key_head = head // group
        slot = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        met = slot < num_samples
        key = tl.load(
            data + field(table, level, SAMPLE_POSITION) + key_node_row * num_samples + slot, mask=met, other=0
        )
        index = tl.load(data + field(table, level, SAMPLE_INDEX) + key_node_row * num_samples + slot, mask=met, other=0)
        weight = tl.load(weights + field(table, level, WEIGHT) + slot, mask=met, other=-float("inf"))
        keys = load_rows(
            k + batch.to(tl.int64) * k_stride_b + key_head.to(tl.int64) * k_stride_h, key, k_stride_n, met, D, BLOCK_D
        )
        values = load_rows(
            v + batch.to(tl.int64) * v_stride_b + key_head.to(tl.int64) * v_stride_h, key, v_stride_n, met, DV, BLOCK_DV
        )
        q_base = q + batch.to(tl.int64) * q_stride_b + head.to(tl.int64) * q_stride_h
        first_row = row.to(tl.int64) * num_queries
        tiles_at = data + node_row.to(tl.int64) * num_tiles
        query_at = data + field(table, level, QUERY_ORDER) + node_row.to(tl.int64) * field(table, level, QUERY_LEN)
        first_at, count_at = tiles_at + field(table, level, TILE_FIRST), tiles_at + field(table, level, TILE_COUNT)
        block_at = tiles_at + field(table, level, TILE_BLOCK)
        slots = tl.arange(0, BLOCK_M)
        qk_scale = scale * LOG2_E
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        begin = part * tiles_per_part
        for step in range(begin * SPLIT, tl.minimum(begin + tiles_per_part, used) * SPLIT):
            tile, skipped = step // SPLIT, (step % SPLIT) * BLOCK_M
            low = tl.load(block_at + tile) * block_size
            taken = skipped + slots < tl.load(count_at + tile)
            position = tl.load(query_at + tl.load(first_at + tile) + skipped + slots, mask=taken, other=0)
            x = load_rows(q_base, position, q_stride_n, taken, D, BLOCK_D)
            g = load_rows(grad_out + first_row * DV, position, DV, taken, DV, BLOCK_DV)
            row_lse = tl.load(lse + first_row + position, mask=taken, other=float("inf")) * LOG2_E
            row_delta = tl.load(delta + first_row + position, mask=taken, other=0.0)
            bias = tl.where((index >= low) & (index < low + block_size), -float("inf"), weight)
            dk, dv = tile_grads(x, g, row_lse, row_delta, keys, values, bias, dk, dv, qk_scale)
        to = field(table, level, SAMPLE_PARTS) + (node_row.to(tl.int64) * parts + part) * num_samples + slot
        dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
        tl.store(parts_k + to[:, None] * D + dims[None, :], dk * scale, mask=met[:, None] & (dims < D)[None, :])
        tl.store(parts_v + to[:, None] * DV + value_dims[None, :], dv, mask=met[:, None] & (value_dims < DV)[None, :])


@triton.jit(do_not_specialize=["group", "key_rows", "tiles_per_part"])
def reduce_kernel(
    parts_k,
    parts_v,
    sums_k,
    sums_v,
    table,
    group,
    key_rows,
    tiles_per_part,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """Sum the parts of every sampled key's dk and dv, over the heads of its group and over parts, in a fixed order."""
    level = tl.program_id(1)
    num_nodes = field(table, level, NUM_NODES).to(tl.int32)
    num_samples = field(table, level, NUM_SAMPLES).to(tl.int32)
    parts = tl.cdiv(field(table, level, NUM_TILES).to(tl.int32), tiles_per_part)
    chunk = tl.program_id(2)
    key_node_row = tl.program_id(0)
    key_row, node = key_node_row // num_nodes, key_node_row % num_nodes
    if (key_row < key_rows) & (chunk * BLOCK_N < num_samples):
        slot = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        met = slot < num_samples
        dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
        inside = met[:, None] & (dims < D)[None, :]
        value_inside = met[:, None] & (value_dims < DV)[None, :]
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        base = field(table, level, SAMPLE_PARTS)
        for part in range(group * parts):
            node_row = ((key_row * group + part // parts) * num_nodes + node).to(tl.int64)
            at = base + (node_row * parts + part % parts) * num_samples + slot
            dk += tl.load(parts_k + at[:, None] * D + dims[None, :], mask=inside, other=0.0)
            dv += tl.load(parts_v + at[:, None] * DV + value_dims[None, :], mask=value_inside, other=0.0)
        to = field(table, level, SAMPLES_DRAWN) + key_node_row.to(tl.int64) * num_samples + slot
        tl.store(sums_k + to[:, None] * D + dims[None, :], dk, mask=inside)
        tl.store(sums_v + to[:, None] * DV + value_dims[None, :], dv, mask=value_inside)
