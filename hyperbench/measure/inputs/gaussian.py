"""Independent entries: no structure for an approximation to find."""

from __future__ import annotations

from hyperbench.measure.inputs import Inputs, Numbers, Shape


def draw(numbers: Numbers, shape: Shape, std: float = 1.0) -> Inputs:
    """Independent Gaussian entries of standard deviation std."""
    batch, heads, kv_heads, seq_len, head_dim = shape
    q, k, v = (std * numbers.normal(batch, h, seq_len, head_dim) for h in (heads, kv_heads, kv_heads))
    return q, k, v
