"""The kernels that make a plan: hash, scan, scatter (a stable counting sort over the buckets), pair.

Rows are numbered queries first (B * H), then keys (B * Hkv). A row is cut into chunks (the causal leaves; the whole
row when not causal) and these into tiles of TILE tokens. A level of the causal recursion sorts runs of whole chunks, so
hashes, tile histograms and ranks within a tile are made once and serve every level.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.triton_backend.geometry import FIELDS
from hyperattn_core.triton_backend.support import interpreted

INTERPRETED = tl.constexpr(interpreted())

NUM_FIELDS = tl.constexpr(len(FIELDS))
NUM_NODES = tl.constexpr(FIELDS.index("num_nodes"))
NODE_LEN = tl.constexpr(FIELDS.index("node_len"))
QUERY_LEN = tl.constexpr(FIELDS.index("query_len"))
BLOCK_SIZE = tl.constexpr(FIELDS.index("block_size"))
NUM_BLOCKS = tl.constexpr(FIELDS.index("num_blocks"))
NUM_TILES = tl.constexpr(FIELDS.index("num_tiles"))
NUM_SAMPLES = tl.constexpr(FIELDS.index("num_samples"))
QUERY_ORDER = tl.constexpr(FIELDS.index("query_order"))
KEY_ORDER = tl.constexpr(FIELDS.index("key_order"))
SAMPLE_INDEX = tl.constexpr(FIELDS.index("sample_index"))
SAMPLE_POSITION = tl.constexpr(FIELDS.index("sample_position"))
TILE_FIRST = tl.constexpr(FIELDS.index("tile_first"))
TILE_COUNT = tl.constexpr(FIELDS.index("tile_count"))
TILE_BLOCK = tl.constexpr(FIELDS.index("tile_block"))
WEIGHT = tl.constexpr(FIELDS.index("weight"))
TOTALS = tl.constexpr(FIELDS.index("totals"))
SAMPLES_DRAWN = tl.constexpr(FIELDS.index("samples_drawn"))
TEMPLATE = tl.constexpr(FIELDS.index("template"))
PARTIAL = tl.constexpr(FIELDS.index("partial"))


@triton.jit
def field(table, level, index: tl.constexpr):
    """One entry of the table of levels."""
    return tl.load(table + level * NUM_FIELDS + index)


@triton.jit
def add_product(a, b, acc):
    """acc + a b, accumulated in float32; without tf32 where a and b are float32."""
    if INTERPRETED:  # Triton's interpreter takes the bits of a bfloat16 for an integer here.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit(
    do_not_specialize=[
        "heads",
        "kv_heads",
        "query_rows",
        "num_queries",
        "num_keys",
        "query_chunk",
        "key_chunk",
        "query_tiles",
        "key_tiles",
    ]
)
def hash_kernel(
    q,
    k,
    directions,
    ranks,
    histograms,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    heads,
    kv_heads,
    query_rows,
    num_queries,
    num_keys,
    query_chunk,
    key_chunk,
    query_tiles,
    key_tiles,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TERMS: tl.constexpr,
    PROJECTIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    TILE: tl.constexpr,
    TILES_PER_PROGRAM: tl.constexpr,
):
    """Hash rank of every query and key, and how often each rank occurs in each tile (Algorithm 1).

    `directions` (TERMS, BLOCK_D, COLUMNS) are the projections as a sum of TERMS numbers of the dtype of q and k, so
    that every product is exact and sums are those of float32.
    """
    row = tl.program_id(1)
    if row < query_rows:
        batch, head, step = row // heads, row % heads, q_stride_n
        x = q + batch.to(tl.int64) * q_stride_b + head.to(tl.int64) * q_stride_h
        length, chunk_len, tiles = num_queries, query_chunk, query_tiles
        first_token = row.to(tl.int64) * num_queries
        first_tile = row.to(tl.int64) * query_tiles
    else:
        key_row = row - query_rows
        batch, head, step = key_row // kv_heads, key_row % kv_heads, k_stride_n
        x = k + batch.to(tl.int64) * k_stride_b + head.to(tl.int64) * k_stride_h
        length, chunk_len, tiles = num_keys, key_chunk, key_tiles
        first_token = query_rows.to(tl.int64) * num_queries + key_row.to(tl.int64) * num_keys
        first_tile = query_rows.to(tl.int64) * query_tiles + key_row.to(tl.int64) * key_tiles
    tiles_per_chunk = tl.cdiv(chunk_len, TILE)
    slots = tl.arange(0, TILE)
    dims = tl.arange(0, BLOCK_D)
    columns = tl.arange(0, COLUMNS)
    buckets = tl.arange(0, RANKS)
    begin = tl.program_id(0) * TILES_PER_PROGRAM
    for tile in range(begin, tl.minimum(begin + TILES_PER_PROGRAM, tiles)):
        chunk = tile // tiles_per_chunk
        token = chunk * chunk_len + (tile % tiles_per_chunk) * TILE + slots
        valid = token < tl.minimum((chunk + 1) * chunk_len, length)
        at = x + token.to(tl.int64)[:, None] * step + dims[None, :]
        rows = tl.load(at, mask=valid[:, None] & (dims < D)[None, :], other=0.0)
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
        tl.store(ranks + first_token + token, rank.to(ranks.dtype.element_ty), mask=valid)
        # Rows past the end are counted in rank 0, and taken out again.
        count = tl.histogram(tl.where(valid, rank, 0), RANKS)
        count -= tl.where(buckets == 0, TILE - tl.sum(valid.to(tl.int32), 0), 0)
        tl.store(
            histograms + (first_tile + tile) * RANKS + buckets,
            count.to(histograms.dtype.element_ty),
        )


@triton.jit(
    do_not_specialize=[
        "query_rows",
        "key_rows",
        "query_chunks",
        "key_chunks",
        "query_tiles_per_chunk",
        "key_tiles_per_chunk",
    ]
)
def scan_kernel(
    histograms,
    bases,
    totals,
    table,
    query_rows,
    key_rows,
    query_chunks,
    key_chunks,
    query_tiles_per_chunk,
    key_tiles_per_chunk,
    IS_CAUSAL: tl.constexpr,
    RANKS: tl.constexpr,
    GROUP: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """For each node and rank: how many earlier tokens of the node have that rank, per tile, and how many there are."""
    level = tl.program_id(1)
    num_nodes = field(table, level, NUM_NODES).to(tl.int32)
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
        out = field(table, level, TOTALS) + row * num_nodes + node
        tl.store(totals + out * RANKS + ranks, before)


@triton.jit(
    do_not_specialize=[
        "num_levels",
        "query_rows",
        "key_rows",
        "num_queries",
        "num_keys",
        "query_chunk",
        "key_chunk",
        "query_tiles",
        "key_tiles",
    ]
)
def scatter_kernel(
    ranks,
    bases,
    totals,
    data,
    table,
    num_levels,
    query_rows,
    key_rows,
    num_queries,
    num_keys,
    query_chunk,
    key_chunk,
    query_tiles,
    key_tiles,
    IS_CAUSAL: tl.constexpr,
    RANKS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Write every token where its rank and its position put it, in the order of each level that holds it."""
    row, tile = tl.program_id(1), tl.program_id(0)
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
        # Tokens past the end come last, so that they stand before no other one.
        earlier = (rank[None, :] == rank[:, None]) & (slots[None, :] < slots[:, None])
        within = tl.sum(earlier.to(tl.int32), 1)
        buckets = tl.arange(0, RANKS)
        for level in range(num_levels):
            num_nodes = field(table, level, NUM_NODES).to(tl.int32)
            node = 0
            active = chunk >= 0
            if IS_CAUSAL:
                node = chunk >> (level + 1)
                active = (((chunk >> level) & 1) == is_query.to(tl.int32)) & (node < num_nodes)
            if active:
                total = tl.load(totals + (field(table, level, TOTALS) + row * num_nodes + node) * RANKS + buckets)
                begin = tl.gather(tl.cumsum(total, 0) - total, rank, 0)
                at = (level * all_tiles + first_tile + tile) * RANKS
                place = begin + tl.load(bases + at + rank, mask=valid, other=0) + within
                if is_query:
                    order, node_slots = field(table, level, QUERY_ORDER), field(table, level, QUERY_LEN)
                else:
                    order, node_slots = field(table, level, KEY_ORDER), field(table, level, NODE_LEN)
                order += (side_row.to(tl.int64) * num_nodes + node) * node_slots
                tl.store(data + order + place, token, mask=valid)


@triton.jit
def larger(a, b):
    """The larger of two numbers."""
    return tl.maximum(a, b)


@triton.jit(do_not_specialize=["query_rows", "key_rows", "num_queries", "group", "tile_size", "tile_programs"])
def pair_kernel(
    data,
    weights,
    totals,
    table,
    drawn_index,
    drawn_weight,
    template,
    query_rows,
    key_rows,
    num_queries,
    group,
    tile_size,
    tile_programs,
    IS_CAUSAL: tl.constexpr,
    BUCKET: tl.constexpr,
    RANKS: tl.constexpr,
    TILES: tl.constexpr,
    SAMPLES: tl.constexpr,
):
    """The tiles of every node's sorted queries with the key block that each meets; the position of every sampled key.

    Bucket pairing: a rank's queries meet the block in the middle of that rank's range of sorted keys; ranks that meet
    the same block share its run of tiles. Rank pairing follows from sizes alone and is copied from `template`.
    """
    level = tl.program_id(2)
    num_nodes = field(table, level, NUM_NODES).to(tl.int32)
    row, node = tl.program_id(1) // num_nodes, tl.program_id(1) % num_nodes
    if tl.program_id(0) < tile_programs:
        if row < query_rows:
            num_tiles = field(table, level, NUM_TILES).to(tl.int32)
            tile = tl.program_id(0) * TILES + tl.arange(0, TILES)
            if BUCKET:
                block_size = field(table, level, BLOCK_SIZE).to(tl.int32)
                last_block = field(table, level, NUM_BLOCKS).to(tl.int32) - 1
                ranks = tl.arange(0, RANKS)
                base = field(table, level, TOTALS)
                query_total = totals + (base + row * num_nodes + node) * RANKS
                key_total = totals + (base + (query_rows + row // group) * num_nodes + node) * RANKS
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
                used = at < RANKS
                first = tl.where(used, first, 0)
                count = tl.where(used, tl.minimum(end - first, tile_size), 0)
                meets = tl.where(used, tl.sum(tl.where(is_run, block[None, :], 0), 1), last_block)
            else:
                source = template + field(table, level, TEMPLATE) + node * num_tiles + tile
                inside = tile < num_tiles
                first = tl.load(source, mask=inside)
                count = tl.load(source + num_nodes * num_tiles, mask=inside)
                meets = tl.load(source + 2 * num_nodes * num_tiles, mask=inside)
            to = (row.to(tl.int64) * num_nodes + node) * num_tiles + tile
            tl.store(data + field(table, level, TILE_FIRST) + to, first, mask=tile < num_tiles)
            tl.store(data + field(table, level, TILE_COUNT) + to, count, mask=tile < num_tiles)
            tl.store(data + field(table, level, TILE_BLOCK) + to, meets, mask=tile < num_tiles)
            if IS_CAUSAL:
                # The last node may have fewer queries than slots: those left over are zero, so that plans are equal.
                query_len = field(table, level, QUERY_LEN).to(tl.int32)
                held = num_queries - (2 * node + 1) * query_len
                slots = data + field(table, level, QUERY_ORDER) + (row.to(tl.int64) * num_nodes + node) * query_len
                for start in range(held + tl.program_id(0) * SAMPLES, query_len, tile_programs * SAMPLES):
                    slot = start + tl.arange(0, SAMPLES)
                    tl.store(slots + slot, tl.zeros((SAMPLES,), tl.int32), mask=slot < query_len)
    elif row < key_rows:
        num_samples = field(table, level, NUM_SAMPLES).to(tl.int32)
        node_row = row.to(tl.int64) * num_nodes + node
        order = data + field(table, level, KEY_ORDER) + node_row * field(table, level, NODE_LEN)
        for start in range(0, num_samples, SAMPLES):
            slot = start + tl.arange(0, SAMPLES)
            inside = slot < num_samples
            to = node_row * num_samples + slot
            index = tl.load(drawn_index + field(table, level, SAMPLES_DRAWN) + to, mask=inside, other=0)
            tl.store(data + field(table, level, SAMPLE_INDEX) + to, index, mask=inside)
            tl.store(data + field(table, level, SAMPLE_POSITION) + to, tl.load(order + index), mask=inside)
            if (row == 0) & (node == 0):
                at = field(table, level, WEIGHT) + slot
                tl.store(weights + at, tl.load(drawn_weight + at, mask=inside), mask=inside)
