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
    attend_all,
    attend_leaves,
    attend_level,
    merge_level,
    own_columns,
    whole_columns,
)
from hyperattn_core.torch_backend.plan import DEFAULT_TILE_SIZE
from hyperattn_core.torch_backend.scratch import Buffers


def torch_stages(
    q: Tensor, k: Tensor, v: Tensor, params: HyperAttentionParams, seed: int, is_causal: bool, scale: float
) -> Stages:
    """hash and sort, or route; probe, sample, attend, leaves and merge.

    merge copies what the leaves gave: it must stay as it is.
    """
    shapes = level_shapes(plan_shape(q, k), params, is_causal=is_causal)
    if not shapes:
        return chained(
            {"exact": lambda done: exact_forward(q.contiguous(), k.contiguous(), v.contiguous(), is_causal, scale)[0]}
        )

    planner = Planner(q.detach(), k.detach(), seed, Settings(params, is_causal, DEFAULT_TILE_SIZE), scale)
    pair = "route" if params.pairing == "routed" else "sort"

    def sample(done: Mapping[str, Any]) -> object:
        parts = zip(shapes, done[pair], done.get("probe", [None] * len(shapes)), strict=True)
        return [planner.sample(*part) for part in parts]

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

    steps: dict[str, Step] = {} if pair == "route" else {"hash": lambda done: planner.hash()}
    if params.sampling == "probed":
        steps["probe"] = lambda done: [planner.probe(level) for level in shapes]
    if pair == "route":
        steps["route"] = lambda done: [planner.route(level) for level in shapes]
    else:
        steps["sort"] = lambda done: [planner.sort(level, done["hash"]) for level in shapes]
    steps |= {"sample": sample, "attend": attend}
    return chained({**steps, "leaves": leaves, "merge": merge} if is_causal else steps)
