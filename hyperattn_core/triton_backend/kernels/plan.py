"""The kernels that hash and sort: hash, scan and scatter, a stable counting sort over the buckets.

Rows are numbered queries first (B * H), then keys (B * Hkv). A row is cut into chunks (the causal leaves; the whole
row when not causal) and these into tiles of TILE tokens. A level of the causal recursion sorts runs of whole chunks, so
hashes, tile histograms and ranks within a tile are made once and serve every level.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.kernels.common import SIZES, add_product, field, head_base, size


@triton.jit
def hash_tile(
    rows, valid, directions, ranks_to, histogram_to,
    TILE: tl.constexpr, BLOCK_D: tl.constexpr, TERMS: tl.constexpr,
    PROJECTIONS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
):  # fmt: skip
    """Store the hash rank of each row (TILE, BLOCK_D) that there is, and how often each rank occurs (Algorithm 1).

    `directions` (TERMS, BLOCK_D, COLUMNS) are the projections as a sum of TERMS numbers of the dtype of the rows, so
    that every product is exact and sums are those of float32.
    """
    dims, columns, buckets = tl.arange(0, BLOCK_D), tl.arange(0, COLUMNS), tl.arange(0, RANKS)
    projected = tl.zeros((TILE, COLUMNS), tl.float32)
    for term in tl.static_range(TERMS):
        part = tl.load(directions + (term * BLOCK_D + dims)[:, None] * COLUMNS + columns[None, :])
        projected = add_product(rows, part, projected)
    positive = (projected > 0) & (columns < PROJECTIONS)[None, :]
    code = tl.sum(tl.where(positive, 1 << columns[None, :], 0), 1)
    # The inverse of the reflected Gray code, for up to 16 bits.
    rank = code ^ (code >> 1)
    rank = rank ^ (rank >> 2)
    rank = rank ^ (rank >> 4)
    rank = rank ^ (rank >> 8)
    tl.store(ranks_to, rank.to(ranks_to.dtype.element_ty), mask=valid)
    # Rows past the end are counted in rank 0, and taken out again.
    count = tl.histogram(tl.where(valid, rank, 0), RANKS)
    count -= tl.where(buckets == 0, TILE - tl.sum(valid.to(tl.int32), 0), 0)
    tl.store(histogram_to + buckets, count.to(histogram_to.dtype.element_ty))


@triton.jit(do_not_specialize=SIZES)
def hash_kernel(
    q, k, directions, ranks, histograms,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n,
    heads, kv_heads, query_rows, num_queries, num_keys, query_chunk, key_chunk, query_tiles, key_tiles,
    D: tl.constexpr, BLOCK_D: tl.constexpr, TERMS: tl.constexpr, PROJECTIONS: tl.constexpr, COLUMNS: tl.constexpr,
    RANKS: tl.constexpr, TILE: tl.constexpr, TILES_PER_PROGRAM: tl.constexpr,
):  # fmt: skip
    """Hash rank of every query and key, and how often each rank occurs in each tile (Algorithm 1).

    With fewer programs than rows the last rows are left out: the probe kernel, which reads keys, hashes them as well.
    """
    programs = tl.cdiv(tl.maximum(query_tiles, key_tiles), TILES_PER_PROGRAM)
    row = tl.program_id(0) // programs
    if row < query_rows:
        batch, head, step = row // heads, row % heads, q_stride_n
        x = head_base(q, batch, head, q_stride_b, q_stride_h)
        length, chunk_len, tiles = num_queries, query_chunk, query_tiles
        first_token = row.to(tl.int64) * num_queries
        first_tile = row.to(tl.int64) * query_tiles
    else:
        key_row = row - query_rows
        batch, head, step = key_row // kv_heads, key_row % kv_heads, k_stride_n
        x = head_base(k, batch, head, k_stride_b, k_stride_h)
        length, chunk_len, tiles = num_keys, key_chunk, key_tiles
        first_token = query_rows.to(tl.int64) * num_queries + key_row.to(tl.int64) * num_keys
        first_tile = query_rows.to(tl.int64) * query_tiles + key_row.to(tl.int64) * key_tiles
    tiles_per_chunk = tl.cdiv(chunk_len, TILE)
    slots = tl.arange(0, TILE)
    dims = tl.arange(0, BLOCK_D)
    begin = (tl.program_id(0) % programs) * TILES_PER_PROGRAM
    for tile in range(begin, tl.minimum(begin + TILES_PER_PROGRAM, tiles)):
        chunk = tile // tiles_per_chunk
        token = chunk * chunk_len + (tile % tiles_per_chunk) * TILE + slots
        valid = token < tl.minimum((chunk + 1) * chunk_len, length)
        at = x + token.to(tl.int64)[:, None] * step + dims[None, :]
        rows = tl.load(at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)
        hash_tile(
            rows, valid, directions, ranks + first_token + token, histograms + (first_tile + tile) * RANKS,
            TILE, BLOCK_D, TERMS, PROJECTIONS, COLUMNS, RANKS,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def scan_kernel(
    histograms, bases, totals, table,
    query_rows, key_rows, query_chunks, key_chunks, query_tiles_per_chunk, key_tiles_per_chunk,
    IS_CAUSAL: tl.constexpr, RANKS: tl.constexpr, GROUP: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """For each node and rank: how many earlier tokens of the node have that rank, per tile, and how many there are."""
    level = tl.program_id(1)
    num_nodes = size(table, level, "num_nodes")
    row, node = tl.program_id(0) // num_nodes, tl.program_id(0) % num_nodes
    if row < query_rows + key_rows:
        is_query = row < query_rows
        all_tiles = query_rows.to(tl.int64) * (query_chunks * query_tiles_per_chunk)
        if is_query:
            num_chunks, per_chunk = query_chunks, query_tiles_per_chunk
            first_tile = row.to(tl.int64) * (num_chunks * per_chunk)
        else:
            num_chunks, per_chunk = key_chunks, key_tiles_per_chunk
            first_tile = all_tiles + (row - query_rows).to(tl.int64) * (num_chunks * per_chunk)
        all_tiles += key_rows.to(tl.int64) * (key_chunks * key_tiles_per_chunk)
        begin, end = 0, num_chunks
        if IS_CAUSAL:
            begin = (2 * node + is_query.to(tl.int32)) << level
            end = tl.minimum(begin + (1 << level), num_chunks)
        ranks = tl.program_id(2) * GROUP + tl.arange(0, GROUP)
        before = tl.zeros((GROUP,), tl.int32)
        for start in range(begin * per_chunk, end * per_chunk, AT_ONCE):
            tile = start + tl.arange(0, AT_ONCE)
            inside = (tile < end * per_chunk)[:, None]
            at = (first_tile + tile)[:, None] * RANKS + ranks[None, :]
            count = tl.load(histograms + at, mask=inside, other=0).to(tl.int32)
            upto = tl.cumsum(count, 0)
            tl.store(bases + level * all_tiles * RANKS + at, before[None, :] + upto - count, mask=inside)
            before += tl.sum(count, 0)
        out = field(table, level, "totals") + row * num_nodes + node
        tl.store(totals + out * RANKS + ranks, before)


@triton.jit(do_not_specialize=SIZES)
def scatter_kernel(
    ranks, histograms, bases, totals, data, table,
    num_levels, query_rows, key_rows, num_queries, num_keys, query_chunk, key_chunk, query_tiles, key_tiles,
    IS_CAUSAL: tl.constexpr, RANKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write every token where its rank and its position put it, in the order of each level that holds it."""
    tiles_per_row = tl.maximum(query_tiles, key_tiles)
    row, tile = tl.program_id(0) // tiles_per_row, tl.program_id(0) % tiles_per_row
    is_query = row < query_rows
    if is_query:
        side_row, length, chunk_len, tiles = row, num_queries, query_chunk, query_tiles
        first_token = row.to(tl.int64) * num_queries
        first_tile = row.to(tl.int64) * query_tiles
    else:
        side_row, length, chunk_len, tiles = row - query_rows, num_keys, key_chunk, key_tiles
        first_token = query_rows.to(tl.int64) * num_queries + side_row.to(tl.int64) * num_keys
        first_tile = query_rows.to(tl.int64) * query_tiles + side_row.to(tl.int64) * key_tiles
    if tile < tiles:
        all_tiles = query_rows.to(tl.int64) * query_tiles + key_rows.to(tl.int64) * key_tiles
        tiles_per_chunk = tl.cdiv(chunk_len, TILE)
        chunk = tile // tiles_per_chunk
        slots = tl.arange(0, TILE)
        token = chunk * chunk_len + (tile % tiles_per_chunk) * TILE + slots
        valid = token < tl.minimum((chunk + 1) * chunk_len, length)
        rank = tl.load(ranks + first_token + token, mask=valid, other=0).to(tl.int32)
        # Sorted by rank and then by slot; tokens past the end come last.
        key = tl.sort(tl.where(valid, rank, RANKS) * TILE + slots)
        rank, token = key // TILE, chunk * chunk_len + (tile % tiles_per_chunk) * TILE + key % TILE
        valid = rank < RANKS
        rank = tl.where(valid, rank, 0)
        buckets = tl.arange(0, RANKS)
        held = tl.load(histograms + (first_tile + tile) * RANKS + buckets).to(tl.int32)
        before = tl.cumsum(held, 0) - held
        for level in range(num_levels):
            num_nodes = size(table, level, "num_nodes")
            node = 0
            active = chunk >= 0
            if IS_CAUSAL:
                node = chunk >> (level + 1)
                active = (((chunk >> level) & 1) == is_query.to(tl.int32)) & (node < num_nodes)
            if active:
                total = tl.load(totals + (field(table, level, "totals") + row * num_nodes + node) * RANKS + buckets)
                base = tl.load(bases + (level * all_tiles + first_tile + tile) * RANKS + buckets)
                # A bucket's tokens of this tile go to a run of places, in the order that they have here.
                place = slots + tl.gather(tl.cumsum(total, 0) - total + base - before, rank, 0)
                if is_query:
                    order, node_slots = field(table, level, "query_order"), field(table, level, "query_len")
                else:
                    order, node_slots = field(table, level, "key_order"), field(table, level, "node_len")
                order += (side_row.to(tl.int64) * num_nodes + node) * node_slots
                tl.store(data + order + place, token, mask=valid)
