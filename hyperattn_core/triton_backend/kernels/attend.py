"""The kernels of the forward pass at a plan: attend (every level of a call in one launch) and merge (causal only)."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.common import (
    LN2,
    LOG2_E,
    SIZES,
    add_product,
    field,
    head_base,
    key_sizes,
    load_rows,
    meet_keys,
    met_keys,
    node_tiles,
    row_offsets,
    size,
    tile_queries,
)
from hyperattn_core.triton_backend.kernels.mean_keys import meet_mean


@triton.jit(do_not_specialize=SIZES)
def attend_kernel(
    q, k, v, data, weights, table, means, out, lse,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    heads, group, query_rows, num_queries, scale,
    IS_CAUSAL: tl.constexpr, HAS_MEANS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, PER_TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One tile of queries against its key blocks and then the samples, in one online softmax (Algorithm 3).

    num = sum of exp(s) v over the block's keys + sum of w exp(s) v over the sampled keys outside the block, den the
    same with v = 1; out = num / den, lse = log(den). Base 2 inside; log2(w) is added to the logit. Rows are gathered
    on load and scattered on store. A non-causal call writes its result, a causal one the partial result of its level.
    If HAS_MEANS, the softmax begins with the mean key of the node.
    """
    level = tl.program_id(1)
    num_nodes, num_tiles = size(table, level, "num_nodes"), size(table, level, "num_tiles")
    node_row, tile = tl.program_id(0) // num_tiles, tl.program_id(0) % num_tiles
    row, node = node_row // num_nodes, node_row % num_nodes
    if row < query_rows:
        tiles = node_tiles(data, table, level, node_row, PER_TILE)
        if tl.load(tiles[2] + tile) > 0:
            node_len, query_len = size(table, level, "node_len"), size(table, level, "query_len")
            position, taken = tile_queries(tiles, tile, 0, BLOCK_M)
            batch, head = row // heads, row % heads
            x = load_rows(head_base(q, batch, head, q_stride_b, q_stride_h), position, q_stride_n, None, D, BLOCK_D)
            keys_at = head_base(k, batch, head // group, k_stride_b, k_stride_h), k_stride_n
            values_at = head_base(v, batch, head // group, v_stride_b, v_stride_h), v_stride_n
            key_node_row = ((row // group) * num_nodes + node).to(tl.int64)
            entries, sizes = tiles[3] + tile * PER_TILE, key_sizes(table, level)
            steps, block_steps, meets = met_keys(
                data, weights, table, level, key_node_row, entries, sizes, BLOCK_N, PER_TILE
            )
            qk_scale = scale * LOG2_E
            # So much smaller, sums of exponentials and finite values do not overflow; float16 needs it not.
            room: tl.constexpr = 0.0 if v.dtype.element_ty == tl.float16 else 16.0
            acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
            if HAS_MEANS:
                of_mean = meet_mean(x, means, table, level, key_node_row, qk_scale, D, DV, BLOCK_D, BLOCK_DV)
                mean_value, top = of_mean[1], of_mean[2]
                # The weight of the largest term so far; where that is none, its decay is zero.
                one: tl.constexpr = 2.0**-room
                total = tl.full((BLOCK_M,), one, tl.float32)
                acc += (mean_value * one)[None, :]
            else:
                top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
                total = tl.zeros((BLOCK_M,), tl.float32)
            for step in range(steps):
                _, values, logits = meet_keys(
                    x, keys_at, values_at, qk_scale, block_steps, meets, step,
                    D, DV, BLOCK_N, BLOCK_D, BLOCK_DV, PER_TILE,
                )  # fmt: skip
                new_top = tl.maximum(top, tl.max(logits, 1))
                # Where no key has been met yet there is nothing to rescale, and inf - inf would make a NaN of it.
                shift = tl.where(new_top == -float("inf"), 0.0, new_top)
                p = tl.exp2(logits - (shift + room)[:, None])
                decay = tl.exp2(top - shift)
                total = total * decay + tl.sum(p, 1)
                acc = add_product(p.to(values.dtype), values, acc * decay[:, None])
                top = new_top
            result = acc / total[:, None]
            if IS_CAUSAL:
                to = field(table, level, "partial") + node_row.to(tl.int64) * query_len - (2 * node + 1) * node_len
            else:
                to = row.to(tl.int64) * num_queries
            target = to + position
            tl.store(lse + target, (top.to(tl.float64) + (tl.log2(total) + room)) * LN2, mask=taken)
            at, inside = row_offsets(target, taken, DV, BLOCK_DV)
            tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def merge_kernel(
    out, lse, leaf_out, leaf_lse, partial_out, partial_lse, table,
    leaf_stride_l, leaf_stride_r, leaf_stride_n, leaf_lse_stride_l, leaf_lse_stride_r,
    begin, end, leaf_len, num_levels, num_queries,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
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
    top = tl.load(leaf_lse + lse_at, mask=valid, other=0.0).to(tl.float64)
    total = tl.full((BLOCK_M,), 1.0, tl.float32)
    chunk = position // leaf_len
    for level in range(num_levels):
        num_nodes, node_len = field(table, level, "num_nodes"), field(table, level, "node_len")
        held = valid & (((chunk >> level) & 1) == 1)
        node = (chunk >> (level + 1)).to(tl.int64)
        at = field(table, level, "partial") + (row * num_nodes + node) * node_len + position - (2 * node + 1) * node_len
        other = tl.load(partial_lse + at, mask=held, other=-float("inf"))
        part = tl.load(partial_out + at[:, None] * DV + dims[None, :], mask=inside & held[:, None], other=0.0)
        new_top = tl.maximum(top, other)
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        # Shares of the mean, which is never larger than its largest part.
        old_weight = total * tl.exp2(((top - shift) * LOG2_E).to(tl.float32))
        new_weight = tl.exp2(((other - shift) * LOG2_E).to(tl.float32))
        total = old_weight + new_weight
        acc = acc * (old_weight / total)[:, None] + part.to(tl.float32) * (new_weight / total)[:, None]
        top = new_top
    to = row.to(tl.int64) * num_queries + position
    tl.store(out + to[:, None] * DV + dims[None, :], acc.to(out.dtype.element_ty), mask=inside)
    tl.store(lse + to, top + tl.log2(total) * LN2, mask=valid)
