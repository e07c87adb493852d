"""The kernels of a call as they would be launched: types, compile-time values and options, with no device asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.triton_backend import backward, plan
from hyperattn_core.triton_backend.forward import attend_constants, merge_constants
from hyperattn_core.triton_backend.geometry import SORT_TILE, Settings
from hyperattn_core.triton_backend.kernels import attend, key_grad, pair, query_grad, sample_grad
from hyperattn_core.triton_backend.kernels import plan as plan_kernels
from hyperattn_core.triton_backend.tuning.configs import candidates, default_backward_config, default_config

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Build:
    """One kernel to compile: its arguments' types, compile-time values and launch options."""

    name: str
    kernel: Any
    label: str
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 3
    max_registers: int | None = None


def builds(arch: int, dtype: torch.dtype, head_dim: int, *, every_candidate: bool = False) -> Iterator[Build]:
    """All kernels of the backend as a call with these inputs would launch them on that architecture."""
    kind = TYPES[dtype]
    params = HyperAttentionParams()
    terms = 1 if dtype == torch.float32 else 3
    shape = f"{kind} d={head_dim}"
    yield Build(
        "hash", plan_kernels.hash_kernel, shape,
        _types(
            plan_kernels.hash_kernel, q=f"*{kind}", k=f"*{kind}", directions=f"*{kind}", ranks="*u8", histograms="*u8"
        ),
        plan.hash_constants(head_dim, terms, params.num_projections), **plan.hash_options(head_dim, dtype),
    )  # fmt: skip
    num_ranks = max(16, 2**params.num_projections)
    for causal in (False, True):
        mask = "causal" if causal else "non-causal"
        yield Build(
            "scan", plan_kernels.scan_kernel, mask,
            _types(plan_kernels.scan_kernel, histograms="*u8", bases="*i32", totals="*i32", table="*i64"),
            plan.scan_constants(causal, num_ranks), 4,
        )  # fmt: skip
        yield Build(
            "scatter", plan_kernels.scatter_kernel, mask,
            _types(
                plan_kernels.scatter_kernel, ranks="*u8", bases="*i32", totals="*i32", data="*i32", table="*i64"
            ),
            {"IS_CAUSAL": causal, "RANKS": num_ranks, "TILE": SORT_TILE}, 4,
        )  # fmt: skip
    for bucket in (True, False):
        yield Build(
            "pair", pair.pair_kernel, f"causal {'bucket' if bucket else 'rank'}",
            _types(
                pair.pair_kernel, data="*i32", weights="*fp32", totals="*i32", table="*i64",
                drawn_index="*i32", drawn_weight="*fp32", template="*i32",
            ),
            plan.pair_constants(True, bucket, num_ranks), 4,
        )  # fmt: skip
    configs = candidates(arch, dtype, head_dim) if every_candidate else (default_config(arch, dtype, head_dim),)
    for config in configs:
        for causal in (False, True):
            settings = Settings(params, causal, config.tile_size)
            label = f"{shape} {config.tile_size}x{config.block_n} {'causal' if causal else 'non-causal'}"
            yield Build(
                "attend", attend.attend_kernel, label,
                _types(
                    attend.attend_kernel, q=f"*{kind}", k=f"*{kind}", v=f"*{kind}", data="*i32",
                    weights="*fp32", table="*i64", out=f"*{kind}", lse="*fp32", scale="fp32",
                ),
                attend_constants(head_dim, head_dim, settings, config),
                config.num_warps, config.num_stages, config.max_registers,
            )  # fmt: skip
    yield from _backward_builds(arch, dtype, head_dim)
    yield Build(
        "merge", attend.merge_kernel, shape,
        _types(
            attend.merge_kernel, out=f"*{kind}", lse="*fp32", leaf_out=f"*{kind}", leaf_lse="*fp32",
            partial_out=f"*{kind}", partial_lse="*fp32", table="*i64",
        ),
        merge_constants(head_dim), 4,
    )  # fmt: skip


def _backward_builds(arch: int, dtype: torch.dtype, head_dim: int) -> Iterator[Build]:
    """The kernels of the backward pass; of a causal call those that add to the gradients of earlier levels."""
    kind = TYPES[dtype]
    config = default_backward_config(arch, dtype, head_dim)
    tile_size = default_config(arch, dtype, head_dim).tile_size
    by_query, by_key = (
        backward.tile_constants(head_dim, head_dim, tile_size, config.block_m, block_n)
        for block_n in (config.query_block_n, config.key_block_n)
    )
    query_label, key_label = (f"{kind} d={head_dim} {c['BLOCK_M']}x{c['BLOCK_N']}" for c in (by_query, by_key))
    inputs = dict.fromkeys(("q", "k", "v", "grad_out", "out"), f"*{kind}")
    numbers = ("lse", "delta", "weights", "grad_lse", "parts_k", "parts_v", "sums_k", "sums_v")
    inputs |= dict.fromkeys(numbers, "*fp32") | {"data": "*i32", "table": "*i64", "scale": "fp32"}
    warps, stages = config.num_warps, config.num_stages

    def types(kernel: Any, **results: str) -> dict[str, str]:
        return _types(kernel, **{name: t for name, t in inputs.items() if name in kernel.arg_names}, **results)

    yield Build(
        "delta", query_grad.delta_kernel, f"{kind} d={head_dim}",
        {**types(query_grad.delta_kernel), "rows": "i32"}, backward.delta_constants(head_dim, True), 4,
    )  # fmt: skip
    for causal in (False, True):
        total = "*fp32" if causal else f"*{kind}"
        mask = "causal" if causal else "non-causal"
        yield Build(
            "queries", query_grad.query_kernel, f"{query_label} {mask}",
            types(query_grad.query_kernel, dq=total), {**by_query, "ACCUMULATE": causal}, warps, stages,
        )  # fmt: skip
        yield Build(
            "keys", key_grad.key_kernel, f"{key_label} {mask}",
            types(key_grad.key_kernel, dk_out=total, dv_out=total),
            {**by_key, "ACCUMULATE": causal, "SLOTS": backward.SLOTS}, warps, stages,
        )  # fmt: skip
    yield Build(
        "samples", sample_grad.sample_kernel, key_label, types(sample_grad.sample_kernel), by_key,
        warps, stages,
    )  # fmt: skip
    yield Build(
        "reduce", sample_grad.reduce_kernel, f"{kind} d={head_dim}", types(sample_grad.reduce_kernel),
        backward.reduce_constants(head_dim, head_dim), 4,
    )  # fmt: skip


def _types(kernel: Any, **types: str) -> dict[str, str]:
    """The signature: what is not named is a 32-bit integer, or a constant where its name is in capitals."""
    return {name: types.get(name, "constexpr" if name.isupper() else "i32") for name in kernel.arg_names}
