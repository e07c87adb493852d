"""Queries and keys with positions: rotary embedding, attention to what is near, and sinks at the first tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs, Numbers, Shape

#: Tokens in a row whose values are about the same subject.
_SUBJECT_TOKENS = 64
#: Values of sinks are small in trained models: attending to one is attending to nothing.
_SINK_VALUE = 0.1


def draw(
    numbers: Numbers,
    shape: Shape,
    local_strength: float = 1.0,
    num_sinks: int = 4,
    sink_strength: float = 1.0,
    noise_std: float = 0.5,
    value_noise_std: float = 0.5,
    rope_theta: float = 500_000.0,
) -> Inputs:
    """Heads that attend to near tokens and to the first ones, as many heads of language models do.

    All queries and keys of a key head have a direction in common, with the same length at each frequency of the rotary
    embedding. At a distance d the frequencies above 1/d are out of phase, so that the logit falls as
    -local_strength log(d) and the attention about as d^-local_strength (for distances well below rope_theta). The logit
    of the first num_sinks keys is sink_strength times that of the nearest key, at any distance. Everything else is
    noise. Values are those of a subject that lasts for 64 tokens, plus noise; those of the sinks are small.
    """
    batch, heads, kv_heads, seq_len, head_dim = shape
    q, k = (noise_std * numbers.normal(batch, h, seq_len, head_dim) for h in (heads, kv_heads))
    pairs = head_dim // 2
    phases = 2 * math.pi * numbers.uniform(kv_heads, pairs)
    if pairs:
        nearest = local_strength * math.log(rope_theta) * math.sqrt(head_dim)
        lengths = torch.full((pairs,), math.sqrt(nearest / pairs), device="cpu", dtype=torch.float32)
        common = _vectors(phases, lengths, head_dim)
        # The slowest pair hardly turns: a quarter turn from the common direction there, only the sinks are met.
        lengths = torch.zeros_like(lengths)
        lengths[-1] = math.sqrt(sink_strength * nearest)
        sink = _vectors(phases + math.pi / 2, lengths, head_dim)
        q += (common + sink).repeat_interleave(heads // kv_heads, dim=0).unsqueeze(1)
        k += common.unsqueeze(1)
        k[:, :, :num_sinks] += (sink - common).unsqueeze(1)
    subjects = numbers.normal(batch, kv_heads, -(-seq_len // _SUBJECT_TOKENS), head_dim)
    v = subjects.repeat_interleave(_SUBJECT_TOKENS, dim=2)[:, :, :seq_len] + value_noise_std * numbers.normal(*k.shape)
    v[:, :, :num_sinks] *= _SINK_VALUE
    return rotated(q, rope_theta), rotated(k, rope_theta), v


def check(rope_theta: float = 500_000.0, **others: object) -> None:
    """Raise ValueError on a base of the rotary embedding that has no slow frequencies."""
    if rope_theta <= 1.0:
        raise ValueError(f"input.rope_theta={rope_theta} must be above 1")


def rotated(x: Tensor, rope_theta: float) -> Tensor:
    """Rotary embedding of x (B, H, N, D): at position t, coordinates f and f + D/2 are turned by t rope_theta^(-2f/D).

    The last coordinate of an odd D stays as it is.
    """
    half = x.shape[3] // 2
    if not half:
        return x
    positions = torch.arange(x.shape[2], device="cpu", dtype=torch.float64)
    frequencies = rope_theta ** (-torch.arange(half, device="cpu", dtype=torch.float64) / half)
    angles = positions.unsqueeze(1) * frequencies
    cos, sin = angles.cos().float(), angles.sin().float()
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=3)


def _vectors(phases: Tensor, lengths: Tensor, head_dim: int) -> Tensor:
    """Vectors (H, D) that have these lengths (D // 2) in the pairs of coordinates, at these phases (H, D // 2)."""
    rest = torch.zeros(phases.shape[0], head_dim % 2, device="cpu", dtype=torch.float32)
    return torch.cat([lengths * phases.cos(), lengths * phases.sin(), rest], dim=1)
