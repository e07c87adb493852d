"""Every random draw of a plan: projections and sample positions, from a seeded CPU generator."""

from __future__ import annotations

import random
from functools import lru_cache

import torch
from torch import Tensor

from hyperattn_core.params import Sampling


def projections(seed: int, head_dim: int, num_projections: int, device: str) -> Tensor:
    """Gaussian directions (D, r), float64, shared by all heads; small, so that device copies are kept."""
    return _cached_projections(seed, head_dim, num_projections, device)


def sample_count(node_len: int, block_size: int, sample_size: int, sampling: Sampling) -> int:
    """Samples of a node: none where one block holds every key, as each would lie in it, with weight zero."""
    if block_size >= node_len:
        return 0
    return min(sample_size, node_len) if sampling == "stratified" else sample_size


def samples(
    seed: int,
    level_index: int,
    rows: tuple[int, int, int],
    node_len: int,
    sample_size: int,
    sampling: Sampling,
    device: str,
) -> tuple[Tensor, Tensor]:
    """Sampled indices into the sorted keys, int32 (*rows, m), and their weights, float64 (m,)."""
    # On the CPU a draw is cheaper than the memory that keeps it; elsewhere a copy would stall the device.
    draw = _draw_samples if device == "cpu" else _cached_samples
    return draw(seed, level_index, rows, node_len, sample_size, sampling, device)


def _generator(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for one purpose; streams of the same seed are independent of each other."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{stream}").getrandbits(63))


@lru_cache(maxsize=64)
def _cached_projections(seed: int, head_dim: int, num_projections: int, device: str) -> Tensor:
    drawn = torch.randn(head_dim, num_projections, generator=_generator(seed, "projections"), dtype=torch.float64)
    return drawn.to(device)


def _draw_samples(
    seed: int,
    level_index: int,
    rows: tuple[int, int, int],
    node_len: int,
    sample_size: int,
    sampling: Sampling,
    device: str,
) -> tuple[Tensor, Tensor]:
    generator = _generator(seed, f"samples/{level_index}")
    if sampling == "stratified":
        edges = torch.arange(sample_size + 1, dtype=torch.int64) * node_len // max(sample_size, 1)
        low, length = edges[:-1], edges[1:] - edges[:-1]
        weight = length.to(torch.float64)
    else:
        low = torch.zeros(sample_size, dtype=torch.int64)
        length = torch.full((sample_size,), node_len, dtype=torch.int64)
        weight = torch.full((sample_size,), node_len / max(sample_size, 1), dtype=torch.float64)
    uniform = torch.rand(*rows, sample_size, generator=generator, dtype=torch.float64)
    index = low + (uniform * length).to(torch.int64).clamp(max=length - 1)
    return index.to(device=device, dtype=torch.int32), weight.to(device)


_cached_samples = lru_cache(maxsize=64)(_draw_samples)
