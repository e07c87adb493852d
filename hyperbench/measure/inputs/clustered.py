"""Queries and keys in clusters: what hashing can find."""

from __future__ import annotations

from torch import Tensor

from hyperbench.measure.inputs import Inputs, Numbers, Shape


def draw(
    numbers: Numbers, shape: Shape, num_clusters: int = 256, center_std: float = 1.5, noise_std: float = 0.5
) -> Inputs:
    """Queries and keys around the same random centres, in random order; values independent of the clusters."""
    q, k, _ = queries_and_keys(numbers, shape, num_clusters, center_std, noise_std)
    return q, k, numbers.normal(*k.shape)


def queries_and_keys(
    numbers: Numbers, shape: Shape, num_clusters: int, center_std: float, noise_std: float
) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, N, D) and k (B, Hkv, N, D) around the same centres, and the cluster of each key (B, Hkv, N)."""
    batch, heads, kv_heads, seq_len, head_dim = shape
    centers = center_std * numbers.normal(num_clusters, head_dim)
    query_cluster = numbers.integers(num_clusters, batch, heads, seq_len)
    key_cluster = numbers.integers(num_clusters, batch, kv_heads, seq_len)
    q = centers[query_cluster] + noise_std * numbers.normal(batch, heads, seq_len, head_dim)
    k = centers[key_cluster] + noise_std * numbers.normal(batch, kv_heads, seq_len, head_dim)
    return q, k, key_cluster
