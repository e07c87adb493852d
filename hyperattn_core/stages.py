"""The forward pass as a row of stages that can be run one at a time, so that each can be timed by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hyperattn_core.backends import PLAN_BACKENDS, chosen_backend
from hyperattn_core.checks import check_inputs
from hyperattn_core.exact import default_scale, exact_forward
from hyperattn_core.exact_aten import lse_dtype
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.draws import level_samples
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.plan import (
    DEFAULT_TILE_SIZE,
    check_plan_request,
    hash_inputs,
    plan_level,
    plan_shape,
)
from hyperattn_core.torch_backend.attention import (
    attend_all,
    attend_leaves,
    attend_level,
    merge_level,
    own_columns,
    whole_columns,
)
from hyperattn_core.torch_backend.tiles import Buffers

Stages = dict[str, Callable[[], object]]
#: A stage's work on the results of the stages before it, by their names.
Step = Callable[[Mapping[str, Any]], object]


def attention_stages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    params: HyperAttentionParams | None = None,
    seed: int = 0,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Stages:
    """The stages of one forward pass of hyper_attention (Algorithm 3; Algorithm 4 under a causal mask), in order.

    Calling each once, in order, does all the work of the pass, and the last one returns its output, equal to that of
    hyper_attention to the last bit. After that each may be called again by itself, any number of times: it repeats its
    own work on the results of the stages before it. No stage records a gradient.

    hash: ranks of queries and keys. sort: their order, the pairing and the tiles. sample: the sampled keys. attend: the
    non-causal levels. leaves and merge, under a causal mask: exact attention on the diagonal, and the union of all
    parts. A call that is exact attention has the one stage exact.

    Args:
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        v: values (B, Hkv, Nk, Dv).
        is_causal, scale, params, seed, enable_gqa: those of hyper_attention.
        backend: "torch", "triton", or "auto" for the one that hyper_attention takes.

    Raises:
        ValueError, RuntimeError: as hyper_attention; ValueError also for backend="oracle", which has no stages.
    """
    check_inputs(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    factor = default_scale(q, scale)
    params = check_plan_request(q, k, params, seed, is_causal=is_causal)
    return _maker(q, v.shape[3], params, backend)(q, k, v, params, seed, is_causal, factor)


def _maker(q: Tensor, value_dim: int, params: HyperAttentionParams, backend: str) -> Callable[..., Stages]:
    """What makes the stages of a backend: a function (q, k, v, params, seed, is_causal, scale) -> stages."""
    if chosen_backend(q, value_dim, params, backend, PLAN_BACKENDS) == "torch":
        return torch_stages
    from hyperattn_core.triton_backend.stages import triton_stages

    return triton_stages


def chained(steps: Mapping[str, Step]) -> Stages:
    """Stages that hand on their results: each step is called with those of the steps before it, by name.

    A stage that is called before all those before it have run raises RuntimeError. A step must leave the results that
    it is given as they are.
    """
    results: dict[str, Any] = {}
    names = list(steps)

    def stage(name: str) -> Callable[[], object]:
        before, step = names[: names.index(name)], steps[name]

        def run() -> object:
            missing = [earlier for earlier in before if earlier not in results]
            if missing:
                raise RuntimeError(f"stage {name!r} needs the result of stage {missing[0]!r}: run the stages in order")
            with torch.no_grad():
                results[name] = step(results)
            return results[name]

        return run

    return {name: stage(name) for name in names}


def torch_stages(
    q: Tensor, k: Tensor, v: Tensor, params: HyperAttentionParams, seed: int, is_causal: bool, scale: float
) -> Stages:
    """The stages of the backend in PyTorch, made of the same functions as its forward pass.

    Only here does merge begin with a copy of what the leaves gave, since it must leave that as it is.
    """
    shape, device = plan_shape(q, k), str(q.device)
    shapes = level_shapes(shape, params, is_causal=is_causal)
    if not shapes:
        return chained(
            {"exact": lambda done: exact_forward(q.contiguous(), k.contiguous(), v.contiguous(), is_causal, scale)[0]}
        )
    no_samples = (torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, dtype=torch.float64, device=device))

    def sort(done: Mapping[str, Any]) -> object:
        q_ranks, k_ranks = done["hash"]
        return [plan_level(q_ranks, k_ranks, level, params, no_samples, DEFAULT_TILE_SIZE) for level in shapes]

    def sample(done: Mapping[str, Any]) -> object:
        drawn = [level_samples(level, shape, params, seed, device) for level in shapes]
        return [
            dataclasses.replace(level, sample_index=index, sample_weight=weight)
            for level, (index, weight) in zip(done["sort"], drawn, strict=True)
        ]

    def attend(done: Mapping[str, Any]) -> object:
        wide_q, wide_k, wide_v = (whole_columns(x).contiguous() for x in (q, k, v))
        scratch = Buffers(lse_dtype(q), q.device)
        if not is_causal:
            return own_columns(attend_all(done["sample"][0], wide_q, wide_k, wide_v, scale, scratch)[0], v)
        attended = [attend_level(level, wide_q, wide_k, wide_v, scale, scratch) for level in done["sample"]]
        return (wide_q, wide_k, wide_v), attended

    def leaves(done: Mapping[str, Any]) -> object:
        wide_q, wide_k, wide_v = done["attend"][0]
        return attend_leaves(wide_q, wide_k, wide_v, params.min_seq_len, scale)

    def merge(done: Mapping[str, Any]) -> object:
        out, lse = (x.clone() for x in done["leaves"])
        for level, attended in zip(done["sample"], done["attend"][1], strict=True):
            merge_level(out, lse, attended, level.node_len)
        return own_columns(out.to(q.dtype), v)

    steps: dict[str, Step] = {
        "hash": lambda done: hash_inputs(q, k, params, seed),
        "sort": sort,
        "sample": sample,
        "attend": attend,
    }
    return chained({**steps, "leaves": leaves, "merge": merge} if is_causal else steps)
