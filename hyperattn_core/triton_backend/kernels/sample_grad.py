"""The kernels of the sampled keys' gradients: parts of the queries apart, then their sum in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.common import (
    LOG2_E,
    ROUTED_QUERIES,
    SIZES,
    block_biases,
    field,
    first_meets,
    head_base,
    load_grads,
    load_rows,
    node_tiles,
    row_offsets,
    size,
    tile_queries,
)
from hyperattn_core.triton_backend.kernels.key_grad import tile_grads


@triton.jit(do_not_specialize=SIZES)
def sample_kernel(
    q, k, v, grad_out, lse2, delta, data, weights, table, parts_k, parts_v,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    heads, group, query_rows, num_queries, tiles_per_part, scale,
    D: tl.constexpr, DV: tl.constexpr, PER_TILE: tl.constexpr, SPLIT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Partial dk and dv of BLOCK_N sampled keys, from one part of a node's query tiles."""
    level = tl.program_id(1)
    num_nodes, num_samples = size(table, level, "num_nodes"), size(table, level, "num_samples")
    parts = tl.cdiv(size(table, level, "num_tiles"), tiles_per_part)
    # Programs of the same queries follow each other, so that these are read from memory once.
    chunks = tl.maximum(tl.cdiv(num_samples, BLOCK_N), 1)
    chunk, part_row = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    part, node_row = part_row % parts, part_row // parts
    row, node = node_row // num_nodes, node_row % num_nodes
    if (row < query_rows) & (num_samples > 0):
        num_blocks = size(table, level, "num_blocks")
        if PER_TILE > 1:
            # The last node of a level of a causal call may have fewer queries than slots; its last tiles have none.
            query_len = size(table, level, "query_len")
            held = num_queries - tl.where(query_len < num_queries, (2 * node + 1) * query_len, 0)
            used = tl.cdiv(tl.minimum(held, query_len), ROUTED_QUERIES)
        else:
            used_at = field(table, level, "block_tile") + node_row.to(tl.int64) * (num_blocks + 1) + num_blocks
            used = tl.load(data + used_at)
        batch, head = row // heads, row % heads
        slot = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        met = slot < num_samples
        key_node_row = ((row // group) * num_nodes + node).to(tl.int64)
        at = key_node_row * num_samples + slot
        key = tl.load(data + field(table, level, "sample_position") + at, mask=met, other=0)
        if PER_TILE > 1:
            block_size = size(table, level, "block_size")
            block = tl.load(data + field(table, level, "sample_index") + at, mask=met, other=0) // block_size
            weight = tl.load(weights + field(table, level, "samples_drawn") + at, mask=met, other=-float("inf"))
        k_base = head_base(k, batch, head // group, k_stride_b, k_stride_h)
        v_base = head_base(v, batch, head // group, v_stride_b, v_stride_h)
        keys = load_rows(k_base, key, k_stride_n, met, D, BLOCK_D)
        values = load_rows(v_base, key, v_stride_n, met, DV, BLOCK_DV)
        q_base = head_base(q, batch, head, q_stride_b, q_stride_h)
        first_row = row.to(tl.int64) * num_queries
        tiles = node_tiles(data, table, level, node_row, PER_TILE)
        qk_scale = scale * LOG2_E
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        begin = part * tiles_per_part
        for step in range(begin * SPLIT, tl.minimum(begin + tiles_per_part, used) * SPLIT):
            entries = tiles[3] + step // SPLIT * PER_TILE
            position, taken = tile_queries(tiles, step // SPLIT, (step % SPLIT) * BLOCK_M, BLOCK_M)
            x = load_rows(q_base, position, q_stride_n, None, D, BLOCK_D)
            g, row_lse, row_delta = load_grads(grad_out, lse2, delta, first_row, position, taken, None, DV, BLOCK_DV)
            if PER_TILE == 1:
                # A row of biases is as long as a multiple of BLOCK_N, and -inf behind the last sample.
                row_at = block_biases(data, table, level, key_node_row, tl.load(entries))[1]
                bias = tl.load(row_at + slot)[:, None]
            else:
                upto = first_meets(entries, block, PER_TILE)
                is_outside = tl.arange(0, BLOCK_M)[None, :] < upto[:, None]
                bias = tl.where(is_outside, weight[:, None], -float("inf"))
            dk, dv = tile_grads(x, g, row_lse, row_delta, keys, values, bias, dk, dv, qk_scale)
        to = field(table, level, "sample_parts") + (node_row.to(tl.int64) * parts + part) * num_samples + slot
        at, inside = row_offsets(to, met, D, BLOCK_D)
        tl.store(parts_k + at, dk * scale, mask=inside)
        at, inside = row_offsets(to, met, DV, BLOCK_DV)
        tl.store(parts_v + at, dv, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(
    parts_k, parts_v, sums_k, sums_v, table,
    group, key_rows, tiles_per_part,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Sum the parts of every sampled key's dk and dv, over the heads of its group and over parts, in a fixed order."""
    level, chunk = tl.program_id(1), tl.program_id(2)
    num_nodes, num_samples = size(table, level, "num_nodes"), size(table, level, "num_samples")
    parts = tl.cdiv(size(table, level, "num_tiles"), tiles_per_part)
    key_node_row = tl.program_id(0)
    key_row, node = key_node_row // num_nodes, key_node_row % num_nodes
    if (key_row < key_rows) & (chunk * BLOCK_N < num_samples):
        slot = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        met = slot < num_samples
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        base = field(table, level, "sample_parts")
        for part in range(group * parts):
            node_row = ((key_row * group + part // parts) * num_nodes + node).to(tl.int64)
            row = base + (node_row * parts + part % parts) * num_samples + slot
            at, inside = row_offsets(row, met, D, BLOCK_D)
            dk += tl.load(parts_k + at, mask=inside, other=0.0)
            at, inside = row_offsets(row, met, DV, BLOCK_DV)
            dv += tl.load(parts_v + at, mask=inside, other=0.0)
        to = field(table, level, "samples_drawn") + key_node_row.to(tl.int64) * num_samples + slot
        at, inside = row_offsets(to, met, D, BLOCK_D)
        tl.store(sums_k + at, dk, mask=inside)
        at, inside = row_offsets(to, met, DV, BLOCK_DV)
        tl.store(sums_v + at, dv, mask=inside)
