"""Every random draw of a plan: projections and sample positions, from a seeded CPU generator.

Each tensor names its device: a draw must not follow torch.set_default_device.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams, Sampling
from hyperattn_core.planning.levels import CallShape, LevelShape


@dataclass(frozen=True)
class SampleDesign:
    """Parameters of the draw of one level's samples.

    Attributes:
        level_index: the level, which has a random stream of its own.
        rows: (B, Hkv, G), each with draws of its own.
        node_len: S, keys to draw from.
        count: m, draws.
        sampling: independent, or one from each of m slices.
    """

    level_index: int
    rows: tuple[int, int, int]
    node_len: int
    count: int
    sampling: Sampling


def sample_count(node_len: int, params: HyperAttentionParams) -> int:
    """Samples of a node: none where one block holds every key, as each would lie in it, with weight zero."""
    if params.one_block_holds(node_len):
        return 0
    return params.sample_size if params.sampling == "iid" else min(params.sample_size, node_len)


def level_samples(
    level: LevelShape, shape: CallShape, params: HyperAttentionParams, seed: int, device: str
) -> tuple[Tensor, Tensor]:
    """Uniform draws of indices into the sorted keys, ascending: int32 (B, Hkv, G, m), and weights, float64 (m,)."""
    rows = (shape[0], shape[2], level.num_nodes)
    design = SampleDesign(level.index, rows, level.node_len, sample_count(level.node_len, params), params.sampling)
    # On the CPU a draw is cheaper than the memory that keeps it; elsewhere a copy would stall the device.
    draw = _draw_samples if device == "cpu" else _cached_samples
    return draw(seed, design, device)


def sample_offsets(level: LevelShape, shape: CallShape, seed: int, device: str) -> Tensor:
    """Offsets of the systematic draws of all nodes: uniform in [0, 1), float64 (B, Hkv, G, 1)."""
    generator = _generator(seed, f"samples/{level.index}")
    rows = (shape[0], shape[2], level.num_nodes, 1)
    return torch.rand(rows, generator=generator, dtype=torch.float64, device="cpu").to(device)


def probe_positions(num_queries: int, num_probes: int, seed: int, device: str) -> Tensor:
    """Positions of the probes of a call without a mask, int64, ascending: one of each of num_probes equal slices."""
    count = min(num_probes, num_queries)
    edges = torch.arange(count + 1, dtype=torch.int64, device="cpu") * num_queries // count
    low, length = edges[:-1], edges[1:] - edges[:-1]
    uniform = torch.rand(count, generator=_generator(seed, "probes"), dtype=torch.float64, device="cpu")
    return (low + (uniform * length).to(torch.int64).clamp(max=length - 1)).to(device)


def _generator(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for one purpose; streams of the same seed are independent of each other."""
    return torch.Generator(device="cpu").manual_seed(random.Random(f"{seed}/{stream}").getrandbits(63))


@lru_cache(maxsize=64)
def projections(seed: int, head_dim: int, num_projections: int, device: str) -> Tensor:
    """Gaussian directions (D, r), float64, shared by all heads; small, so that device copies are kept."""
    generator = _generator(seed, "projections")
    drawn = torch.randn(head_dim, num_projections, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.to(device)


def _draw_samples(seed: int, design: SampleDesign, device: str) -> tuple[Tensor, Tensor]:
    count, node_len = design.count, design.node_len
    if design.sampling == "stratified":
        edges = torch.arange(count + 1, dtype=torch.int64, device="cpu") * node_len // max(count, 1)
        low, length = edges[:-1], edges[1:] - edges[:-1]
        weight = length.to(torch.float64)
    else:
        low = torch.zeros(count, dtype=torch.int64, device="cpu")
        length = torch.full_like(low, node_len)
        weight = torch.full_like(low, node_len / max(count, 1), dtype=torch.float64)
    generator = _generator(seed, f"samples/{design.level_index}")
    uniform = torch.rand(*design.rows, count, generator=generator, dtype=torch.float64, device="cpu")
    index = (low + (uniform * length).to(torch.int64).clamp(max=length - 1)).sort(-1).values
    return index.to(device=device, dtype=torch.int32), weight.to(device)


_cached_samples = lru_cache(maxsize=64)(_draw_samples)
