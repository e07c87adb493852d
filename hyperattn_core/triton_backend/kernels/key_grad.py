"""The kernel that makes dk and dv of the keys of a block at a plan, and its step, which the samples' kernel shares.

With p = w exp(s - lse) and ds = p (grad_out v^T - delta): dv += p^T grad_out and dk += ds^T q, over the queries that
meet the block; what the keys got as samples is added. As in the other kernels there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.common import (
    LOG2_E,
    ROUTED_QUERIES,
    SIZES,
    add_product,
    field,
    head_base,
    load_grads,
    load_rows,
    node_tiles,
    product,
    row_offsets,
    size,
    tile_queries,
)
from hyperattn_core.triton_backend.kernels.mean_keys import load_row


@triton.jit
def tile_grads(x, g, row_lse, row_delta, keys, values, weight, dk, dv, qk_scale):
    """Add one tile of queries to dk and dv of a set of keys, whose logits (keys, queries) `weight` is added to."""
    logits = product(keys, x) * qk_scale
    if weight is not None:
        logits += weight
    p = tl.exp2(logits - row_lse[None, :])
    dv = add_product(p.to(g.dtype), g, dv)
    ds = p * (product(values, g) - row_delta[None, :])
    return add_product(ds.to(x.dtype), x, dk), dv


@triton.jit
def samples_before(sampled, num_samples, slot):
    """The number of a node's samples, whose indices ascend, that lie before each slot."""
    before = tl.zeros(slot.shape, tl.int32)
    left = num_samples
    while left > 0:
        half = (left + 1) // 2
        before += tl.where(tl.load(sampled + before + (half - 1)) < slot, half, 0)
        left = tl.where(left > 1, left - half, 0)
    return before


@triton.jit
def sample_is(sampled, num_samples, sample, slot, valid):
    """True where valid and where the sample is the key in that slot."""
    return valid & (tl.load(sampled + sample, mask=valid & (sample < num_samples), other=-1) == slot)


@triton.jit(do_not_specialize=SIZES)
def key_kernel(
    q, k, v, grad_out, lse2, delta, data, weights, table, sums_k, sums_v, mean_grads, dk_out, dv_out,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    level, kv_heads, group, num_queries, num_keys, scale,
    ACCUMULATE: tl.constexpr, HAS_MEANS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, PER_TILE: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N keys of one block, over all queries that meet the block, and what they got as samples.

    If HAS_MEANS, what each key gets through the mean key is added.
    """
    num_nodes, node_len = size(table, level, "num_nodes"), size(table, level, "node_len")
    block_size, num_blocks = size(table, level, "block_size"), size(table, level, "num_blocks")
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
        order = data + field(table, level, "key_order") + key_node_row.to(tl.int64) * node_len
        # Past the end the last key stands again; what it gets there is not written.
        key = tl.load(order + slot, mask=met, other=0)
        keys = load_rows(head_base(k, batch, key_head, k_stride_b, k_stride_h), key, k_stride_n, met, D, BLOCK_D)
        values = load_rows(head_base(v, batch, key_head, v_stride_b, v_stride_h), key, v_stride_n, met, DV, BLOCK_DV)
        qk_scale = scale * LOG2_E
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
        for member in range(group):
            row = key_row * group + member
            node_row = (row * num_nodes + node).to(tl.int64)
            starts = data + field(table, level, "block_tile") + node_row * (num_blocks + 1) + block
            tiles = node_tiles(data, table, level, node_row, PER_TILE)
            q_base = head_base(q, batch, key_head * group + member, q_stride_b, q_stride_h)
            first_row = row.to(tl.int64) * num_queries
            for step in range(tl.load(starts) * SPLIT, tl.load(starts + 1) * SPLIT):
                if PER_TILE == 1:
                    position, taken = tile_queries(tiles, step // SPLIT, (step % SPLIT) * BLOCK_M, BLOCK_M)
                    x = load_rows(q_base, position, q_stride_n, None, D, BLOCK_D)
                    g, row_lse, row_delta = load_grads(
                        grad_out, lse2, delta, first_row, position, taken, None, DV, BLOCK_DV
                    )
                else:
                    at = field(table, level, "block_entry") + node_row * size(table, level, "num_tiles") * PER_TILE
                    entry = tl.load(data + at + step)
                    position, taken = tile_queries(tiles, entry // PER_TILE, 0, BLOCK_M)
                    taken &= tl.arange(0, BLOCK_M) >= entry % PER_TILE * ROUTED_QUERIES // PER_TILE
                    # A NaN of a query that does not meet the block stays out of it.
                    x = load_rows(q_base, position, q_stride_n, taken, D, BLOCK_D)
                    g, row_lse, row_delta = load_grads(
                        grad_out, lse2, delta, first_row, position, taken, taken, DV, BLOCK_DV
                    )
                dk, dv = tile_grads(x, g, row_lse, row_delta, keys, values, None, dk, dv, qk_scale)
        num_samples = size(table, level, "num_samples")
        sampled = data + field(table, level, "sample_index") + key_node_row.to(tl.int64) * num_samples
        sums_at = field(table, level, "samples_drawn") + key_node_row.to(tl.int64) * num_samples
        sample = samples_before(sampled, num_samples, slot)
        samples = sampled, num_samples, sample, slot, sums_at
        to = key_row.to(tl.int64) * num_keys + key
        if HAS_MEANS:
            # A sample that weighs one has no share in the mean.
            is_sampled = sample_is(sampled, num_samples, sample, slot, met)
            log_weight = tl.load(weights + sums_at + sample, mask=is_sampled, other=1.0)
            has_share = (log_weight != 0.0)[:, None]
            of_mean = mean_grads + (field(table, level, "key_nodes") + key_node_row) * (D + DV)
            dk += tl.where(has_share, load_row(of_mean, D, BLOCK_D)[None, :], 0.0)
            dv += tl.where(has_share, load_row(of_mean + D, DV, BLOCK_DV)[None, :], 0.0)
        store_grads(dv_out, dv, to, met, sums_v, samples, ACCUMULATE, DV, BLOCK_DV)
        store_grads(dk_out, dk * scale, to, met, sums_k, samples, ACCUMULATE, D, BLOCK_D)


@triton.jit
def store_grads(out, grads, to, met, sums, samples, ACCUMULATE: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write rows of gradients, with what their keys got as samples, once or several times."""
    sampled, num_samples, sample, slot, sums_at = samples
    at, inside = row_offsets(to, met, D, BLOCK_D)
    is_sampled = sample_is(sampled, num_samples, sample, slot, met)
    while tl.sum(is_sampled.to(tl.int32), 0) > 0:
        from_at, is_there = row_offsets(sums_at + sample, is_sampled, D, BLOCK_D)
        grads += tl.load(sums + from_at, mask=is_there, other=0.0)
        sample += 1
        is_sampled = sample_is(sampled, num_samples, sample, slot, is_sampled)
    if ACCUMULATE:
        grads += tl.load(out + at, mask=inside, other=0.0)
    tl.store(out + at, grads.to(out.dtype.element_ty), mask=inside)
