"""The kernels of the forward pass at a plan: attend (every level of a call in one launch) and merge (causal only)."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.level_table import (
    BLOCK_SIZE,
    KEY_ORDER,
    NODE_LEN,
    NUM_NODES,
    NUM_SAMPLES,
    NUM_TILES,
    PARTIAL,
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

LN2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(base, position, step, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows (len(position), BLOCK_D) gathered by position; zeros where not valid and past D."""
    dims = tl.arange(0, BLOCK_D)
    at = base + ((position * step)[:, None] + dims[None, :])
    if BLOCK_D == D:
        return tl.load(at, mask=valid[:, None], other=0.0)
    return tl.load(at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit(do_not_specialize=["heads", "group", "query_rows", "num_queries"])
def attend_kernel(
    q,
    k,
    v,
    data,
    weights,
    table,
    out,
    lse,
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
    scale,
    IS_CAUSAL: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
):
    """One tile of sorted queries against its key block and then the samples, in one online softmax (Algorithm 3).

    num = sum of exp(s) v over the block's keys + sum of w exp(s) v over the sampled keys outside the block, den the
    same with v = 1; out = num / den, lse = log(den). Base 2 inside; log2(w) is added to the logit. Rows are gathered
    on load and scattered on store. A non-causal call writes its result, a causal one the partial result of its level.
    """
    level = tl.program_id(1)
    num_nodes = field(table, level, NUM_NODES).to(tl.int32)
    num_tiles = field(table, level, NUM_TILES).to(tl.int32)
    node_row, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    row, node = node_row // num_nodes, node_row % num_nodes
    if row < query_rows:
        tile_at = data + node_row.to(tl.int64) * num_tiles + tile
        count = tl.load(tile_at + field(table, level, TILE_COUNT))
        if count > 0:
            first = tl.load(tile_at + field(table, level, TILE_FIRST))
            block = tl.load(tile_at + field(table, level, TILE_BLOCK))
            node_len = field(table, level, NODE_LEN).to(tl.int32)
            query_len = field(table, level, QUERY_LEN).to(tl.int32)
            block_size = field(table, level, BLOCK_SIZE).to(tl.int32)
            num_samples = field(table, level, NUM_SAMPLES).to(tl.int32)
            key_node_row = ((row // group) * num_nodes + node).to(tl.int64)
            batch, head = row // heads, row % heads
            key_head = head // group
            slots = tl.arange(0, BLOCK_M)
            taken = slots < count
            query_at = field(table, level, QUERY_ORDER) + node_row.to(tl.int64) * query_len + first
            position = tl.load(data + query_at + slots, mask=taken, other=0)
            q_base = q + batch.to(tl.int64) * q_stride_b + head.to(tl.int64) * q_stride_h
            x = load_rows(q_base, position, q_stride_n, taken, D, BLOCK_D)
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
            top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
            total = tl.zeros((BLOCK_M,), tl.float32)
            acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
            for step in range(steps):
                sampled = step >= block_steps
                slot = tl.where(sampled, step - block_steps, step) * BLOCK_N + key_slots
                met = slot < tl.where(sampled, num_samples, keys_here)
                key = tl.load(data + tl.where(sampled, sampled_at, key_at) + slot, mask=met, other=0)
                keys = load_rows(k_base, key, k_stride_n, met, D, BLOCK_D)
                logits = add_product(x, tl.trans(keys), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)) * qk_scale
                # A sampled key of the tile's own block is in the sum already.
                index = tl.load(index_at + slot, mask=met & sampled, other=-1)
                weight = tl.load(weight_at + slot, mask=met & sampled, other=0.0)
                twice = (index >= low) & (index < low + block_size)
                logits += tl.where(met & ~twice, weight, -float("inf"))[None, :]
                new_top = tl.maximum(top, tl.max(logits, 1))
                # Where no key has been met yet there is nothing to rescale, and inf - inf would make a NaN of it.
                shift = tl.where(new_top == -float("inf"), 0.0, new_top)
                p = tl.exp2(logits - shift[:, None])
                decay = tl.exp2(top - shift)
                total = total * decay + tl.sum(p, 1)
                values = load_rows(v_base, key, v_stride_n, met, DV, BLOCK_DV)
                acc = add_product(p.to(values.dtype), values, acc * decay[:, None])
                top = new_top
            result = acc / total[:, None]
            if IS_CAUSAL:
                to = field(table, level, PARTIAL) + node_row.to(tl.int64) * query_len - (2 * node + 1) * node_len
            else:
                to = row.to(tl.int64) * num_queries
            target = to + position
            dims = tl.arange(0, BLOCK_DV)
            tl.store(
                out + target[:, None] * DV + dims[None, :],
                result.to(out.dtype.element_ty),
                mask=taken[:, None] & (dims < DV)[None, :],
            )
            tl.store(lse + target, (top + tl.log2(total)) * LN2, mask=taken)


@triton.jit(do_not_specialize=["begin", "end", "leaf_len", "num_levels", "num_queries"])
def merge_kernel(
    out,
    lse,
    leaf_out,
    leaf_lse,
    partial_out,
    partial_lse,
    table,
    leaf_stride_l,
    leaf_stride_r,
    leaf_stride_n,
    leaf_lse_stride_l,
    leaf_lse_stride_r,
    begin,
    end,
    leaf_len,
    num_levels,
    num_queries,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Merge the exact leaf of every position in [begin, end) with the partial results of the levels that hold it.

    out = sum_i exp(lse_i) out_i / sum_i exp(lse_i), over the leaf and each level whose bit is set in the leaf's number.
    leaf_out is (leaves, B * H, length, DV), its leaves beginning at position `begin`.
    """
    programs = tl.cdiv(end - begin, BLOCK_M)
    row = tl.program_id(0) // programs
    position = begin + (tl.program_id(0) % programs) * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_DV)
    valid = position < end
    inside = valid[:, None] & (dims < DV)[None, :]
    leaf = ((position - begin) // leaf_len).to(tl.int64)
    slot = (position - begin) % leaf_len
    leaf_at = leaf * leaf_stride_l + row.to(tl.int64) * leaf_stride_r + slot * leaf_stride_n
    acc = tl.load(leaf_out + leaf_at[:, None] + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    lse_at = leaf * leaf_lse_stride_l + row.to(tl.int64) * leaf_lse_stride_r + slot
    top = tl.load(leaf_lse + lse_at, mask=valid, other=0.0) * LOG2_E
    total = tl.full((BLOCK_M,), 1.0, tl.float32)
    chunk = position // leaf_len
    for level in range(num_levels):
        num_nodes = field(table, level, NUM_NODES)
        node_len = field(table, level, NODE_LEN)
        held = valid & (((chunk >> level) & 1) == 1)
        node = (chunk >> (level + 1)).to(tl.int64)
        at = field(table, level, PARTIAL) + (row * num_nodes + node) * node_len + position - (2 * node + 1) * node_len
        other = tl.load(partial_lse + at, mask=held, other=-float("inf")) * LOG2_E
        part = tl.load(partial_out + at[:, None] * DV + dims[None, :], mask=inside & held[:, None], other=0.0)
        new_top = tl.maximum(top, other)
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        old_weight, new_weight = tl.exp2(top - shift), tl.exp2(other - shift)
        acc = acc * old_weight[:, None] + part.to(tl.float32) * new_weight[:, None]
        total = total * old_weight + new_weight
        top = new_top
    to = row.to(tl.int64) * num_queries + position
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + to[:, None] * DV + dims[None, :], result, mask=inside)
    tl.store(lse + to, (top + tl.log2(total)) * LN2, mask=valid)
