"""Samples of a level: which keys stand for the others, and with which weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hyperattn_core.params import MAX_WEIGHT, HyperAttentionParams
from hyperattn_core.planning.draws import level_samples, sample_count, sample_offsets
from hyperattn_core.planning.levels import CallShape, LevelShape

NUM_CLASSES = 128
"""Classes of scores: zero, and the numbers of three significant bits from 2**-28 to beyond one."""
CLASS_SHIFT, CLASS_OFFSET = 21, ((127 - 28) << 2) - 1
"""A float32 number of three significant bits, read as an integer, is its class plus CLASS_OFFSET, times 2**21."""
LOWEST_STEP = 2.0**-30
"""Scores of classes are whole multiples of this."""
UNIT_BITS = 48
"""Bits of the numbers that the sums of probabilities are counted in: float64 holds them."""
NEARLY = 1 - 1e-9
"""A key whose probability is as near as this to one is certain: rounding must not draw it twice, or not at all."""


class Design(NamedTuple):
    """The probabilities of the keys of rows, up to rounding to whole units (`unit`).

    Attributes:
        slope: float64 (..., 1), units of a score that is one.
        base: float64 (..., 1), units of every key whose probability is below one.
        first_certain: int64 (..., 1), the lowest class whose keys have probability one.
    """

    slope: Tensor
    base: Tensor
    first_certain: Tensor


def samples_of(
    level: LevelShape,
    shape: CallShape,
    params: HyperAttentionParams,
    seed: int,
    key_order: Tensor,
    scores: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The samples of a level: indices into key_order, int32 (B, Hkv, G, m), and weights, float64 (B, Hkv, G, m).

    Args:
        level, shape, params, seed: of the call.
        key_order: int32 (B, Hkv, G, S), the sorted keys.
        scores: (B, Hkv, G, S) of `probe_scores` where probes are used, else None.
    """
    if scores is None:
        index, weight = level_samples(level, shape, params, seed, str(key_order.device))
        return index, weight.expand(index.shape)
    starts = torch.tensor(level.key_starts, device=key_order.device).view(-1, 1)
    in_order = scores.gather(3, key_order.long() - starts)
    offsets = sample_offsets(level, shape, seed, str(key_order.device))
    index, weight = systematic_samples(in_order, sample_count(level.node_len, params), params.probe_floor, offsets)
    return index, weight.clamp(max=MAX_WEIGHT) if params.sampling == "truncated" else weight


def systematic_samples(scores: Tensor, count: int, floor: float, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Draw `count` different keys of each row, systematically, with the probabilities of `cumulative_probabilities`.

    The probabilities lie end to end, and the keys are taken in which the points offset, offset + 1, ... fall: each key
    with its probability, and the sample spread over the row's order. A key of probability one is in every sample.

    Args:
        scores: (..., S), as for `cumulative_probabilities`.
        count: m, up to S.
        floor: f, above 0 and up to 1.
        offsets: float64 (..., 1), uniform in [0, 1).

    Returns:
        index: int32 (..., m), ascending.
        weight: float64 (..., m), the inverse of the probability.
    """
    upto = cumulative_probabilities(scores, count, floor)
    points = (offsets * unit(count)).floor() + torch.arange(count, device=scores.device) * unit(count)
    index = torch.searchsorted(upto, points, right=True).clamp(max=scores.shape[-1] - 1)
    before = torch.where(index > 0, upto.gather(-1, (index - 1).clamp(min=0)), 0.0)
    return index.to(torch.int32), unit(count) / (upto.gather(-1, index) - before)


def cumulative_probabilities(scores: Tensor, count: int, floor: float) -> Tensor:
    """Probabilities min(1, t p_j), summed up along the row to `count`, with p_j = (1 - f) r_j / sum r + f / S.

    r are the scores, rounded to three significant bits: so few different numbers have sums that do not depend on their
    order, and t follows from how often there is each. It is such that `count` keys are drawn.

    Args:
        scores: (..., S), from 0 to 1; what is not finite counts as zero, and where all are zero they are alike.
        count: m, up to S.
        floor: f, above 0 and up to 1.

    Returns:
        float64 (..., S), whole numbers of which `unit(count)` are a probability of one: ascending, and the last entry
        is count * unit(count).
    """
    classes = score_classes(scores)
    counts = torch.zeros(*scores.shape[:-1], NUM_CLASSES, dtype=torch.int64, device=scores.device)
    counts.scatter_add_(-1, classes, torch.ones((), dtype=counts.dtype, device=scores.device).expand(classes.shape))
    design = design_of(counts, count, floor)
    is_certain = classes >= design.first_certain
    rounded = class_scores(scores.device)[classes].masked_fill_(is_certain, 0)
    certain = is_certain.cumsum(-1)
    uncertain = torch.arange(1, scores.shape[-1] + 1, device=scores.device) - certain
    upto = (design.slope * LOWEST_STEP) * rounded.cumsum(-1) + design.base * uncertain
    return upto.add_(0.5).floor_().add_(certain, alpha=unit(count))


def design_of(counts: Tensor, count: int, floor: float) -> Design:
    """The probabilities of rows with so many keys of each class, int64 (..., NUM_CLASSES).

    From the largest scores down, the keys of a class are certain if the share of one, times the number left to draw, is
    all that is left.
    """
    scores = class_scores(counts.device)
    # Sums of whole numbers, which devices make in any order.
    length, total = counts.sum(-1, keepdim=True), (counts * scores).sum(-1, keepdim=True).double() * LOWEST_STEP
    slope = torch.where(total > 0, (1.0 - floor) / total, 0.0)
    base = torch.where(total > 0, floor / length.double(), 1.0 / length.double())
    upto, scores_upto = counts.cumsum(-1), (counts * scores).cumsum(-1).double() * LOWEST_STEP
    rest = slope * scores_upto + base * upto
    share = slope * (scores.double() * LOWEST_STEP) + base
    is_below = (counts > 0) & (share * (count - (length - upto)) < rest * NEARLY)
    classes = torch.arange(NUM_CLASSES, device=counts.device)
    first_certain = torch.where(is_below, classes + 1, 0).amax(-1, keepdim=True)
    # Those below it: none, or all up to the class under it.
    last = (first_certain - 1).clamp(min=0)
    num_uncertain = torch.where(first_certain > 0, upto.gather(-1, last), 0)
    drawn = count - (length - num_uncertain)
    shares = torch.where(first_certain > 0, rest.gather(-1, last), 0.0)
    factor = torch.where(drawn > 0, drawn * unit(count) / shares, 0.0)
    return Design(slope * factor, base * factor, first_certain)


def score_classes(scores: Tensor) -> Tensor:
    """The class of each score, int64: that of the nearest number of three significant bits; 0 for what is no number."""
    bits = scores.to(torch.float32).nan_to_num(0.0, 0.0, 0.0).view(torch.int32)
    return (((bits + (1 << (CLASS_SHIFT - 1))) >> CLASS_SHIFT) - CLASS_OFFSET).clamp(0, NUM_CLASSES - 1).long()


def class_scores(device: torch.device) -> Tensor:
    """The score of each class in steps of LOWEST_STEP, int64 (NUM_CLASSES,)."""
    classes = torch.arange(NUM_CLASSES, device=device)
    place = (classes - 1).clamp(min=0)
    return torch.where(classes > 0, (4 + place % 4) << (place // 4), 0)


def unit_bits(count: int) -> int:
    """The exponent of `unit`."""
    return UNIT_BITS - count.bit_length()


def unit(count: int) -> float:
    """The whole number that stands for a probability of one: a power of two, of which `count` are below 2**48.

    So a certain key has a length of one wherever it lies, and points are one apart.
    """
    return 2.0 ** unit_bits(count)
