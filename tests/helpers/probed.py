"""Probed sampling as its definition says it, with loops and rounds of capping: the judge of the fast one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def probe_weights(probes: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Root mean square over probes (P, D) of the softmax weights that they give keys (S, D): float64 (S,)."""
    squares = torch.zeros(keys.shape[0], dtype=torch.float64)
    for probe in probes.double():
        logits = [scale * float(probe @ key) for key in keys.double()]
        most = max(logits)
        weights = torch.tensor([math.exp(x - most) for x in logits], dtype=torch.float64)
        squares += (weights / weights.sum()) ** 2
    return (squares / probes.shape[0]).sqrt()


def three_bits(score: float) -> float:
    """The nearest number of three significant bits, the larger of two, and zero below 2**-28."""
    part, exponent = math.frexp(score)
    nearest = math.ldexp(math.floor(part * 8 + 0.5), exponent - 3)
    return nearest if nearest >= 2**-28 else 0.0


def inclusion(scores: Tensor, count: int, floor: float) -> Tensor:
    """The probability of each key (S,) to be among `count`: shares, those above one capped until none is."""
    length = scores.shape[0]
    rounded = torch.tensor([three_bits(float(score)) for score in scores], dtype=torch.float64)
    if not rounded.any():
        rounded = torch.ones_like(rounded)
    shares = (1 - floor) * rounded / float(rounded.sum()) + floor / length
    capped = torch.zeros(length, dtype=torch.bool)
    while True:
        left = count - int(capped.sum())
        rest = torch.where(capped, 0.0, shares)
        probability = torch.where(capped, 1.0, rest * (left / max(float(rest.sum()), 1e-300)))
        more = (probability >= 1 - 1e-9) & ~capped
        if not more.any():
            return probability
        capped |= more
