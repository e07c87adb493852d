"""The kernel that makes dk and dv of the keys of a block at a plan, and its step, which the samples' kernel shares.

With p = w exp(s - lse) and ds = p (grad_out v^T - delta): dv += p^T grad_out and dk += ds^T q, over the queries that
meet the block; what the keys got as samples is added. As in the other kernels there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.attend import LOG2_E, load_rows
from hyperattn_core.triton_backend.kernels.level_table import (
    BLOCK_SIZE,
    BLOCK_TILE,
    KEY_ORDER,
    NODE_LEN,
    NUM_BLOCKS,
    NUM_NODES,
    NUM_SAMPLES,
    NUM_TILES,
    QUERY_LEN,
    QUERY_ORDER,
    SAMPLE_INDEX,
    SAMPLES_DRAWN,
    TILE_COUNT,
    TILE_FIRST,
    add_product,
    field,
)


@triton.jit
def tile_grads(
    x,
    g,
    row_lse,
    row_delta,
    keys,
    values,
    weight,
    dk,
    dv,
    qk_scale,
):
    """Add one tile of queries to dk and dv of a set of keys: (keys, queries) logits, weight is log2(w) per key."""
    logits = add_product(keys, tl.trans(x), tl.zeros((keys.shape[0], x.shape[0]), tl.float32)) * qk_scale
    p = tl.exp2(logits + weight[:, None] - row_lse[None, :])
    dv = add_product(p.to(g.dtype), g, dv)
    dp = add_product(values, tl.trans(g), tl.zeros((keys.shape[0], x.shape[0]), tl.float32))
    ds = p * (dp - row_delta[None, :])
    return add_product(ds.to(x.dtype), x, dk), dv


@triton.jit(do_not_specialize=["level", "kv_heads", "group", "num_queries", "num_keys"])
def key_kernel(
    q,
    k,
    v,
    grad_out,
    lse,
    delta,
    data,
    table,
    sums_k,
    sums_v,
    dk_out,
    dv_out,
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
    kv_heads,
    group,
    num_queries,
    num_keys,
    scale,
    ACCUMULATE: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """dk and dv of BLOCK_N keys of one block, over all queries that meet the block, and what they got as samples."""
    num_nodes = field(table, level, NUM_NODES).to(tl.int32)
    node_len = field(table, level, NODE_LEN).to(tl.int32)
    block_size = field(table, level, BLOCK_SIZE).to(tl.int32)
    num_blocks = field(table, level, NUM_BLOCKS).to(tl.int32)
    num_tiles = field(table, level, NUM_TILES).to(tl.int32)
    num_samples = field(table, level, NUM_SAMPLES).to(tl.int32)
    pieces = tl.cdiv(block_size, BLOCK_N)
    piece, rest = tl.program_id(0) % pieces, tl.program_id(0) // pieces
    block, key_node_row = rest % num_blocks, rest // num_blocks
    key_row, node = key_node_row // num_nodes, key_node_row % num_nodes
    batch, key_head = key_row // kv_heads, key_row % kv_heads
    low = block * block_size + piece * BLOCK_N
    end = tl.minimum((block + 1) * block_size, node_len)
    slot = low + tl.arange(0, BLOCK_N)
    met = slot < end
    if low < end:
        order = data + field(table, level, KEY_ORDER) + key_node_row.to(tl.int64) * node_len
        key = tl.load(order + slot, mask=met, other=0)
        keys = load_rows(
            k + batch.to(tl.int64) * k_stride_b + key_head.to(tl.int64) * k_stride_h, key, k_stride_n, met, D, BLOCK_D
        )
        values = load_rows(
            v + batch.to(tl.int64) * v_stride_b + key_head.to(tl.int64) * v_stride_h, key, v_stride_n, met, DV, BLOCK_DV
        )
        bias = tl.where(met, 0.0, -float("inf"))
        slots = tl.arange(0, BLOCK_M)
        qk_scale = scale * LOG2_E
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        for member in range(group):
            row = key_row * group + member
            node_row = (row * num_nodes + node).to(tl.int64)
            starts = data + field(table, level, BLOCK_TILE) + node_row * (num_blocks + 1) + block
            tiles_at = data + node_row * num_tiles
            first_at, count_at = tiles_at + field(table, level, TILE_FIRST), tiles_at + field(table, level, TILE_COUNT)
            query_at = data + field(table, level, QUERY_ORDER) + node_row * field(table, level, QUERY_LEN)
            q_base = q + batch.to(tl.int64) * q_stride_b + (key_head * group + member).to(tl.int64) * q_stride_h
            first_row = row.to(tl.int64) * num_queries
            for step in range(tl.load(starts) * SPLIT, tl.load(starts + 1) * SPLIT):
                tile, skipped = step // SPLIT, (step % SPLIT) * BLOCK_M
                taken = skipped + slots < tl.load(count_at + tile)
                position = tl.load(query_at + tl.load(first_at + tile) + skipped + slots, mask=taken, other=0)
                x = load_rows(q_base, position, q_stride_n, taken, D, BLOCK_D)
                g = load_rows(grad_out + first_row * DV, position, DV, taken, DV, BLOCK_DV)
                row_lse = tl.load(lse + first_row + position, mask=taken, other=float("inf")) * LOG2_E
                row_delta = tl.load(delta + first_row + position, mask=taken, other=0.0)
                dk, dv = tile_grads(x, g, row_lse, row_delta, keys, values, bias, dk, dv, qk_scale)
        dk *= scale
        dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
        # A key that was sampled, once or several times, gets that part too; most programs find none.
        sampled = data + field(table, level, SAMPLE_INDEX) + key_node_row.to(tl.int64) * num_samples
        sums_at = field(table, level, SAMPLES_DRAWN) + key_node_row.to(tl.int64) * num_samples
        for start in range(0, num_samples, SLOTS):
            some = start + tl.arange(0, SLOTS)
            index = tl.load(sampled + some, mask=some < num_samples, other=-1)
            if tl.sum(((index >= low) & (index < end)).to(tl.int32), 0) > 0:
                for sample in range(start, tl.minimum(start + SLOTS, num_samples)):
                    here = (slot == tl.load(sampled + sample))[:, None]
                    at = sums_at + sample
                    dk += tl.where(here, tl.load(sums_k + at * D + dims, mask=dims < D, other=0.0)[None, :], 0.0)
                    part = tl.load(sums_v + at * DV + value_dims, mask=value_dims < DV, other=0.0)
                    dv += tl.where(here, part[None, :], 0.0)
        to = key_row.to(tl.int64) * num_keys + key
        at = dk_out + to[:, None] * D + dims[None, :]
        inside = met[:, None] & (dims < D)[None, :]
        value_at = dv_out + to[:, None] * DV + value_dims[None, :]
        value_inside = met[:, None] & (value_dims < DV)[None, :]
        if ACCUMULATE:
            dk += tl.load(at, mask=inside, other=0.0)
            dv += tl.load(value_at, mask=value_inside, other=0.0)
        tl.store(at, dk.to(dk_out.dtype.element_ty), mask=inside)
        tl.store(value_at, dv.to(dv_out.dtype.element_ty), mask=value_inside)
