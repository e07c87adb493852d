"""HyperAttention, with the library's own defaults and with the paper's settings."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, hyper_attention, make_plan
from hyperattn_core.backends import backend_for
from hyperattn_core.functional import attention_stages
from hyperbench import __version__
from hyperbench.flops import hyper_flops
from hyperbench.store.schema import Pass, Point

_OF_PROBES = ("num_probes", "probe_floor")


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

    def plan(self, q: Tensor, k: Tensor, *, is_causal: bool, seed: int = 0, **hyper: Any) -> AttentionPlan:
        """The plan at which a call on q (B, H, N, D) and k (B, Hkv, N, D) attends."""
        return make_plan(q, k, self._made(hyper), seed, is_causal=is_causal)

    def stages(
        self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0, **hyper: Any
    ) -> dict[str, Callable[[], object]]:
        """The parts of the forward pass, as `attention_stages` names them."""
        return attention_stages(
            q, k, v, is_causal=is_causal, params=self._made(hyper), seed=seed, enable_gqa=q.shape[1] != k.shape[1]
        )

    def defaults(self) -> dict[str, Any]:
        """The value of every parameter that is not given; None for those of probes where these are not the default."""
        values = {**dataclasses.asdict(self._params), "seed": 0}
        return values if self._params.uses_probes else values | dict.fromkeys(_OF_PROBES)

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError on a parameter out of its range."""
        self._made(hyper)

    def executed_flops(self, point: Point, pass_: Pass) -> float:
        """Operations executed at a point, from its configuration."""
        return hyper_flops(point, pass_)

    def implementation(self, device: str) -> str:
        """The name of the code that runs there for bfloat16 and head_dim 64; `implementation_at` knows the point."""
        return _named(backend_for(device, torch.bfloat16, 64, 64, self._params)[0], device)

    def implementation_at(self, point: Point) -> str:
        """The name of the code that runs at a point, with the versions of this library and of its backend."""
        return _named(self._backend(point)[0], point.device)

    def note(self, point: Point) -> str:
        """The reason why a point on CUDA does not run in the Triton kernels; empty where it does."""
        name, reason = self._backend(point)
        return "" if name == "triton" or point.device != "cuda" else f"the {name} backend ran: {reason}"

    def _backend(self, point: Point) -> tuple[str, str]:
        dtype = getattr(torch, point.dtype)
        return backend_for(point.device, dtype, point.head_dim, point.head_dim, self._made(point.hyper))

    def _made(self, hyper: dict[str, Any]) -> HyperAttentionParams:
        given = {name: value for name, value in hyper.items() if name != "seed" and value is not None}
        return dataclasses.replace(self._params, **given)


def _named(backend: str, device: str) -> str:
    # The package's own word: a distribution may go by another name than its module.
    version = str(importlib.import_module(backend).__version__).partition("+")[0]
    return f"hyperattn-core-{__version__}-{backend}-{version}-{device}"


hyper = Hyper(HyperAttentionParams())
hyper_paper = Hyper(HyperAttentionParams.paper())
