"""The kernels that draw samples with the probabilities that follow from scores: design, sum and draw.

`hyperattn_core.planning.samples` says the same in PyTorch. All sums are of whole numbers, in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hyperattn_core.planning import samples
from hyperattn_core.triton_backend.kernels.common import SIZES, field, size
from hyperattn_core.triton_backend.kernels.probe import CLASS_OFFSET, CLASS_SHIFT, NUM_CLASSES

NEARLY = tl.constexpr(samples.NEARLY)
LOWEST_STEP = tl.constexpr(samples.LOWEST_STEP)
#: A sum of up to 1,024 scores (each at most one) and two numbers of keys share 64 bits: where the latter begin.
UNCERTAIN_BIT, CERTAIN_BIT = tl.constexpr(41), tl.constexpr(52)
ONE_UNCERTAIN, SCORE_MASK, COUNT_MASK = tl.constexpr(1 << 41), tl.constexpr((1 << 41) - 1), tl.constexpr((1 << 11) - 1)


@triton.jit(do_not_specialize=SIZES)
def design_kernel(class_counts, table, slopes, offsets, first_certain, key_rows, AT_ONCE: tl.constexpr):
    """The probabilities of the keys of a node, from how many there are of each class."""
    level = tl.program_id(1)
    num_nodes, num_samples = size(table, level, "num_nodes"), size(table, level, "num_samples")
    if (tl.program_id(0) < key_rows * num_nodes) & (num_samples > 0):
        node_row, tiles = tl.program_id(0).to(tl.int64), size(table, level, "probe_tiles")
        classes = tl.arange(0, NUM_CLASSES)
        found = tl.zeros((NUM_CLASSES,), tl.int32)
        first_tile = field(table, level, "class_tiles") + node_row * tiles
        for start in range(0, tiles, AT_ONCE):
            tile = start + tl.arange(0, AT_ONCE)
            at = (first_tile + tile)[:, None] * NUM_CLASSES + classes[None, :]
            found += tl.sum(tl.load(class_counts + at, mask=(tile < tiles)[:, None], other=0).to(tl.int32), 0)
        counts = found.to(tl.float64)
        scores = ((classes + CLASS_OFFSET) << CLASS_SHIFT).to(tl.float32, bitcast=True).to(tl.float64)
        scores = tl.where(classes > 0, scores, 0.0)
        floor = field(table, level, "probe_floor").to(tl.float64, bitcast=True)
        unit = (tl.full((), 1, tl.int64) << field(table, level, "unit_bits")).to(tl.float64)
        length = size(table, level, "node_len").to(tl.float64)
        total = tl.sum(counts * scores, 0)
        slope = tl.where(total > 0, (1.0 - floor) / total, 0.0)
        base = tl.where(total > 0, floor / length, 1.0 / length)
        rest = slope * tl.cumsum(counts * scores, 0) + base * tl.cumsum(counts, 0)
        to_draw = num_samples - (length - tl.cumsum(counts, 0))
        is_below = (found > 0) & ((slope * scores + base) * to_draw < rest * NEARLY)
        first = tl.max(tl.where(is_below, classes + 1, 0), 0)
        is_uncertain = classes < first
        drawn = num_samples - tl.sum(tl.where(is_uncertain, 0.0, counts), 0)
        shares = tl.sum(tl.where(is_uncertain, slope * counts * scores + base * counts, 0.0), 0)
        factor = tl.where(drawn > 0, drawn * unit / shares, 0.0)
        to = field(table, level, "key_nodes") + node_row
        tl.store(slopes + to, slope * factor)
        tl.store(offsets + to, base * factor)
        tl.store(first_certain + to, first)


@triton.jit
def tile_shares(data, classes, table, level, node_row, slot, inside, first, IS_CAUSAL: tl.constexpr):
    """The parts of some sorted keys in the sums that probabilities follow from, each as one whole number."""
    node_len = size(table, level, "node_len")
    key = tl.load(data + field(table, level, "key_order") + node_row * node_len + slot, mask=inside, other=0)
    if IS_CAUSAL:
        key -= 2 * (node_row % size(table, level, "num_nodes")).to(tl.int32) * node_len
    at = field(table, level, "classes") + node_row * node_len + key
    found = tl.load(classes + at, mask=inside, other=0).to(tl.int32)
    place = found - 1
    score = tl.where(found > 0, (4 + place % 4).to(tl.int64) << (place // 4).to(tl.int64), 0)
    share = tl.where(found >= first, tl.full((), 1, tl.int64) << CERTAIN_BIT, score + ONE_UNCERTAIN)
    return tl.where(inside, share, 0)


@triton.jit
def unpacked(share):
    """The sum of scores, the number of uncertain keys and that of certain ones, of up to 1,024 keys."""
    return share & SCORE_MASK, (share >> UNCERTAIN_BIT) & COUNT_MASK, share >> CERTAIN_BIT


@triton.jit(do_not_specialize=SIZES)
def sum_kernel(data, classes, table, first_certain, sums, key_rows, IS_CAUSAL: tl.constexpr, TILE: tl.constexpr):
    """The sum of what the keys of each tile of sorted keys add."""
    level = tl.program_id(1)
    num_tiles, num_nodes = tl.maximum(size(table, level, "draw_tiles"), 1), size(table, level, "num_nodes")
    node_row = (tl.program_id(0) // num_tiles).to(tl.int64)
    if (node_row < key_rows * num_nodes) & (size(table, level, "num_samples") > 0):
        slot = (tl.program_id(0) % num_tiles) * TILE + tl.arange(0, TILE)
        inside = slot < size(table, level, "node_len")
        first = tl.load(first_certain + field(table, level, "key_nodes") + node_row)
        share = tile_shares(data, classes, table, level, node_row, slot, inside, first, IS_CAUSAL)
        tl.store(sums + field(table, level, "draw_tile") + tl.program_id(0), tl.sum(share, 0))


@triton.jit
def units(score, uncertain, certain, slope, base, unit_bits):
    """Probabilities summed up, in units, from summed-up scores and numbers of keys."""
    uncertain_units = slope * (score.to(tl.float64) * LOWEST_STEP) + base * uncertain.to(tl.float64)
    return tl.floor(uncertain_units + 0.5).to(tl.int64) + (certain << unit_bits)


@triton.jit(do_not_specialize=SIZES)
def draw_kernel(
    data, classes, table, slopes, offsets, first_certain, sums, points, drawn_index, drawn_weight, key_rows,
    IS_CAUSAL: tl.constexpr, TILE: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The keys in whose stretch of probability a point falls: their places among the sorted keys, and log2(w)."""
    level = tl.program_id(1)
    num_tiles, num_nodes = tl.maximum(size(table, level, "draw_tiles"), 1), size(table, level, "num_nodes")
    num_samples = size(table, level, "num_samples")
    node_row, tile = (tl.program_id(0) // num_tiles).to(tl.int64), tl.program_id(0) % num_tiles
    if (node_row < key_rows * num_nodes) & (num_samples > 0):
        slot = tile * TILE + tl.arange(0, TILE)
        inside = slot < size(table, level, "node_len")
        design = field(table, level, "key_nodes") + node_row
        slope, base, first = tl.load(slopes + design), tl.load(offsets + design), tl.load(first_certain + design)
        point, unit_bits = tl.load(points + design), field(table, level, "unit_bits")
        share = tile_shares(data, classes, table, level, node_row, slot, inside, first, IS_CAUSAL)
        upto = tl.cumsum(share, 0)
        score_before = tl.zeros((), tl.int64)
        uncertain_before = tl.zeros((), tl.int64)
        certain_before = tl.zeros((), tl.int64)
        for start in range(0, tile, AT_ONCE):
            earlier = start + tl.arange(0, AT_ONCE)
            at = sums + field(table, level, "draw_tile") + node_row * num_tiles + earlier
            score, uncertain, certain = unpacked(tl.load(at, mask=earlier < tile, other=0))
            score_before += tl.sum(score, 0)
            uncertain_before += tl.sum(uncertain, 0)
            certain_before += tl.sum(certain, 0)
        score, uncertain, certain = unpacked(upto)
        end = units(
            score_before + score, uncertain_before + uncertain, certain_before + certain, slope, base, unit_bits
        )  # fmt: skip
        score, uncertain, certain = unpacked(upto - share)
        begin = units(
            score_before + score, uncertain_before + uncertain, certain_before + certain, slope, base, unit_bits
        )  # fmt: skip
        # The first point that is not before the stretch.
        last = (tl.full((), 1, tl.int64) << unit_bits) - 1
        sample = tl.maximum(begin - point + last, 0) >> unit_bits
        drawn = inside & (point + (sample << unit_bits) < end) & (sample < num_samples)
        to = field(table, level, "samples_drawn") + node_row * num_samples + sample
        tl.store(drawn_index + to, slot, mask=drawn)
        unit = (tl.full((), 1, tl.int64) << unit_bits).to(tl.float64)
        probability = (tl.maximum(end - begin, 1).to(tl.float64) / unit).to(tl.float32)
        log_weight = tl.minimum(-tl.log2(probability), field(table, level, "max_log_weight").to(tl.float32))
        tl.store(drawn_weight + to, log_weight, mask=drawn)
