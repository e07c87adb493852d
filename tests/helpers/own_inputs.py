"""Functions that make inputs, as somebody might write them: a good one, and each way of being wrong."""

from __future__ import annotations

from typing import Any

import torch

Made = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def waves(shape: Any, seed: int, strength: float = 1.0, lengths: Any = None) -> Made:
    """Queries that are sines of their position; the global generator draws the noise."""
    sizes = [(shape.batch, heads, shape.seq_len, shape.head_dim) for heads in (shape.heads, shape.kv_heads)]
    q, k = (torch.randn(*size, device="cpu", dtype=torch.float64) for size in sizes)
    sine = torch.arange(shape.seq_len, device="cpu", dtype=torch.float64).sin()
    return q + strength * sine.unsqueeze(1), k, torch.randn_like(k)


def needs_strength(shape: Any, seed: int, *, strength: float) -> Made:
    """A parameter without a default."""
    return waves(shape, seed, strength)


def takes_any(shape: Any, seed: int, **parameters: Any) -> Made:
    """Any parameter."""
    return waves(shape, seed)


def swapped(shape: Any, seed: int) -> Made:
    """The layout (batch, seq_len, heads, head_dim)."""
    q, k, v = waves(shape, seed)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def too_many_key_heads(shape: Any, seed: int) -> Made:
    """As many key heads as query heads."""
    q = waves(shape, seed)[0]
    return q, q, q


def whole_numbers(shape: Any, seed: int) -> Made:
    """Integers."""
    q, k, v = waves(shape, seed)
    return q, k.long(), v


def not_finite(shape: Any, seed: int) -> Made:
    """An infinite value."""
    q, k, v = waves(shape, seed)
    v[0, 0, -1, 0] = float("inf")
    return q, k, v


def only_two(shape: Any, seed: int) -> Any:
    """No values."""
    return waves(shape, seed)[:2]


def nothing(shape: Any, seed: int) -> Any:
    """Nothing is returned."""


def raises(shape: Any, seed: int) -> Made:
    """An error of two lines."""
    raise RuntimeError("no weights\nare here")


def changes_settings(shape: Any, seed: int) -> Made:
    """Another number of threads stays behind."""
    torch.set_num_threads(torch.get_num_threads() + 1)
    return waves(shape, seed)


constant = 3
