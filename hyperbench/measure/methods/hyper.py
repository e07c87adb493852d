"""HyperAttention, with the library's own defaults and with the paper's settings."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

from torch import Tensor

from hyperattn_core import HyperAttentionParams, hyper_attention
from hyperbench import __version__
from hyperbench.measure.flops import hyper_flops
from hyperbench.schema import Pass, Point


class Hyper:
    """hyper_attention, its parameters as keywords; one that is not given takes the value of `params`."""

    def __init__(self, params: HyperAttentionParams) -> None:
        self._params = params

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0, **hyper: Any) -> Tensor:
        """Approximate attention of q (B, H, N, D) over k and v (B, Hkv, N, D)."""
        out = hyper_attention(
            q, k, v, is_causal=is_causal, params=self._made(hyper), seed=seed, enable_gqa=q.shape[1] != k.shape[1]
        )
        assert isinstance(out, Tensor)
        return out

    def with_lse(
        self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0, **hyper: Any
    ) -> tuple[Tensor, Tensor]:
        """The same, with the log-sum-exp (B, H, N)."""
        out, lse = hyper_attention(
            q, k, v, is_causal=is_causal, params=self._made(hyper), seed=seed,
            enable_gqa=q.shape[1] != k.shape[1], return_lse=True,
        )  # fmt: skip
        return out, lse

    def defaults(self) -> dict[str, Any]:
        """The value of every parameter that is not given."""
        return {**dataclasses.asdict(self._params), "seed": 0}

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError on a parameter out of its range."""
        self._made({name: value for name, value in hyper.items() if name != "seed"})

    def executed_flops(self, point: Point, pass_: Pass) -> float:
        """Operations executed at a point, from its configuration."""
        sizes = {name: int(point.hyper[name]) for name in ("block_size", "sample_size", "min_seq_len")}
        return hyper_flops(
            point.batch, point.heads, point.seq_len, point.head_dim, point.is_causal, pass_,
            sampling=str(point.hyper["sampling"]), **sizes,
        )  # fmt: skip

    def implementation(self, device: str) -> str:
        """The name of the code that ran, with the versions of this library and of PyTorch."""
        torch_version = importlib.metadata.version("torch").partition("+")[0]
        return f"hyperattn-core-{__version__}-torch-{torch_version}-{device}"

    def _made(self, hyper: dict[str, Any]) -> HyperAttentionParams:
        return dataclasses.replace(self._params, **hyper)


hyper = Hyper(HyperAttentionParams())
hyper_paper = Hyper(HyperAttentionParams.paper())
