"""Samples of a level: which keys stand for the others, and with which weights."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.draws import level_samples, sample_count, sample_offsets
from hyperattn_core.planning.levels import CallShape, LevelShape

# A key whose probability is as near as this to one is certain: rounding must not draw it twice, or not at all.
_NEARLY = 1 - 1e-9


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
        scores: (B, Hkv, G, S) of `probe_scores` with "probed" sampling, else None.
    """
    if scores is None:
        index, weight = level_samples(level, shape, params, seed, str(key_order.device))
        return index, weight.expand(index.shape)
    starts = torch.tensor(level.key_starts, device=key_order.device).view(-1, 1)
    in_order = scores.gather(3, key_order.long() - starts)
    offsets = sample_offsets(level, shape, seed, str(key_order.device))
    return systematic_samples(in_order, sample_count(level.node_len, params), params.probe_floor, offsets)


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
    upto, unit = cumulative_probabilities(scores, count, floor), _unit(count)
    points = (offsets * unit).floor() / unit + torch.arange(count, dtype=torch.float64, device=scores.device)
    index = torch.searchsorted(upto, points, right=True).clamp(max=scores.shape[-1] - 1)
    before = torch.where(index > 0, upto.gather(-1, (index - 1).clamp(min=0)), 0.0)
    return index.to(torch.int32), (upto.gather(-1, index) - before).reciprocal()


def cumulative_probabilities(scores: Tensor, count: int, floor: float) -> Tensor:
    """Probabilities min(1, t p_j), summed up along the row to `count`, with p_j = (1 - f) scores_j / sum + f / S.

    t is such that they add up to `count`, so that as many keys are drawn. Only the `count` largest can have probability
    one, and the j-th largest has it if its share of what is left, times what is left to draw, is one.

    Args:
        scores: (..., S), not negative; what is not finite counts as zero, and where all are zero they are alike.
        count: m, up to S.
        floor: f, above 0 and up to 1.

    Returns:
        float64 (..., S), ascending; the last entry is `count`.
    """
    length = scores.shape[-1]
    scores = scores.double().nan_to_num(0.0, 0.0, 0.0)
    total = scores.sum(-1, keepdim=True)
    shares = torch.where(total > 0, scores / total, 1.0 / length) * (1.0 - floor) + floor / length
    largest, at = shares.topk(count, dim=-1)
    left = largest.flip(-1).cumsum(-1).flip(-1) + shares.scatter(-1, at, 0.0).sum(-1, keepdim=True)
    to_draw = torch.arange(count, 0, -1, dtype=torch.float64, device=scores.device)
    is_certain = (largest * to_draw >= left * _NEARLY).double().cumprod(-1)
    certain = torch.zeros_like(shares).scatter(-1, at, is_certain)
    upto = (shares * (1.0 - certain)).cumsum(-1)
    drawn = count - is_certain.sum(-1, keepdim=True)
    factor = torch.where(drawn > 0, drawn / upto[..., -1:], 0.0)
    unit = _unit(count)
    return (upto * factor * unit).round() / unit + certain.cumsum(-1)


def _unit(count: int) -> float:
    """The inverse of a power of two whose multiples up to `count` add up without rounding.

    So a certain key has a length of one wherever it lies, and points are one apart.
    """
    return 2.0 ** (48 - count.bit_length())
