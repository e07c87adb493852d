"""The stages of a forward pass in PyTorch, made of the same functions as the pass itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hyperattn_core.exact import exact_forward
from hyperattn_core.exact_aten import lse_dtype
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.nodes import Planner
from hyperattn_core.planning.packed import Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.stages import Stages, Step, chained
from hyperattn_core.torch_backend.attention import (
    attend_leaves,
    attend_level,
    equally_wide,
    merge_level,
    own_columns,
)
from hyperattn_core.torch_backend.mean_keys import mean_keys, merge_mean_keys
from hyperattn_core.torch_backend.plan import DEFAULT_TILE_SIZE
from hyperattn_core.torch_backend.scratch import Buffers, kept_buffers


def torch_stages(
    q: Tensor, k: Tensor, v: Tensor, params: HyperAttentionParams, seed: int, is_causal: bool, scale: float
) -> Stages:
    """hash and sort, or route; probe, sample, attend, leaves, merge and mean keys.

    merge copies what the leaves gave, and mean keys what merge gave: it must stay as it is.
    """
    shapes = level_shapes(plan_shape(q, k), params, is_causal=is_causal)
    if not shapes:
        return chained(
            {"exact": lambda done: exact_forward(q.contiguous(), k.contiguous(), v.contiguous(), is_causal, scale)[0]}
        )

    planner = Planner(q.detach(), k.detach(), seed, Settings(params, is_causal, DEFAULT_TILE_SIZE), scale)
    pair = "route" if params.pairing == "routed" else "sort"
    has_means = params.sampling == "truncated"

    def result(out: Tensor, lse: Tensor) -> object:
        found = own_columns(out.to(q.dtype), v)
        return (found, lse) if has_means else found

    def sample(done: Mapping[str, Any]) -> object:
        parts = zip(shapes, done[pair], done.get("probe", [None] * len(shapes)), strict=True)
        return [planner.sample(*part) for part in parts]

    def attend(done: Mapping[str, Any]) -> object:
        wide, dtype = equally_wide(q, k, v), lse_dtype(q)
        if not is_causal:
            with kept_buffers(dtype, q.device) as scratch:
                return result(*attend_level(done["sample"][0], wide, scale, scratch, dtype=q.dtype))
        # Each level in scratch tensors of its own, as all of them are merged later.
        scratches = [Buffers(dtype, q.device) for _ in shapes]
        levels = zip(done["sample"], scratches, strict=True)
        attended = [attend_level(x, wide, scale, scratch, is_causal=True) for x, scratch in levels]
        return wide, [level.query_rows(*found) for level, found in zip(shapes, attended, strict=True)]

    def leaves(done: Mapping[str, Any]) -> object:
        return attend_leaves(done["attend"][0], params.min_seq_len, scale)

    def merge(done: Mapping[str, Any]) -> object:
        out, lse = (x.clone() for x in done["leaves"])
        for level, attended in zip(shapes, done["attend"][1], strict=True):
            merge_level(out, lse, attended, level)
        return result(out, lse)

    def merge_means(done: Mapping[str, Any]) -> object:
        out, lse = (x.clone() for x in done["merge" if is_causal else "attend"])
        means = mean_keys(q, k, v, done["sample"], params, is_causal=is_causal)
        return merge_mean_keys(q, (out, lse), means, scale)[0]

    steps: dict[str, Step] = {} if pair == "route" else {"hash": lambda done: planner.hash()}
    if params.uses_probes:
        steps["probe"] = lambda done: [planner.probe(level) for level in shapes]
    if pair == "route":
        steps["route"] = lambda done: [planner.route(level) for level in shapes]
    else:
        steps["sort"] = lambda done: [planner.sort(level, done["hash"]) for level in shapes]
    steps |= {"sample": sample, "attend": attend}
    if is_causal:
        steps |= {"leaves": leaves, "merge": merge}
    return chained({**steps, "mean_keys": merge_means} if has_means else steps)
