"""A few keys that draw most of the attention of many queries."""

from __future__ import annotations

from torch.nn.functional import normalize

from hyperbench.measure.inputs import Inputs, Numbers, Shape
from hyperbench.measure.inputs.gaussian import draw as draw_gaussian


def draw(numbers: Numbers, shape: Shape, num_heavy: int = 4, strength: float = 3.0) -> Inputs:
    """A quarter of the queries lean towards one of a few keys (at random positions), which draw most attention."""
    q, k, v = draw_gaussian(numbers, shape)
    batch, heads, _kv_heads, seq_len, head_dim = shape
    count = min(num_heavy, seq_len)
    position = numbers.permutation(seq_len)[:count]
    direction = normalize(numbers.normal(count, head_dim), dim=1)
    # Logits are scaled by 1 / sqrt(D): this length on both sides adds strength^2 to the logit of the leaning query.
    length = strength * head_dim**0.25
    k[:, :, position] = direction * length
    leaning = numbers.uniform(batch, heads, seq_len) < 0.25
    choice = numbers.integers(count, batch, heads, seq_len)
    return q + leaning.unsqueeze(3) * direction[choice] * length, k, v
