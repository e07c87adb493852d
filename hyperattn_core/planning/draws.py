"""Every random draw of a plan: projections, and positions of samples and probes.

Numbers are those of SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014),
which are a function of a key and a place; seed and purpose make the key. `kernels/draw.py` has the same in Triton. Only
integer operations are used, and float64 ones that every device rounds alike: the bits of a draw are the same on each.
It is made where it is needed, and nothing is copied or waited for. Each tensor names its device: a draw must not follow
torch.set_default_device.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.levels import CallShape, LevelShape

#: The generator's constants, as signed numbers of 64 bits.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64
#: Purposes, each with numbers of its own.
SAMPLES, PROBES, PROJECTIONS = "samples", "probes", "projections"
#: A level's numbers begin at this place times its index, further than any call draws.
LEVEL_PLACES = 2**40
LN_2, ROOT_2, PI = math.log(2.0), math.sqrt(2.0), math.pi
#: 2 artanh(x) / x and sin(x) / x in powers of x squared, the highest first.
LOG_SERIES = tuple(2.0 / (2 * term + 1) for term in range(10, -1, -1))
SIN_SERIES = tuple((-1.0) ** term / math.factorial(2 * term + 1) for term in range(11, -1, -1))


def sample_count(node_len: int, params: HyperAttentionParams) -> int:
    """Samples of a node: none where one block holds every key, as each would lie in it, with weight zero."""
    if params.one_block_holds(node_len):
        return 0
    return params.sample_size if params.sampling == "iid" else min(params.sample_size, node_len)


def level_samples(
    level: LevelShape, shape: CallShape, params: HyperAttentionParams, seed: int, device: str
) -> tuple[Tensor, Tensor]:
    """Uniform draws of indices into the sorted keys, ascending, int32 (B, Hkv, G, m), and weights, float64 (m,)."""
    count = sample_count(level.node_len, params)
    drawn = _uniform(seed, SAMPLES, level.index * LEVEL_PLACES, (shape[0], shape[2], level.num_nodes, count), device)
    if params.sampling != "stratified":
        return (drawn * level.node_len).to(torch.int32).sort(-1).values, level_weights(level, params, device)
    low, length = _slices(level.node_len, count, device)
    return (low + (drawn * length).to(torch.int64)).to(torch.int32), length.to(torch.float64)


def level_weights(level: LevelShape, params: HyperAttentionParams, device: str) -> Tensor:
    """The weights of `level_samples`, float64 (m,): they follow from sizes alone."""
    count = sample_count(level.node_len, params)
    if params.sampling == "stratified":
        return _slices(level.node_len, count, device)[1].to(torch.float64)
    return torch.full((count,), level.node_len / max(count, 1), dtype=torch.float64, device=device)


def sample_offsets(level: LevelShape, shape: CallShape, seed: int, device: str) -> Tensor:
    """Offsets of the systematic draws of all nodes: uniform in [0, 1), float64 (B, Hkv, G, 1)."""
    rows = (shape[0], shape[2], level.num_nodes, 1)
    return _uniform(seed, SAMPLES, level.index * LEVEL_PLACES, rows, device)


def probe_positions(num_queries: int, num_probes: int, seed: int, device: str) -> Tensor:
    """Positions of the probes of a call without a mask, int64, ascending: one of each of num_probes equal slices."""
    count = min(num_probes, num_queries)
    low, length = _slices(num_queries, count, device)
    return low + (_uniform(seed, PROBES, 0, (count,), device) * length).to(torch.int64)


class KeptOnDevice:
    """The last results of a function whose last argument is a device, made once.

    While a CUDA graph is captured they are made anew, as a part of the graph: it reads nothing that is given up later.
    """

    def __init__(self, make: Callable[..., Tensor], maxsize: int) -> None:
        functools.update_wrapper(self, make)
        self._make, self._kept = make, functools.lru_cache(maxsize)(make)

    def __call__(self, *arguments: Any) -> Tensor:
        """The result."""
        captured = arguments[-1].startswith("cuda") and torch.cuda.is_current_stream_capturing()
        return self._make(*arguments) if captured else self._kept(*arguments)

    def cache_clear(self) -> None:
        """Give up all results."""
        self._kept.cache_clear()


def kept_on_device(maxsize: int) -> Callable[[Callable[..., Tensor]], KeptOnDevice]:
    """Decorate a function as KeptOnDevice."""
    return functools.partial(KeptOnDevice, maxsize=maxsize)


@kept_on_device(maxsize=64)
def projections(seed: int, head_dim: int, num_projections: int, device: str) -> Tensor:
    """Gaussian directions (D, r), float64, shared by all heads: a few hundred numbers, of which copies are kept."""
    count = head_dim * num_projections
    angle = _uniform(seed, PROJECTIONS, 0, (count,), device)
    # Above zero: a logarithm follows.
    radius = _uniform(seed, PROJECTIONS, count, (count,), device) + 2.0**-53
    return ((_log(radius) * -2.0).clamp(min=0.0).sqrt() * _cos_of_turn(angle)).view(head_dim, num_projections)


def stream_key(seed: int, stream: str) -> int:
    """The key of the numbers for one purpose, a signed number of 64 bits; those of other purposes have nothing to do
    with them."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def splitmix64(key: int, first: int, count: int, device: str) -> Tensor:
    """Numbers `first` to `first + count - 1` that SplitMix64 makes from the state `key`: int64, all 64 bits random."""
    z = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=device).mul_(GAMMA).add_(key)
    z.bitwise_xor_(_shifted(z, 30)).mul_(MIX_1)
    z.bitwise_xor_(_shifted(z, 27)).mul_(MIX_2)
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of a number without a sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _uniform(seed: int, stream: str, first: int, shape: tuple[int, ...], device: str) -> Tensor:
    """Multiples of 2**-53 in [0, 1), float64; times a length below 2**53 they stay below it, rounded as they are."""
    numbers = splitmix64(stream_key(seed, stream), first, math.prod(shape), device)
    return _shifted(numbers, 11).to(torch.float64).mul_(2.0**-53).view(shape)


def _slices(length: int, count: int, device: str) -> tuple[Tensor, Tensor]:
    """First elements and lengths of `count` equal slices of a length, int64."""
    edges = torch.arange(count + 1, dtype=torch.int64, device=device) * length // max(count, 1)
    return edges[:-1], edges[1:] - edges[:-1]


def _log(x: Tensor) -> Tensor:
    """The natural logarithm in products, sums and a quotient alone, which devices round alike; x positive, float64."""
    bits = x.view(torch.int64)
    mantissa = ((bits & (2**52 - 1)) | (1023 << 52)).view(torch.float64)
    exponent = ((bits >> 52) - 1023).to(torch.float64)
    ratio = (mantissa - ROOT_2) / (mantissa + ROOT_2)
    return (exponent + 0.5) * LN_2 + ratio * _series(ratio * ratio, LOG_SERIES)


def _cos_of_turn(x: Tensor) -> Tensor:
    """cos(2 pi x) likewise, for x in [0, 1]."""
    angle = (x - 0.5) * PI
    sine = angle * _series(angle * angle, SIN_SERIES)
    return sine * sine * 2.0 - 1.0


def _series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """A polynomial; its coefficients begin with that of the highest power."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total.mul_(x).add_(coefficient)
    return total
