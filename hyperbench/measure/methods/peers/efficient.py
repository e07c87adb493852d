"""Efficient attention (Shen et al., WACV 2021): softmax over features and over positions, in place of over keys."""

from __future__ import annotations

from torch import Tensor

from hyperbench.measure.methods.peers.labels import own_code
from hyperbench.measure.methods.trivial import repeat_heads


@own_code(lambda point: point.head_dim)
def efficient(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """softmax_D(Q) (softmax_N(K)^T V): (B, H, N, Dv), the paper's attention with softmax as its normalisation.

    Queries are normalised over their D features, keys over all N positions; q.k is never scaled. It is another
    attention than softmax(Q K^T) V and converges to it in no limit. Raises NotImplementedError under a causal mask.
    """
    if is_causal:
        raise NotImplementedError(
            "efficient attention has no causal form: its keys are normalised over all positions, later ones too"
        )
    keys, values = (repeat_heads(x, q.shape[1]) for x in (k, v))
    return q.softmax(dim=3) @ (keys.softmax(dim=2).transpose(2, 3) @ values)
