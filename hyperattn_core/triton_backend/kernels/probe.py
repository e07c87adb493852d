"""The kernels that ask probes for their keys: probe, norm and score.

A program holds a tile of keys and walks the levels in which they are keys, so that keys are read once by each kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.planning import samples
from hyperattn_core.triton_backend.kernels.common import LOG2_E, SIZES, field, head_base, load_rows, product, size
from hyperattn_core.triton_backend.kernels.plan import hash_tile

NUM_CLASSES = tl.constexpr(samples.NUM_CLASSES)
CLASS_SHIFT = tl.constexpr(samples.CLASS_SHIFT)
CLASS_OFFSET = tl.constexpr(samples.CLASS_OFFSET)
HALF_CLASS = tl.constexpr(1 << (samples.CLASS_SHIFT - 1))


@triton.jit
def tile_keys(key_tiles, key_chunk, num_keys, TILE: tl.constexpr):
    """The row of a program's tile, the tile's number in it, its chunk, its positions, and which of them there are."""
    row, tile = tl.program_id(0) // key_tiles, tl.program_id(0) % key_tiles
    tiles_per_chunk = tl.cdiv(key_chunk, TILE)
    chunk = tile // tiles_per_chunk
    token = chunk * key_chunk + (tile % tiles_per_chunk) * TILE + tl.arange(0, TILE)
    return row, tile, chunk, token, token < tl.minimum((chunk + 1) * key_chunk, num_keys)


@triton.jit
def node_of(table, level, tile, chunk, IS_CAUSAL: tl.constexpr):
    """The node that holds a tile as keys, the tile's number in it, and True if there is such a node with samples."""
    node, node_tile = 0, tile
    active = size(table, level, "num_samples") > 0
    if IS_CAUSAL:
        node = chunk >> (level + 1)
        active = active & (((chunk >> level) & 1) == 0) & (node < size(table, level, "num_nodes"))
        node_tile = tile - node * 2 * size(table, level, "probe_tiles")
    return node, node_tile, active


@triton.jit
def probe_logits(
    keys, valid, q_base, q_stride_n, positions, table, level, node, first, scale,
    IS_CAUSAL: tl.constexpr, FULL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Logits to base 2 of keys with some probes of their node (TILE, BLOCK_P), -inf where there is no key or no probe.

    With FULL all tiles of keys, and of probes, that belong to a node are full.
    """
    count = size(table, level, "num_probes")
    slot = first + tl.arange(0, BLOCK_P)
    there = slot < count
    if IS_CAUSAL:
        node_len = size(table, level, "node_len")
        position = (2 * node + 1) * node_len - count + slot
    else:
        position = tl.load(positions + slot, mask=there, other=0)
    probes = load_rows(q_base, position, q_stride_n, there, D, BLOCK_D)
    logits = product(keys, probes) * (scale * LOG2_E)
    if not FULL:
        logits = tl.where(valid[:, None] & there[None, :], logits, -float("inf"))
    return logits


@triton.jit(do_not_specialize=SIZES)
def probe_kernel(
    q, k, positions, table, part_top, part_total, directions, ranks, histograms,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n,
    kv_heads, group, num_keys, key_chunk, key_tiles, num_levels, scale, query_rows, num_queries, query_tiles,
    IS_CAUSAL: tl.constexpr, FULL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TERMS: tl.constexpr, PROJECTIONS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """For each probe and tile of keys: the largest logit to base 2, and the sum of the exponentials below it.

    And what the hash kernel makes of queries: ranks and histograms of the keys.
    """
    row, tile, chunk, token, valid = tile_keys(key_tiles, key_chunk, num_keys, TILE)
    batch, kv_head = row // kv_heads, row % kv_heads
    keys = load_rows(head_base(k, batch, kv_head, k_stride_b, k_stride_h), token, k_stride_n, valid, D, BLOCK_D)
    ranks += query_rows.to(tl.int64) * num_queries + row.to(tl.int64) * num_keys
    histograms += (query_rows.to(tl.int64) * query_tiles + row.to(tl.int64) * key_tiles + tile) * RANKS
    hash_tile(
        keys, valid, directions, ranks + token, histograms, TILE, BLOCK_D, TERMS, PROJECTIONS, COLUMNS, RANKS
    )  # fmt: skip
    for level in range(num_levels):
        node, node_tile, active = node_of(table, level, tile, chunk, IS_CAUSAL)
        if active:
            count, num_nodes = size(table, level, "num_probes"), size(table, level, "num_nodes")
            for member in range(group):
                q_base = head_base(q, batch, kv_head * group + member, q_stride_b, q_stride_h)
                node_row = ((row * group + member) * num_nodes + node).to(tl.int64)
                at = (node_row * size(table, level, "probe_tiles") + node_tile) * count
                at += field(table, level, "probe_part")
                for first in range(0, count, BLOCK_P):
                    logits = probe_logits(
                        keys, valid, q_base, q_stride_n, positions, table, level, node, first, scale,
                        IS_CAUSAL, FULL, D, BLOCK_D, BLOCK_P,
                    )  # fmt: skip
                    top = tl.max(logits, 0)
                    shift = tl.where(top == -float("inf"), 0.0, top)
                    total = tl.sum(tl.exp2(logits - shift[None, :]), 0)
                    slot = first + tl.arange(0, BLOCK_P)
                    tl.store(part_top + at + slot, top, mask=slot < count)
                    tl.store(part_total + at + slot, total, mask=slot < count)


@triton.jit(do_not_specialize=SIZES)
def norm_kernel(part_top, part_total, table, norms, query_rows, BLOCK_P: tl.constexpr, AT_ONCE: tl.constexpr):
    """The log-sum-exp to base 2 of each probe over the keys of its node."""
    level = tl.program_id(1)
    count, num_nodes = size(table, level, "num_probes"), size(table, level, "num_nodes")
    if tl.program_id(0) < query_rows * num_nodes:
        node_row, tiles = tl.program_id(0).to(tl.int64), size(table, level, "probe_tiles")
        parts = field(table, level, "probe_part") + node_row * tiles * count
        for first in range(0, count, BLOCK_P):
            slot = first + tl.arange(0, BLOCK_P)
            top = tl.full((BLOCK_P,), -float("inf"), tl.float32)
            total = tl.zeros((BLOCK_P,), tl.float32)
            for start in range(0, tiles, AT_ONCE):
                tile = start + tl.arange(0, AT_ONCE)
                inside = (tile < tiles)[:, None] & (slot < count)[None, :]
                at = parts + tile[:, None] * count + slot[None, :]
                tops = tl.load(part_top + at, mask=inside, other=-float("inf"))
                totals = tl.load(part_total + at, mask=inside, other=0.0)
                new_top = tl.maximum(top, tl.max(tops, 0))
                shift = tl.where(new_top == -float("inf"), 0.0, new_top)
                total = total * tl.exp2(top - shift) + tl.sum(totals * tl.exp2(tops - shift[None, :]), 0)
                top = new_top
            to = field(table, level, "probe_norm") + node_row * count + slot
            tl.store(norms + to, top + tl.log2(tl.where(slot < count, total, 1.0)), mask=slot < count)


@triton.jit(do_not_specialize=SIZES)
def score_kernel(
    q, k, positions, table, norms, classes, class_counts,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n,
    kv_heads, group, num_keys, key_chunk, key_tiles, num_levels, scale,
    IS_CAUSAL: tl.constexpr, FULL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The class of each key's score, which is the root mean square of the weights that the probes of its node give it,
    and how many keys of a tile are of each class."""
    row, tile, chunk, token, valid = tile_keys(key_tiles, key_chunk, num_keys, TILE)
    batch, kv_head = row // kv_heads, row % kv_heads
    keys = load_rows(head_base(k, batch, kv_head, k_stride_b, k_stride_h), token, k_stride_n, valid, D, BLOCK_D)
    numbers = tl.arange(0, NUM_CLASSES)
    for level in range(num_levels):
        node, node_tile, active = node_of(table, level, tile, chunk, IS_CAUSAL)
        if active:
            count, num_nodes = size(table, level, "num_probes"), size(table, level, "num_nodes")
            squares = tl.zeros((TILE,), tl.float32)
            for member in range(group):
                q_base = head_base(q, batch, kv_head * group + member, q_stride_b, q_stride_h)
                at = (
                    field(table, level, "probe_norm") + ((row * group + member) * num_nodes + node).to(tl.int64) * count
                )
                for first in range(0, count, BLOCK_P):
                    logits = probe_logits(
                        keys, valid, q_base, q_stride_n, positions, table, level, node, first, scale,
                        IS_CAUSAL, FULL, D, BLOCK_D, BLOCK_P,
                    )  # fmt: skip
                    slot = first + tl.arange(0, BLOCK_P)
                    norm = tl.load(norms + at + slot, mask=slot < count, other=0.0)
                    squares += tl.sum(tl.exp2(2.0 * (logits - norm[None, :])), 1)
            scores = tl.sqrt_rn(squares / (count * group))
            scores = tl.where(scores < float("inf"), scores, 0.0)  # also for a NaN
            found = ((scores.to(tl.int32, bitcast=True) + HALF_CLASS) >> CLASS_SHIFT) - CLASS_OFFSET
            found = tl.minimum(tl.maximum(found, 0), NUM_CLASSES - 1)
            node_row, node_len = (row * num_nodes + node).to(tl.int64), size(table, level, "node_len")
            start = 2 * node * node_len if IS_CAUSAL else 0
            to = field(table, level, "classes") + node_row * node_len + token - start
            tl.store(classes + to, found.to(classes.dtype.element_ty), mask=valid)
            # Keys past the end are counted in class 0, and taken out again.
            counts = tl.histogram(tl.where(valid, found, 0), NUM_CLASSES)
            counts -= tl.where(numbers == 0, TILE - tl.sum(valid.to(tl.int32), 0), 0)
            to = field(table, level, "class_tiles") + node_row * size(table, level, "probe_tiles") + node_tile
            tl.store(class_counts + to * NUM_CLASSES + numbers, counts.to(class_counts.dtype.element_ty))
