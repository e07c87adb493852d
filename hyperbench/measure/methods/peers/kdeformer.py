"""KDEformer (Zandieh et al., ICML 2023): blocks of sorted LSH, and a sample that follows norms of the softmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperattn_core.planning.draws import projections
from hyperattn_core.planning.lsh import hash_ranks
from hyperbench.measure.methods.peers.chunks import attend_in_chunks, order_of, rows_at
from hyperbench.measure.methods.peers.labels import own_code
from hyperbench.measure.methods.trivial import repeat_heads
from hyperbench.store.schema import Point

#: Hyperplanes of the LSH, those of the authors' code.
_NUM_PROJECTIONS = 7


def _pairs(point: Point) -> float:
    block, sample, probes = (int(point.hyper[name]) for name in ("block_size", "sample_size", "num_probes"))
    # A probe makes scores alone, which is half of the work of a query that meets a key.
    return point.seq_len if block >= point.seq_len else block + sample + min(probes, point.seq_len) / 2


@own_code(_pairs)
def kdeformer(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool,
    block_size: int = 256, sample_size: int = 256, num_probes: int = 64, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Exact attention within blocks of sorted LSH, and m keys drawn for the rest, each by its norms.

    A key is drawn (m times, with replacement, for each head) with a probability that is half its share of the squared
    column norms of the softmax matrix and half its share of the squared row norms of V: the design of the paper's
    approximate matrix product. The column norms are estimated from the rows of `num_probes` random queries, the
    simplest of all kernel density estimators, where the paper has one of sublinear time. A sampled key weighs the
    inverse of its expected number of draws, and nothing where it lies in the query's own block, so that numerator and
    denominator are unbiased. With one block for all keys it is exact.

    Args:
        q, k, v: (B, H, N, D), (B, Hkv, N, D), (B, Hkv, N, Dv); half precision is computed in float32.
        is_causal: must be false.
        block_size: b, keys of a block.
        sample_size: m, draws for each head.
        num_probes: queries whose rows estimate the column norms.
        seed: seed of hyperplanes, probes and draws.

    Raises:
        NotImplementedError: under a causal mask, for which the paper has no algorithm.
    """
    if is_causal:
        raise NotImplementedError("KDEformer has no causal form: its paper has no algorithm for one")
    wide = torch.promote_types(q.dtype, torch.float32)
    size = min(block_size, q.shape[2])
    queries = q.to(wide) * q.shape[3] ** -0.5
    keys, values = (repeat_heads(x, q.shape[1]).to(wide) for x in (k, v))
    planes = projections(seed, q.shape[3], _NUM_PROJECTIONS, str(q.device))
    orders = order_of(hash_ranks(queries.detach(), planes)), order_of(hash_ranks(keys.detach(), planes))
    out, lse = attend_in_chunks((queries, keys, values), orders, size)
    if size == q.shape[2]:
        return out.to(q.dtype)
    index, log_weights = sample((queries.detach(), keys.detach(), values.detach()), sample_size, num_probes, seed)
    query_block, key_block = (order.argsort(dim=2) // size for order in orders)
    met = query_block.unsqueeze(3) == key_block.gather(2, index).unsqueeze(2)
    logits = queries @ rows_at(keys, index).transpose(2, 3) + log_weights.unsqueeze(2)
    logits = logits.masked_fill(met, -torch.inf)
    # Not merged by a log-sum-exp of the sample: where all of it lies in a query's block, that has no gradient.
    largest = torch.maximum(lse.detach(), logits.detach().amax(dim=3)).unsqueeze(3)
    of_block, of_sample = (lse.unsqueeze(3) - largest).exp(), (logits - largest).exp()
    total = of_block + of_sample.sum(dim=3, keepdim=True)
    return ((of_block * out + of_sample @ rows_at(values, index)) / total).to(q.dtype)


def sample(inputs: tuple[Tensor, Tensor, Tensor], count: int, num_probes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw keys for scaled queries, keys and values (B, H, N, D).

    Returns:
        Positions of the drawn keys (B, H, m), and the logarithms of their weights, 1 / (m p).
    """
    queries, keys, values = inputs
    probabilities = (_shares(column_norms(queries, keys, num_probes, seed)) + _shares(values.square().sum(dim=3))) / 2
    # In float64, so that a sum over many keys leaves none out of reach.
    ends = probabilities.double().cumsum(dim=2)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.rand(*keys.shape[:2], count, generator=generator, dtype=torch.float64, device="cpu")
    index = torch.searchsorted(ends, drawn.to(ends.device) * ends[..., -1:], right=True).clamp(max=keys.shape[2] - 1)
    return index, -(probabilities.gather(2, index).log() + math.log(count))


def column_norms(queries: Tensor, keys: Tensor, num_probes: int, seed: int) -> Tensor:
    """Squared norms (B, H, N) of the columns of the softmax matrix over N, from the rows of some scaled queries."""
    # Another stream than that of the draws.
    generator = torch.Generator(device="cpu").manual_seed(seed ^ 1 << 62)
    rows = torch.randperm(queries.shape[2], generator=generator, device="cpu")[:num_probes].to(queries.device)
    return (queries[:, :, rows] @ keys.transpose(2, 3)).softmax(dim=3).square().mean(dim=2)


def _shares(x: Tensor) -> Tensor:
    """x (B, H, N) as shares of its sum; equal ones where all are zero."""
    total = x.sum(dim=2, keepdim=True)
    return torch.where(total > 0, x / total, 1.0 / x.shape[2])
