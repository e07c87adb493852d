"""The kernels that make dq, and delta of every row, at a plan: from the final output and log-sum-exp of every row.

With p = w exp(s - lse) and delta = rowsum(grad_out * out) - grad_lse: ds = p (grad_out v^T - delta) and dq += ds k,
over the very keys of the forward pass. Every number is written by one program and summed in a fixed order: no atomics,
so that two runs are equal to the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.attend import LOG2_E, load_rows
from hyperattn_core.triton_backend.kernels.level_table import (
    BLOCK_SIZE,
    KEY_ORDER,
    NODE_LEN,
    NUM_NODES,
    NUM_SAMPLES,
    NUM_TILES,
    QUERY_LEN,
    QUERY_ORDER,
    SAMPLE_INDEX,
    SAMPLE_POSITION,
    TILE_BLOCK,
    TILE_COUNT,
    TILE_FIRST,
    WEIGHT,
    add_product,
    field,
)


@triton.jit
def delta_kernel(
    out,
    grad_out,
    grad_lse,
    delta,
    rows,
    HAS_GRAD_LSE: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """delta = rowsum(grad_out * out) - grad_lse, for rows of (B * H * Nq, Dv)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_DV)
    valid = row < rows
    at = row[:, None] * DV + dims[None, :]
    inside = valid[:, None] & (dims < DV)[None, :]
    total = tl.sum(
        tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
        * tl.load(grad_out + at, mask=inside, other=0.0).to(tl.float32),
        1,
    )
    if HAS_GRAD_LSE:
        total -= tl.load(grad_lse + row, mask=valid, other=0.0)
    tl.store(delta + row, total, mask=valid)


@triton.jit(do_not_specialize=["level", "heads", "group", "num_queries"])
def query_kernel(
    q,
    k,
    v,
    grad_out,
    lse,
    delta,
    data,
    weights,
    table,
    dq,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    level,
    heads,
    group,
    num_queries,
    scale,
    ACCUMULATE: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """dq of one of the SPLIT pieces of a tile of queries, over its key block and the samples.

    It is added to what is there if ACCUMULATE.
    """
    num_nodes = field(table, level, NUM_NODES).to(tl.int32)
    num_tiles = field(table, level, NUM_TILES).to(tl.int32)
    piece, tile = tl.program_id(0) % SPLIT, tl.program_id(0) // SPLIT % num_tiles
    node_row = tl.program_id(0) // SPLIT // num_tiles
    row, node = node_row // num_nodes, node_row % num_nodes
    tile_at = data + node_row.to(tl.int64) * num_tiles + tile
    count = tl.load(tile_at + field(table, level, TILE_COUNT)) - piece * BLOCK_M
    if count > 0:
        first = tl.load(tile_at + field(table, level, TILE_FIRST)) + piece * BLOCK_M
        block = tl.load(tile_at + field(table, level, TILE_BLOCK))
        node_len = field(table, level, NODE_LEN).to(tl.int32)
        block_size = field(table, level, BLOCK_SIZE).to(tl.int32)
        num_samples = field(table, level, NUM_SAMPLES).to(tl.int32)
        key_node_row = ((row // group) * num_nodes + node).to(tl.int64)
        batch, head = row // heads, row % heads
        key_head = head // group
        slots = tl.arange(0, BLOCK_M)
        taken = slots < count
        query_at = field(table, level, QUERY_ORDER) + node_row.to(tl.int64) * field(table, level, QUERY_LEN) + first
        position = tl.load(data + query_at + slots, mask=taken, other=0)
        first_row = row.to(tl.int64) * num_queries
        x = load_rows(
            q + batch.to(tl.int64) * q_stride_b + head.to(tl.int64) * q_stride_h,
            position,
            q_stride_n,
            taken,
            D,
            BLOCK_D,
        )
        g = load_rows(grad_out + first_row * DV, position, DV, taken, DV, BLOCK_DV)
        row_lse = tl.load(lse + first_row + position, mask=taken, other=float("inf")) * LOG2_E
        row_delta = tl.load(delta + first_row + position, mask=taken, other=0.0)
        k_base = k + batch.to(tl.int64) * k_stride_b + key_head.to(tl.int64) * k_stride_h
        v_base = v + batch.to(tl.int64) * v_stride_b + key_head.to(tl.int64) * v_stride_h

        low = block * block_size
        keys_here = tl.minimum(block_size, node_len - low)
        block_steps = tl.cdiv(keys_here, BLOCK_N)
        steps = block_steps + tl.cdiv(num_samples, BLOCK_N)
        key_at = field(table, level, KEY_ORDER) + key_node_row * node_len + low
        sampled_at = field(table, level, SAMPLE_POSITION) + key_node_row * num_samples
        index_at = data + field(table, level, SAMPLE_INDEX) + key_node_row * num_samples
        weight_at = weights + field(table, level, WEIGHT)
        key_slots = tl.arange(0, BLOCK_N)
        qk_scale = scale * LOG2_E
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for step in range(steps):
            sampled = step >= block_steps
            slot = tl.where(sampled, step - block_steps, step) * BLOCK_N + key_slots
            met = slot < tl.where(sampled, num_samples, keys_here)
            key = tl.load(data + tl.where(sampled, sampled_at, key_at) + slot, mask=met, other=0)
            keys = load_rows(k_base, key, k_stride_n, met, D, BLOCK_D)
            values = load_rows(v_base, key, v_stride_n, met, DV, BLOCK_DV)
            index = tl.load(index_at + slot, mask=met & sampled, other=-1)
            weight = tl.load(weight_at + slot, mask=met & sampled, other=0.0)
            twice = (index >= low) & (index < low + block_size)
            logits = add_product(x, tl.trans(keys), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)) * qk_scale
            logits += tl.where(met & ~twice, weight, -float("inf"))[None, :]
            p = tl.exp2(logits - row_lse[:, None])
            dp = add_product(g, tl.trans(values), tl.zeros((BLOCK_M, BLOCK_N), tl.float32))
            ds = p * (dp - row_delta[:, None])
            acc = add_product(ds.to(keys.dtype), keys, acc)
        acc *= scale
        dims = tl.arange(0, BLOCK_D)
        to = dq + (first_row + position)[:, None] * D + dims[None, :]
        inside = taken[:, None] & (dims < D)[None, :]
        if ACCUMULATE:
            acc += tl.load(to, mask=inside, other=0.0)
        tl.store(to, acc.to(dq.dtype.element_ty), mask=inside)
