"""The stages of a forward pass in the kernels, each to be run, and timed, by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hyperattn_core.exact import exact_forward
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.packed import Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.stages import Stages, Step, chained
from hyperattn_core.triton_backend.configure import attend_config, default_tile_size
from hyperattn_core.triton_backend.forward import ForwardWork
from hyperattn_core.triton_backend.plan import RoutedWork, plan_work
from hyperattn_core.triton_backend.sampling import has_means


def triton_stages(
    q: Tensor, k: Tensor, v: Tensor, params: HyperAttentionParams, seed: int, is_causal: bool, scale: float
) -> Stages:
    """hash; probe; sort (scan, scatter), or route; sample, and tiles; mean keys; attend; leaves, merge."""
    q, k, v = q.detach(), k.detach(), v.detach()
    if not level_shapes(plan_shape(q, k), params, is_causal=is_causal):
        return chained({"exact": lambda done: exact_forward(q, k, v, is_causal, scale)[0]})
    width = max(q.shape[3], v.shape[3])
    settings = Settings(params, is_causal, default_tile_size(q.device, q.dtype, width))
    plan = plan_work(q, k, seed, settings, scale)
    work = ForwardWork(q, k, v, plan.packed, scale, attend_config(q.device, q.dtype, width, settings.tile_size))

    def attend(done: object) -> Tensor:
        work.attend()
        return work.out

    def merge(done: object) -> Tensor:
        work.merge()
        return work.out

    steps: dict[str, Step] = {}
    if not isinstance(plan, RoutedWork):
        steps["hash"] = lambda done: plan.hash()
    if params.uses_probes:
        steps["probe"] = lambda done: plan.probe()
    if isinstance(plan, RoutedWork):
        steps["route"] = lambda done: plan.sort()
    else:
        steps["sort"] = lambda done: plan.sort()
    steps["sample"] = lambda done: plan.pair()
    if has_means(settings):
        steps["mean_keys"] = lambda done: work.mean_keys()
    steps["attend"] = attend
    if is_causal:
        steps |= {"leaves": lambda done: work.leaves(), "merge": merge}
    return chained({name: _on_device_of(q, step) for name, step in steps.items()})


def _on_device_of(x: Tensor, step: Step) -> Step:
    def run(done: Mapping[str, Any]) -> object:
        with torch.cuda.device_of(x):
            return step(done)

    return run
