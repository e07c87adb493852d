"""The kernel that pairs sorted queries with key blocks, and looks up the sampled keys and what they weigh."""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.common import (
    MANY,
    NUM_COLUMNS,
    SIZES,
    bias_row,
    column,
    field,
    level_biases,
    size,
)

#: More levels than a sequence that has indices of 32 bits can have.
MAX_LEVELS = tl.constexpr(32)


@triton.jit
def larger(a, b):
    """The larger of two numbers."""
    return tl.maximum(a, b)


@triton.jit
def level_program(table, num_levels):
    """The level that a program belongs to, and its number there: the programs of one level follow those of another."""
    levels = tl.arange(0, MAX_LEVELS)
    begins = tl.load(table + levels * NUM_COLUMNS + column("pair_programs"), mask=levels < num_levels, other=MANY)
    level = tl.sum((begins <= tl.program_id(0)).to(tl.int32), 0) - 1
    return level, tl.program_id(0) - size(table, level, "pair_programs")


@triton.jit(do_not_specialize=SIZES)
def pair_kernel(
    data, weights, totals, table, drawn_index, drawn_weight, template,
    num_levels, query_rows, key_rows, num_queries, group, tile_size,
    IS_CAUSAL: tl.constexpr, BUCKET: tl.constexpr, RANKS: tl.constexpr, TILES: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """The tiles of every node's sorted queries with the key block that each meets; positions and biases of the samples.

    Bucket pairing: a rank's queries meet the block in the middle of that rank's range of sorted keys; ranks that meet
    the same block share its run of tiles. Rank pairing follows from sizes alone and is copied from `template`. A node
    takes a program for TILES of its tiles and blocks, and one for its samples.
    """
    level, number = level_program(table, num_levels)
    num_nodes = size(table, level, "num_nodes")
    num_tiles, num_blocks = size(table, level, "num_tiles"), size(table, level, "num_blocks")
    tile_programs = tl.cdiv(tl.maximum(num_tiles, num_blocks + 1), TILES)
    program, node_row = number % (tile_programs + 1), number // (tile_programs + 1)
    row, node = node_row // num_nodes, node_row % num_nodes
    if program < tile_programs:
        tile = program * TILES + tl.arange(0, TILES)
        if BUCKET:
            base = field(table, level, "totals")
            query_total = totals + (base + node_row) * RANKS
            key_total = totals + (base + (query_rows + row // group) * num_nodes + node) * RANKS
            first, count, meets, starts = bucket_tiles(
                query_total, key_total, tile, size(table, level, "block_size"), num_blocks, tile_size, RANKS
            )
        else:
            source = template + field(table, level, "template") + tile
            inside = tile < num_tiles
            first = tl.load(source + node * num_tiles, mask=inside)
            count = tl.load(source + (num_nodes + node) * num_tiles, mask=inside)
            meets = tl.load(source + (2 * num_nodes + node) * num_tiles, mask=inside)
            source += 3 * num_nodes * num_tiles + node * (num_blocks + 1)
            starts = tl.load(source, mask=tile <= num_blocks)
        to = node_row.to(tl.int64) * num_tiles + tile
        tl.store(data + field(table, level, "tile_first") + to, first, mask=tile < num_tiles)
        tl.store(data + field(table, level, "tile_count") + to, count, mask=tile < num_tiles)
        tl.store(data + field(table, level, "tile_block") + to, meets, mask=tile < num_tiles)
        to = node_row.to(tl.int64) * (num_blocks + 1) + tile
        tl.store(data + field(table, level, "block_tile") + to, starts, mask=tile <= num_blocks)
        if IS_CAUSAL:
            # The last node may have fewer queries than slots: those left over are zero, so that plans are equal.
            query_len = size(table, level, "query_len")
            held = num_queries - (2 * node + 1) * query_len
            slots = data + field(table, level, "query_order") + node_row.to(tl.int64) * query_len
            for start in range(held + program * SAMPLES, query_len, tile_programs * SAMPLES):
                slot = start + tl.arange(0, SAMPLES)
                tl.store(slots + slot, tl.zeros((SAMPLES,), tl.int32), mask=slot < query_len)
        if row % group == 0:
            key_node_row = ((row // group) * num_nodes + node).to(tl.int64)
            begin = program * TILES
            end = tl.minimum(begin + TILES, num_blocks)
            write_biases(data, table, level, drawn_index, drawn_weight, key_node_row, begin, end, SAMPLES)
    elif row < key_rows:
        num_samples = size(table, level, "num_samples")
        order = data + field(table, level, "key_order") + node_row.to(tl.int64) * field(table, level, "node_len")
        for start in range(0, num_samples, SAMPLES):
            slot = start + tl.arange(0, SAMPLES)
            inside = slot < num_samples
            to = node_row.to(tl.int64) * num_samples + slot
            drawn = field(table, level, "samples_drawn") + to
            index = tl.load(drawn_index + drawn, mask=inside, other=0)
            tl.store(data + field(table, level, "sample_index") + to, index, mask=inside)
            tl.store(data + field(table, level, "sample_position") + to, tl.load(order + index), mask=inside)
            tl.store(weights + drawn, tl.load(drawn_weight + drawn, mask=inside), mask=inside)


@triton.jit
def bucket_tiles(query_total, key_total, tile, block_size, num_blocks, tile_size, RANKS: tl.constexpr):
    """First query, query count and block of tiles of a node, and the first tile of the blocks of the same numbers."""
    last_block = num_blocks - 1
    ranks = tl.arange(0, RANKS)
    keys = tl.load(key_total + ranks)
    key_end = tl.cumsum(keys, 0)
    key_begin = key_end - keys
    previous = tl.load(key_total + ranks - 1, mask=ranks > 0, other=0)
    following = tl.load(key_total + ranks + 1, mask=ranks < RANKS - 1, other=0)
    block = tl.minimum(((key_begin + key_end) // 2) // block_size, last_block)
    before = tl.minimum(((key_begin - previous + key_begin) // 2) // block_size, last_block)
    after = tl.minimum(((key_end + key_end + following) // 2) // block_size, last_block)
    queries = tl.load(query_total + ranks)
    query_end = tl.cumsum(queries, 0)
    starts_run = (ranks == 0) | (before != block)
    ends_run = (ranks == RANKS - 1) | (after != block)
    run_begin = tl.associative_scan(tl.where(starts_run, query_end - queries, 0), 0, larger)
    run_tiles = tl.where(ends_run, tl.cdiv(query_end - run_begin, tile_size), 0)
    last_tile = tl.cumsum(run_tiles, 0)
    # The run of a tile is that of the first rank whose last tile lies behind it.
    at = tl.sum((last_tile[None, :] <= tile[:, None]).to(tl.int32), 1)
    is_run = ranks[None, :] == at[:, None]
    first = tl.sum(tl.where(is_run, (run_begin - (last_tile - run_tiles) * tile_size)[None, :], 0), 1)
    first += tile * tile_size
    end = tl.sum(tl.where(is_run, query_end[None, :], 0), 1)
    starts = tl.sum(tl.where(block[None, :] < tile[:, None], run_tiles[None, :], 0), 1)
    used = at < RANKS
    first = tl.where(used, first, 0)
    count = tl.where(used, tl.minimum(end - first, tile_size), 0)
    meets = tl.where(used, tl.sum(tl.where(is_run, block[None, :], 0), 1), last_block)
    return first, count, meets, starts


@triton.jit
def write_biases(data, table, level, drawn_index, drawn_weight, key_node_row, begin, end, SAMPLES: tl.constexpr):
    """log2(w) of the samples as queries of each block in [begin, end) meet them: -inf for those of the block, which are
    met already, and behind the last. The first program of a level writes those of the blocks' own keys as well."""
    node_len, block_size = size(table, level, "node_len"), size(table, level, "block_size")
    num_blocks, num_samples = size(table, level, "num_blocks"), size(table, level, "num_samples")
    block_row, sample_row = bias_row(block_size), bias_row(num_samples)
    bias = level_biases(data, table, level)
    if (key_node_row == 0) & (begin == 0):
        for start in range(0, block_row, SAMPLES):
            slot = start + tl.arange(0, SAMPLES)
            tl.store(bias + slot, tl.where(slot < block_size, 0.0, -float("inf")), mask=slot < block_row)
            of_last = tl.where(slot < node_len - (num_blocks - 1) * block_size, 0.0, -float("inf"))
            tl.store(bias + block_row + slot, of_last, mask=slot < block_row)
    drawn = field(table, level, "samples_drawn") + key_node_row * num_samples
    to = bias + 2 * block_row + key_node_row * num_blocks * sample_row
    for start in range(0, sample_row, SAMPLES):
        slot = start + tl.arange(0, SAMPLES)
        inside = slot < num_samples
        own = tl.load(drawn_index + drawn + slot, mask=inside, other=0) // block_size
        weight = tl.load(drawn_weight + drawn + slot, mask=inside, other=-float("inf"))
        for block in range(begin, end):
            of_block = tl.where(own == block, -float("inf"), weight)
            tl.store(to + block * sample_row + slot, of_block, mask=slot < sample_row)
