"""Queries and keys in clusters, and values that follow them."""

from __future__ import annotations

from hyperbench.measure.inputs import Inputs, Numbers, Shape
from hyperbench.measure.inputs.clustered import queries_and_keys


def draw(
    numbers: Numbers,
    shape: Shape,
    num_clusters: int = 256,
    center_std: float = 1.5,
    noise_std: float = 0.5,
    value_noise_std: float = 0.3,
) -> Inputs:
    """As clustered, and a value is the random value of its key's cluster plus noise."""
    q, k, key_cluster = queries_and_keys(numbers, shape, num_clusters, center_std, noise_std)
    cluster_values = numbers.normal(num_clusters, shape.head_dim)
    return q, k, cluster_values[key_cluster] + value_noise_std * numbers.normal(*k.shape)
