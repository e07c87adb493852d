"""Reformer (Kitaev et al., ICLR 2020): exact attention within chunks of queries and keys that hash alike."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hyperbench.measure.methods.peers.chunks import attend_in_chunks, order_of
from hyperbench.measure.methods.peers.labels import own_code
from hyperbench.measure.methods.trivial import repeat_heads
from hyperbench.store.schema import Point


def _pairs(point: Point) -> float:
    size = min(int(point.hyper["bucket_size"]), point.seq_len)
    met = size if size == point.seq_len else 2 * size
    return float(int(point.hyper["num_hashes"]) * (met + point.is_causal))


@own_code(_pairs)
def reformer(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, bucket_size: int = 64, num_hashes: int = 8, seed: int = 0
) -> Tensor:
    """LSH attention over several rounds of hashing, for queries and keys of their own.

    A round hashes x to argmax([x R, -x R]) for a Gaussian R, sorts queries and keys by hash and then position, and cuts
    both into chunks of bucket_size; queries meet the keys of the chunk of the same number and of the one before. Rounds
    are merged by their log-sum-exp, and a key met in several counts as often. The paper has k = q / |q|, and then this
    is its layer, but for a token's own key, which it leaves out where there are others. With one chunk it is exact.

    Under a causal mask a query also meets its own key, and no later one. Strictly that is not causal: later tokens
    decide where chunks end, and so which earlier keys a query meets.

    Args:
        q, k, v: (B, H, N, D), (B, Hkv, N, D), (B, Hkv, N, Dv); half precision is computed in float32.
        is_causal: mask later keys.
        bucket_size: positions of a chunk; there are about N / bucket_size buckets.
        num_hashes: rounds.
        seed: seed of the rotations, shared by all heads.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    size = min(bucket_size, q.shape[2])
    queries = q.to(wide) * q.shape[3] ** -0.5
    keys, values = (repeat_heads(x, q.shape[1]).to(wide) for x in (k, v))
    num_rotations = max(1, -(-q.shape[2] // size) // 2)
    rounds = []
    for rotation in random_rotations(q.shape[3], num_rotations, num_hashes, seed, str(q.device)).to(wide):
        orders = order_of(buckets(queries, rotation)), order_of(buckets(keys, rotation))
        rounds.append(attend_in_chunks((queries, keys, values), orders, size, is_causal=is_causal, look_back=True))
    outs, lses = (torch.stack(parts) for parts in zip(*rounds, strict=True))
    return (outs * lses.softmax(dim=0).unsqueeze(4)).sum(dim=0).to(q.dtype)


def buckets(x: Tensor, rotation: Tensor) -> Tensor:
    """Angular hash (B, H, N) of x (B, H, N, D): the nearest of the columns of a rotation (D, r) and their opposites."""
    rotated = x.detach() @ rotation
    return torch.cat([rotated, -rotated], dim=3).argmax(dim=3)


@lru_cache(maxsize=16)
def random_rotations(head_dim: int, count: int, num_hashes: int, seed: int, device: str) -> Tensor:
    """Gaussian matrices (num_hashes, D, count), float64: 2 count buckets for each round."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randn(num_hashes, head_dim, count, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(device)
