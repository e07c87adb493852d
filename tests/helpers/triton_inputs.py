"""Calls that the tests of the kernels share: one for each edge, small, as the interpreter is slow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, make_plan
from tests.helpers.core_inputs import routed_size


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same for a seed in every dtype but for rounding."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Call:
    """One call of hyper_attention; what is not given follows what is."""

    queries: int = 101
    keys: int | None = None
    is_causal: bool = False
    batch: int = 1
    heads: int = 1
    kv_heads: int | None = None
    dim: int = 16
    value_dim: int | None = None
    dtype: torch.dtype = torch.float32
    scale: float | None = None
    tile_size: int = 16
    transposed: bool = False
    has_sink: bool = False
    params: dict[str, Any] = field(default_factory=dict)

    def inputs(self, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v; stored as (B, N, H, D) if transposed, with a key that draws all queries if has_sink."""
        keys = self.queries if self.keys is None else self.keys
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        value_dim = self.dim if self.value_dim is None else self.value_dim
        shapes = (
            (self.batch, self.heads, self.queries, self.dim),
            (self.batch, kv_heads, keys, self.dim),
            (self.batch, kv_heads, keys, value_dim),
        )
        q, k, v = (normal(*shape, seed=3 * seed + i, dtype=self.dtype) for i, shape in enumerate(shapes))
        if self.has_sink:
            q[..., 0], k[:, :, 2, 0] = 3.0, 9.0
        if self.transposed:
            q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def parameters(self) -> HyperAttentionParams:
        """Parameters that leave short inputs approximate."""
        small = {
            "block_size": 16, "sample_size": 24, "num_projections": 4, "min_seq_len": 40, "sampling": "stratified"
        }  # fmt: skip
        sizes = small | self.params
        if sizes.get("pairing") == "routed":
            sizes["block_size"] = routed_size(sizes["block_size"])
        return HyperAttentionParams(**sizes)

    def plan(self, backend: str = "torch", seed: int = 3) -> AttentionPlan:
        """The plan of the call, by either backend."""
        q, k, _ = self.inputs()
        return make_plan(
            q, k, self.parameters(), seed, is_causal=self.is_causal, scale=self.scale, tile_size=self.tile_size,
            backend=backend,
        )  # fmt: skip


RANK_IID = {"pairing": "rank", "sampling": "iid"}
CALLS = {
    "plain": Call(),
    "probed": Call(heads=2, params={"sampling": "probed"}),
    "probed, causal": Call(is_causal=True, heads=4, kv_heads=2, scale=0.7, params={"sampling": "probed"}),
    "truncated": Call(heads=2, has_sink=True, params={"sampling": "truncated"}),
    "truncated, causal": Call(
        is_causal=True, heads=4, kv_heads=2, scale=0.7, has_sink=True, params={"sampling": "truncated"}
    ),
    "truncated, routed, causal": Call(
        is_causal=True,
        heads=4,
        kv_heads=2,
        has_sink=True,
        params={"sampling": "truncated", "pairing": "routed", "block_size": 64},
    ),
    "truncated, causal, odd sizes": Call(
        queries=290,
        is_causal=True,
        batch=2,
        dim=20,
        value_dim=9,
        tile_size=64,
        params={"sampling": "truncated", "min_seq_len": 141},
    ),
    "truncated, bfloat16": Call(
        queries=301, keys=389, dtype=torch.bfloat16, dim=64, has_sink=True, params={"sampling": "truncated"}
    ),
    "routed": Call(queries=97, keys=131, heads=2, kv_heads=1, scale=-0.7, params={"pairing": "routed"}),
    "centred": Call(queries=131, keys=97, params={"hashing": "centred"}),
    "centred, causal": Call(is_causal=True, params={"hashing": "centred"}),
    "probed, routed, causal": Call(
        is_causal=True, heads=4, kv_heads=2, params={"sampling": "probed", "pairing": "routed", "block_size": 64}
    ),
    "paper's choices": Call(params=RANK_IID, heads=2),
    "several sort tiles": Call(queries=301, keys=389, params={"min_seq_len": 60}),
    "more queries than keys": Call(queries=131, keys=97),
    "one query": Call(queries=1, keys=130),
    "grouped heads, batch": Call(queries=60, batch=2, heads=4, kv_heads=2, params=RANK_IID),
    "stored by heads": Call(batch=2, heads=2, transposed=True),
    "odd head sizes": Call(dim=20, value_dim=9),
    "values wider than keys": Call(dim=8, value_dim=40),
    "d = 96": Call(queries=70, dim=96),
    "d = 128": Call(queries=70, dim=128, params={"block_size": 32}),
    "odd block and samples": Call(params={"block_size": 13, "sample_size": 7}),
    "one sample, block of one": Call(queries=60, params={"block_size": 1, "sample_size": 1}),
    "block larger than a node": Call(is_causal=True, params={"block_size": 60, "min_seq_len": 33}),
    "more samples than keys": Call(queries=60, params={"sample_size": 100, **RANK_IID}),
    "one projection": Call(params={"num_projections": 1}),
    "nine projections": Call(params={"num_projections": 9}),
    "ten projections": Call(params={"num_projections": 10}),
    "tile no power of two": Call(tile_size=11, params=RANK_IID),
    "large tile": Call(tile_size=64),
    "negative scale": Call(scale=-0.7),
    "scale zero": Call(scale=0.0),
    "causal": Call(is_causal=True, heads=2),
    "causal, paper's choices": Call(is_causal=True, params=RANK_IID),
    "causal, prime length": Call(queries=211, is_causal=True),
    "causal, long leaves": Call(queries=290, is_causal=True, params={"min_seq_len": 141}),
    "causal, one query beyond": Call(queries=81, is_causal=True),
    "causal, grouped heads, batch": Call(queries=70, is_causal=True, batch=2, heads=4, kv_heads=2, params=RANK_IID),
    "causal, stored by heads": Call(queries=70, is_causal=True, batch=2, heads=2, transposed=True),
    "causal, odd head sizes": Call(queries=100, is_causal=True, dim=20, value_dim=9, scale=0.3),
    "bfloat16": Call(dtype=torch.bfloat16, dim=64),
    "bfloat16, causal": Call(dtype=torch.bfloat16, dim=64, is_causal=True),
    "float16": Call(dtype=torch.float16, dim=64, params=RANK_IID),
    "float16, causal": Call(dtype=torch.float16, dim=64, is_causal=True),
}
#: Calls like others of these, left to the slow tests.
SLOW = (
    "paper's choices", "more queries than keys", "stored by heads", "d = 96", "d = 128", "odd block and samples",
    "one sample, block of one", "more samples than keys", "one projection", "ten projections", "tile no power of two",
    "scale zero", "causal, paper's choices", "causal, prime length", "causal, grouped heads, batch",
    "causal, stored by heads", "bfloat16", "float16, causal", "routed",
)  # fmt: skip
