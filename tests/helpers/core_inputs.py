"""Seeded inputs, layouts, parameters and plain references that the tests of the algorithm share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, make_plan
from hyperattn_core.params import ROUTED_KEYS, ROUTED_QUERIES
from tests.helpers.slow import slow

SAMPLINGS = ("iid", "stratified", "probed", "truncated")
PAIRINGS = ("rank", "bucket")
ALL_PAIRINGS = (*PAIRINGS, "routed")
#: Samplings with pairings: the paper's, and others that have little in common with it or with each other.
CHOICES = (
    ("iid", "rank"), ("stratified", "bucket"), ("probed", "routed"), *slow(("iid", "bucket"), ("stratified", "rank"))
)  # fmt: skip
HASHINGS = ("angular", "centred")
LAYOUTS = ("contiguous", "heads_inside", "columns_first", "every_second_column", "expanded")

Tensors = tuple[Tensor, Tensor, Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same for a seed in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def qkv(
    *,
    queries: int,
    keys: int | None = None,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int | None = None,
    dim: int = 8,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Tensors:
    """Normal q, k and v; what is not given follows what is."""
    keys = queries if keys is None else keys
    kv_heads = heads if kv_heads is None else kv_heads
    value_dim = dim if value_dim is None else value_dim
    return (
        normal(batch, heads, queries, dim, seed=3 * seed, dtype=dtype),
        normal(batch, kv_heads, keys, dim, seed=3 * seed + 1, dtype=dtype),
        normal(batch, kv_heads, keys, value_dim, seed=3 * seed + 2, dtype=dtype),
    )


def laid_out(x: Tensor, layout: str) -> Tensor:
    """x with other strides; "expanded" repeats its first head, the other layouts keep its values."""
    if layout == "heads_inside":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "columns_first":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "every_second_column":
        return x.repeat_interleave(2, dim=3)[..., ::2]
    if layout == "expanded":
        return x[:1, :1].expand_as(x)
    return x


def routed_size(block_size: int) -> int:
    """The next block size that "routed" pairing takes."""
    step = ROUTED_KEYS * ROUTED_QUERIES
    return -(-block_size // step) * step


def small_params(sampling: str, pairing: str, **changes: Any) -> HyperAttentionParams:
    """Parameters that leave short inputs approximate."""
    sizes = {"block_size": 8, "sample_size": 6, "num_projections": 3, "min_seq_len": 5} | changes
    if pairing == "routed":
        sizes["block_size"] = routed_size(sizes["block_size"])
    probes = {"num_probes": min(4, sizes["min_seq_len"]), "probe_floor": 0.4}
    return HyperAttentionParams(sampling=sampling, pairing=pairing, **(probes | sizes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    """One call: inputs, parameters and everything else a plan needs."""

    q: Tensor
    k: Tensor
    v: Tensor
    params: HyperAttentionParams
    seed: int
    is_causal: bool
    tile_size: int

    def plan(self) -> AttentionPlan:
        """The plan of the case."""
        return make_plan(self.q, self.k, self.params, self.seed, is_causal=self.is_causal, tile_size=self.tile_size)


def all_params(max_size: int = 24, pairings: Iterable[str] = ALL_PAIRINGS) -> st.SearchStrategy[HyperAttentionParams]:
    """Parameters of every kind, with sizes that divide nothing in particular."""

    def made(num_probes: int, min_seq_len: int, **rest: Any) -> HyperAttentionParams:
        if rest["pairing"] == "routed":
            rest |= {"block_size": routed_size(rest["block_size"]), "hashing": "angular"}
        return HyperAttentionParams(num_probes=min(num_probes, min_seq_len), min_seq_len=min_seq_len, **rest)

    return st.builds(
        made,
        block_size=st.integers(1, max_size),
        sample_size=st.integers(1, max_size),
        num_projections=st.integers(1, 9),
        min_seq_len=st.integers(1, max_size),
        sampling=st.sampled_from(SAMPLINGS),
        pairing=st.sampled_from(tuple(pairings)),
        hashing=st.sampled_from(HASHINGS),
        num_probes=st.integers(1, 5),
        probe_floor=st.sampled_from((0.01, 0.1, 1.0)),
    )


@st.composite
def cases(draw: st.DrawFn, max_len: int = 120, pairings: Iterable[str] = ALL_PAIRINGS) -> Case:
    """Any small call in float64: masks, batches, grouped heads, head sizes, lengths, layouts and tile sizes."""
    is_causal = draw(st.booleans())
    keys = draw(st.integers(1, max_len))
    queries = keys if is_causal else draw(st.integers(1, max_len))
    kv_heads = draw(st.integers(1, 2))
    q, k, v = qkv(
        queries=queries,
        keys=keys,
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.integers(1, 9)),
        value_dim=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 1000)),
    )
    q, k, v = (laid_out(x, draw(st.sampled_from(LAYOUTS))) for x in (q, k, v))
    return Case(
        q,
        k,
        v,
        draw(all_params(pairings=pairings)),
        draw(st.integers()),
        is_causal,
        draw(st.sampled_from((1, 3, 16, 64))),
    )


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention as a textbook has it, in the dtype of its inputs: out and log-sum-exp."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    logits = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])
    if is_causal:
        hidden = torch.ones(logits.shape[2:], dtype=torch.bool).triu(1)
        logits = logits.masked_fill(hidden, -math.inf)
    return logits.softmax(dim=-1) @ v, logits.logsumexp(dim=-1)


def doubled(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in float64, as leaves that want a gradient."""
    return [x.detach().double().requires_grad_() for x in tensors]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal shapes, and every entry within the tolerance."""
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def with_gradients(attend: Callable[..., Tensor], tensors: Iterable[Tensor]) -> list[Tensor]:
    """The output and the gradients of q, k and v, for a gradient of the output that is always the same."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    out = attend(*tensors)
    return [out, *torch.autograd.grad(out, tensors, normal(*out.shape, seed=7).to(out.dtype))]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| in the Frobenius norm."""
    actual, expected = actual.detach().double(), expected.detach()
    return float((actual - expected).norm() / expected.norm())


def bits(x: Tensor) -> Tensor:
    """The bit patterns of x as integers, so that equality is equality to the last bit."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
