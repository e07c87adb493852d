"""Performer (Choromanski et al., ICLR 2021): softmax attention through positive random features, FAVOR+."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyperbench.measure.methods.peers.labels import own_code
from hyperbench.measure.methods.trivial import repeat_heads
from hyperbench.store.schema import Point

#: Positions of a chunk under a causal mask: within one, queries meet keys one by one; before it, by sums of features.
_CHUNK = 64


def _pairs(point: Point) -> float:
    features = int(point.hyper["num_features"])
    within_chunk = _CHUNK * (features + point.head_dim) / (2 * point.head_dim) if point.is_causal else 0.0
    return 2 * features + within_chunk


@own_code(_pairs)
def performer(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, num_features: int = 256, seed: int = 0) -> Tensor:
    """Attention with exp(q.k / sqrt(D)) replaced by phi(q).phi(k), phi positive features of orthogonal directions.

    phi(x) = exp(w x' - |x'|^2 / 2) for the directions w, x' = x / D^(1/4): the paper's unbiased estimate of the kernel.
    No constant is added to features, and what keeps them in range (the maximum of each feature, of each query) cancels
    exactly: the answer is that of the formula, and converges to attention as the features grow. Under a causal mask
    those maxima are of earlier positions alone, so that no output depends on a later key to the last bit.

    Args:
        q, k, v: (B, H, N, D), (B, Hkv, N, D), (B, Hkv, N, Dv); half precision is computed in float32.
        is_causal: row t sees keys 0..t.
        num_features: m, the directions.
        seed: seed of the directions, shared by all heads.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    directions = orthogonal_directions(q.shape[3], num_features, seed, str(q.device)).to(wide)
    keys, values = (repeat_heads(x, q.shape[1]).to(wide) for x in (k, v))
    keys, queries = (x * q.shape[3] ** -0.25 for x in (keys, q.to(wide)))
    # A factor of a query's own, such as exp(-|q'|^2 / 2), cancels in the quotient.
    log_q = queries @ directions
    log_k = keys @ directions - keys.square().sum(dim=3, keepdim=True) / 2
    # The last column of the sums is the denominator.
    sums = (_causal_sums if is_causal else _sums)(log_q, log_k, pad(values, (0, 1), value=1.0))
    return (sums[..., :-1] / sums[..., -1:]).to(q.dtype)


@lru_cache(maxsize=16)
def orthogonal_directions(head_dim: int, count: int, seed: int, device: str) -> Tensor:
    """Directions (D, m), float64: rows of random orthogonal matrices, as long as Gaussian rows are.

    Each is a Gaussian direction by itself; those of one matrix are orthogonal, which lowers the variance.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64, device="cpu")
    orthogonal, upper = torch.linalg.qr(normal(-(-count // head_dim), head_dim, head_dim))
    # With a positive diagonal of the triangular factor, and only so, the other factor is uniformly distributed.
    orthogonal = orthogonal * upper.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    lengths = normal(count, head_dim).norm(dim=1)
    rows = orthogonal.transpose(1, 2).flatten(0, 1)[:count]
    return (rows * lengths.unsqueeze(1)).t().to(device)


def _sums(log_q: Tensor, log_k: Tensor, values: Tensor) -> Tensor:
    """phi(Q) (phi(K)^T V) up to a factor a row, from the logarithms of features (B, H, N, m)."""
    top = log_k.detach().amax(dim=2, keepdim=True)
    return _read(log_q, top, (log_k - top).exp().transpose(2, 3) @ values)[0]


def _read(log_q: Tensor, top: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The sums that queries read from a state, and the logarithm of the factor that each row was divided by.

    The state is sum_j exp(log_k_j - top) v_j for each feature. Where top is the largest log_k of a feature, the
    denominator of each row is at least 1.
    """
    logs = log_q + top
    largest = logs.detach().amax(dim=-1, keepdim=True)
    return (logs - largest).exp() @ state, largest


def _causal_sums(log_q: Tensor, log_k: Tensor, values: Tensor) -> Tensor:
    """As _sums, with each query's own keys alone: a state for the chunks before its own, and single keys within it."""
    seq_len = log_q.shape[2]
    log_q, log_k, values = (
        pad(x, (0, 0, 0, -seq_len % _CHUNK)).unflatten(2, (-1, _CHUNK)) for x in (log_q, log_k, values)
    )
    earlier, factor = _read(log_q, *_states(log_k, values))
    key_top, query_top = (x.detach().amax(dim=4, keepdim=True) for x in (log_k, log_q))
    products = (log_q - query_top).exp() @ (log_k - key_top).exp().transpose(3, 4)
    # A product of features below the least positive number counts as that number, so that no row is empty.
    logits = products.clamp_min(torch.finfo(products.dtype).tiny).log() + query_top + key_top.transpose(3, 4)
    later = torch.ones(_CHUNK, _CHUNK, dtype=torch.bool, device=logits.device).triu(1)
    logits = logits.masked_fill(later, -torch.inf)
    largest = torch.maximum(factor, logits.detach().amax(dim=4, keepdim=True))
    sums = earlier * (factor - largest).exp() + (logits - largest).exp() @ values
    return sums.flatten(2, 3)[:, :, :seq_len]


def _states(log_k: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The largest log_k of each feature (B, H, G, 1, m) before each of G chunks, and the state (B, H, G, m, Dv)."""
    tops = log_k.detach().amax(dim=3, keepdim=True)
    sums = (log_k - tops).exp().transpose(3, 4) @ values
    # Before the first chunk there is nothing: an empty state, and a maximum far below all others but finite.
    top = torch.full_like(tops[:, :, 0], torch.finfo(tops.dtype).min / 4)
    state = torch.zeros_like(sums[:, :, 0])
    before = []
    for chunk_top, chunk_sum in zip(tops.unbind(2), sums.unbind(2), strict=True):
        before.append((top, state))
        largest = torch.maximum(top, chunk_top)
        old, new = ((x - largest).exp().transpose(2, 3) for x in (top, chunk_top))
        top, state = largest, state * old + chunk_sum * new
    found_tops, found_states = zip(*before, strict=True)
    return torch.stack(found_tops, dim=2), torch.stack(found_states, dim=2)
