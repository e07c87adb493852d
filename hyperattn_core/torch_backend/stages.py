"""The stages of a forward pass in PyTorch, made of the same functions as the pass itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperattn_core.exact import exact_forward
from hyperattn_core.exact_aten import lse_dtype
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.draws import level_samples
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.stages import Stages, Step, chained
from hyperattn_core.torch_backend.attention import (
    attend_all,
    attend_leaves,
    attend_level,
    merge_level,
    own_columns,
    whole_columns,
)
from hyperattn_core.torch_backend.plan import hash_inputs, plan_level
from hyperattn_core.torch_backend.scratch import Buffers


def torch_stages(
    q: Tensor, k: Tensor, v: Tensor, params: HyperAttentionParams, seed: int, is_causal: bool, scale: float
) -> Stages:
    """hash, sort, sample, attend, leaves and merge; merge copies what the leaves gave, which must stay as it is."""
    shape, device = plan_shape(q, k), str(q.device)
    shapes = level_shapes(shape, params, is_causal=is_causal)
    if not shapes:
        return chained(
            {"exact": lambda done: exact_forward(q.contiguous(), k.contiguous(), v.contiguous(), is_causal, scale)[0]}
        )
    no_samples = (torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, dtype=torch.float64, device=device))

    def sort(done: Mapping[str, Any]) -> object:
        return [plan_level(done["hash"], level, params, no_samples) for level in shapes]

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
