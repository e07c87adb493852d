"""Nystromformer (Xiong et al., AAAI 2021): softmax attention through landmarks, the Nystrom approximation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from hyperbench.measure.methods.peers.labels import own_code
from hyperbench.measure.methods.trivial import repeat_heads
from hyperbench.store.schema import Point

_PRODUCTS_PER_ITERATION = 4


def _pairs(point: Point) -> float:
    m, iterations = int(point.hyper["num_landmarks"]), int(point.hyper["pinv_iterations"])
    m = min(m, point.seq_len)
    return 2 * m + _PRODUCTS_PER_ITERATION * iterations * m**3 / (2 * point.head_dim * point.seq_len)


@own_code(_pairs)
def nystrom(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, num_landmarks: int = 64, pinv_iterations: int = 6
) -> Tensor:
    """softmax(Q K'^T) softmax(Q' K'^T)^+ softmax(Q' K^T) V, with the means of segments as landmarks Q', K'.

    The two outer factors are calls of scaled_dot_product_attention, so that memory grows with N. With a landmark at
    each position, and iterations until the pseudo-inverse has converged, it is exact.

    Args:
        q, k, v: (B, H, N, D), (B, Hkv, N, D), (B, Hkv, N, Dv).
        is_causal: must be false.
        num_landmarks: m, at most; segments are equally long, but for the last.
        pinv_iterations: iterations of the pseudo-inverse.

    Raises:
        NotImplementedError: under a causal mask, where a landmark would hold later positions.
    """
    if is_causal:
        raise NotImplementedError(
            "Nystromformer has no causal form: a landmark is the mean of a segment, later positions too"
        )
    wide = torch.promote_types(q.dtype, torch.float32)
    keys, values = (repeat_heads(x, q.shape[1]) for x in (k, v))
    few_queries, few_keys = (segment_means(x.to(wide), num_landmarks) for x in (q, keys))
    kernel = (few_queries @ few_keys.transpose(2, 3) * q.shape[3] ** -0.5).softmax(dim=3)
    read = scaled_dot_product_attention(few_queries.to(q.dtype), keys, values)
    solved = pseudo_inverse(kernel, pinv_iterations) @ read.to(wide)
    return scaled_dot_product_attention(q, few_keys.to(q.dtype), solved.to(q.dtype))


def segment_means(x: Tensor, count: int) -> Tensor:
    """Means (B, H, M, D) of at most `count` segments of x (B, H, N, D), ceil(N / count) positions each."""
    seq_len = x.shape[2]
    length = -(-seq_len // min(count, seq_len))
    sums = pad(x, (0, 0, 0, -seq_len % length)).unflatten(2, (-1, length)).sum(dim=3)
    sizes = torch.full((sums.shape[2], 1), float(length), device=x.device, dtype=x.dtype)
    sizes[-1] = seq_len - (sums.shape[2] - 1) * length
    return sums / sizes


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse of matrices a (..., M, M) by the iteration that Nystromformer takes.

    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4, from A^T / (|A|_1 |A|_inf), each matrix by norms of its own.
    """
    norms = a.abs().sum(dim=-2).amax(dim=-1) * a.abs().sum(dim=-1).amax(dim=-1)
    z = a.transpose(-2, -1) / norms[..., None, None]
    eye = torch.eye(a.shape[-1], device=a.device, dtype=a.dtype)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    return z
