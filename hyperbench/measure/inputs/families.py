"""Seeded inputs: the same q, k and v for every method and on every device.

Everything is drawn in float32 by a CPU generator and cast afterwards, so that two dtypes see the same numbers rounded.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperbench.config.catalog import check_name, nearest
from hyperbench.store.schema import Point

Draw = tuple[Tensor, Tensor, Tensor]
Shape = tuple[int, int, int, int, int]


def make_inputs(point: Point) -> Draw:
    """q (B, H, N, D), k and v (B, Hkv, N, D) of a point, on its device, in its dtype. Raises ValueError if unknown."""
    check_name("input", point.input, FAMILIES)
    shape = (point.batch, point.heads, point.kv_heads, point.seq_len, point.head_dim)
    drawn = FAMILIES[point.input](_generator(point.seed, point.input), shape, **point.input_params)
    q, k, v = (x.to(device=point.device, dtype=getattr(torch, point.dtype)) for x in drawn)
    return q, k, v


def make_grad_output(point: Point) -> Tensor:
    """The fixed Gaussian grad_output (B, H, N, D) under which all backward passes of a point run."""
    shape = (point.batch, point.heads, point.seq_len, point.head_dim)
    drawn = torch.randn(*shape, generator=_generator(point.seed, "grad_output"))
    return drawn.to(device=point.device, dtype=getattr(torch, point.dtype))


def check_params(family: str, params: dict[str, Any]) -> None:
    """Raise ValueError on a parameter that the family lacks or a value it cannot take."""
    check_name("input", family, FAMILIES)
    known = list(inspect.signature(FAMILIES[family]).parameters)[2:]
    for name, value in params.items():
        if name not in known:
            raise ValueError(
                f"input.{name} is no parameter of {family}; allowed: {', '.join(known)}{nearest(name, known)}"
            )
        whole = name.startswith("num_")
        good = isinstance(value, int) if whole else isinstance(value, (int, float))
        if isinstance(value, bool) or not good or not (1 if whole else 0) <= value < math.inf:
            raise ValueError(
                f"input.{name}={value} must be {'a positive integer' if whole else 'a number of at least 0'}"
            )


def gaussian(generator: torch.Generator, shape: Shape, std: float = 1.0) -> Draw:
    """Independent entries of standard deviation std: no structure for an approximation to find."""
    batch, heads, kv_heads, seq_len, head_dim = shape
    sizes = [(batch, h, seq_len, head_dim) for h in (heads, kv_heads, kv_heads)]
    q, k, v = (std * torch.randn(*size, generator=generator) for size in sizes)
    return q, k, v


def clustered(
    generator: torch.Generator, shape: Shape, num_clusters: int = 256, center_std: float = 1.5, noise_std: float = 0.5
) -> Draw:
    """Queries and keys around the same random centres, in random order; values independent of the clusters."""
    q, k, _ = _clustered(generator, shape, num_clusters, center_std, noise_std)
    return q, k, torch.randn(*k.shape, generator=generator)


def clustered_values(
    generator: torch.Generator,
    shape: Shape,
    num_clusters: int = 256,
    center_std: float = 1.5,
    noise_std: float = 0.5,
    value_noise_std: float = 0.3,
) -> Draw:
    """As clustered, and a value is the random value of its key's cluster plus noise."""
    q, k, key_cluster = _clustered(generator, shape, num_clusters, center_std, noise_std)
    cluster_values = torch.randn(num_clusters, shape[4], generator=generator)
    return q, k, cluster_values[key_cluster] + value_noise_std * torch.randn(*k.shape, generator=generator)


def heavy_keys(generator: torch.Generator, shape: Shape, num_heavy: int = 4, strength: float = 3.0) -> Draw:
    """A quarter of the queries lean towards one of a few keys (at random positions), which draw most attention."""
    q, k, v = gaussian(generator, shape)
    batch, heads, _kv_heads, seq_len, head_dim = shape
    count = min(num_heavy, seq_len)
    position = torch.randperm(seq_len, generator=generator)[:count]
    direction = torch.nn.functional.normalize(torch.randn(count, head_dim, generator=generator), dim=1)
    # Logits are scaled by 1 / sqrt(D): this length on both sides adds strength^2 to the logit of the leaning query.
    length = strength * head_dim**0.25
    k[:, :, position] = direction * length
    leaning = torch.rand(batch, heads, seq_len, generator=generator) < 0.25
    choice = torch.randint(count, (batch, heads, seq_len), generator=generator)
    return q + leaning.unsqueeze(3) * direction[choice] * length, k, v


FAMILIES: dict[str, Callable[..., Draw]] = {
    "gaussian": gaussian,
    "clustered": clustered,
    "clustered_values": clustered_values,
    "heavy_keys": heavy_keys,
}


def _clustered(
    generator: torch.Generator, shape: Shape, num_clusters: int, center_std: float, noise_std: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, kv_heads, seq_len, head_dim = shape
    centers = center_std * torch.randn(num_clusters, head_dim, generator=generator)
    query_cluster = torch.randint(num_clusters, (batch, heads, seq_len), generator=generator)
    key_cluster = torch.randint(num_clusters, (batch, kv_heads, seq_len), generator=generator)
    q = centers[query_cluster] + noise_std * torch.randn(batch, heads, seq_len, head_dim, generator=generator)
    k = centers[key_cluster] + noise_std * torch.randn(batch, kv_heads, seq_len, head_dim, generator=generator)
    return q, k, key_cluster


def _generator(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(random.Random(f"{seed}/{stream}").getrandbits(63))
