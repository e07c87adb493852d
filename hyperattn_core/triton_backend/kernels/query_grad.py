"""The kernels that make dq, and delta of every row, at a plan: from the final output and log-sum-exp of every row.

With p = w exp(s - lse) and delta = rowsum(grad_out * out) - grad_lse: ds = p (grad_out v^T - delta) and dq += ds k,
over the very keys of the forward pass. Every number is written by one program and summed in a fixed order: no atomics,
so that two runs are equal to the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.common import (
    LOG2_E,
    SIZES,
    add_product,
    head_base,
    key_sizes,
    load_grads,
    load_rows,
    meet_keys,
    met_keys,
    node_tiles,
    product,
    row_offsets,
    size,
    tile_queries,
)
from hyperattn_core.triton_backend.kernels.mean_keys import through_mean


@triton.jit
def delta_kernel(
    out, grad_out, grad_lse, delta,
    rows,
    HAS_GRAD_LSE: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(grad_out * out) - grad_lse, for rows of (B * H * Nq, Dv)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < rows
    at, inside = row_offsets(row, valid, DV, BLOCK_DV)
    values = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(values * tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32), 1)
    if HAS_GRAD_LSE:
        total -= tl.load(grad_lse + row, mask=valid, other=0.0).to(tl.float32)
    tl.store(delta + row, total, mask=valid)


@triton.jit(do_not_specialize=SIZES)
def query_kernel(
    q, k, v, grad_out, lse2, delta, data, weights, table, means, mean_parts, dq,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    level, heads, group, num_queries, scale,
    ACCUMULATE: tl.constexpr, HAS_MEANS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, PER_TILE: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """dq of one of the SPLIT pieces of a tile of queries, over its key blocks and the samples.

    It is added to what is there if ACCUMULATE. If HAS_MEANS, the mean key of the node is one of the keys, and the
    piece's part of its gradient and of its value's is written as well.
    """
    num_nodes, num_tiles = size(table, level, "num_nodes"), size(table, level, "num_tiles")
    skipped, tile = tl.program_id(0) % SPLIT * BLOCK_M, tl.program_id(0) // SPLIT % num_tiles
    node_row = tl.program_id(0) // SPLIT // num_tiles
    row, node = node_row // num_nodes, node_row % num_nodes
    tiles = node_tiles(data, table, level, node_row, PER_TILE)
    if tl.load(tiles[2] + tile) > skipped:
        position, taken = tile_queries(tiles, tile, skipped, BLOCK_M)
        entries, sizes = tiles[3] + tile * PER_TILE, key_sizes(table, level)
        batch, head = row // heads, row % heads
        first_row = row.to(tl.int64) * num_queries
        x = load_rows(head_base(q, batch, head, q_stride_b, q_stride_h), position, q_stride_n, None, D, BLOCK_D)
        g, row_lse, row_delta = load_grads(grad_out, lse2, delta, first_row, position, taken, None, DV, BLOCK_DV)
        keys_at = head_base(k, batch, head // group, k_stride_b, k_stride_h), k_stride_n
        values_at = head_base(v, batch, head // group, v_stride_b, v_stride_h), v_stride_n
        key_node_row = ((row // group) * num_nodes + node).to(tl.int64)
        steps, block_steps, meets = met_keys(
            data, weights, table, level, key_node_row, entries, sizes, BLOCK_N, PER_TILE
        )
        qk_scale = scale * LOG2_E
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        if HAS_MEANS:
            part_at = mean_parts + tl.program_id(0).to(tl.int64) * (D + DV)
            acc += through_mean(
                x, g, row_lse, row_delta, means, table, level, key_node_row, qk_scale, part_at,
                D, DV, BLOCK_D, BLOCK_DV,
            )  # fmt: skip
        for step in range(steps):
            keys, values, logits = meet_keys(
                x, keys_at, values_at, qk_scale, block_steps, meets, step, D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, PER_TILE
            )
            p = tl.exp2(logits - row_lse[:, None])
            dp = product(g, values)
            ds = p * (dp - row_delta[:, None])
            acc = add_product(ds.to(keys.dtype), keys, acc)
        acc *= scale
        to, inside = row_offsets(first_row + position, taken, D, BLOCK_D)
        if ACCUMULATE:
            acc += tl.load(dq + to, mask=inside, other=0.0)
        tl.store(dq + to, acc.to(dq.dtype.element_ty), mask=inside)
