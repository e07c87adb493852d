"""The kernels of a call as they would be launched: types, compile-time values and options, with no device asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.packed import Settings
from hyperattn_core.triton_backend import backward, plan, sampling
from hyperattn_core.triton_backend.forward import attend_constants, merge_constants
from hyperattn_core.triton_backend.geometry import SORT_TILE, geometry, num_ranks
from hyperattn_core.triton_backend.kernels import (
    attend,
    draw,
    key_grad,
    mean_keys,
    pair,
    probe,
    query_grad,
    sample_grad,
    systematic,
)
from hyperattn_core.triton_backend.kernels import plan as plan_kernels
from hyperattn_core.triton_backend.tuning.configs import candidates, default_backward_config, default_config, with_tile

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
#: Types of the kernels' arguments by name; those in the call's dtype and in that of the gradients apart.
_TYPES = {
    "*u8": ("ranks", "histograms", "classes", "class_counts"),
    "*i32": ("bases", "totals", "data", "index", "drawn_index", "template", "positions", "first_certain"),
    "*i64": ("table", "sums", "points"),
    "i64": ("key",),
    "*fp32": (
        "weights", "drawn_weight", "lse2", "delta", "leaf_lse", "parts_k", "parts_v", "sums_k", "sums_v",
        "part_top", "part_total", "norms", "tile_means", "means", "mean_parts", "mean_grads", "parts", "grads",
    ),
    "*fp64": ("lse", "grad_lse", "partial_lse", "slopes", "offsets"),
    "fp32": ("scale",),
}  # fmt: skip
_IN_DTYPE = ("q", "k", "v", "split", "directions", "out", "grad_out", "leaf_out", "partial_out")
_GRADIENTS = ("dq", "dk_out", "dv_out")
#: "routed" pairing is compiled beside the default.
ROUTED = HyperAttentionParams(pairing="routed")


@dataclass(frozen=True)
class Build:
    """One kernel to compile: its arguments' types, compile-time values and launch options."""

    name: str
    kernel: Any
    label: str
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None
    fuses_float64: bool = True


def builds(arch: int, dtype: torch.dtype, head_dim: int, *, every_candidate: bool = False) -> Iterator[Build]:
    """All kernels of the backend as a call with these inputs would launch them on that architecture."""
    kind, params = TYPES[dtype], HyperAttentionParams()
    shape = f"{kind} d={head_dim}"
    ranks = num_ranks(params)

    def build(name: str, kernel: Any, label: str, constants: dict[str, Any], **options: Any) -> Build:
        return Build(name, kernel, label, _types(kernel, kind, kind), constants, **options)

    num_terms = 1 if dtype == torch.float32 else 3
    drawn = plan.projection_constants(head_dim, num_terms, params.num_projections)
    yield build("project", draw.projection_kernel, shape, drawn, fuses_float64=False)
    yield build("uniform", draw.uniform_kernel, "stratified", sampling.uniform_constants("stratified"))
    terms = plan.hash_terms(num_terms, params)
    hashed = terms | plan.hash_constants(head_dim)
    yield build("hash", plan_kernels.hash_kernel, shape, hashed, **plan.hash_options(head_dim, dtype))
    for causal in (False, True):
        mask = "causal" if causal else "non-causal"
        scattered = {"IS_CAUSAL": causal, "RANKS": ranks, "TILE": SORT_TILE}
        yield build("scan", plan_kernels.scan_kernel, mask, plan.scan_constants(causal, ranks))
        yield build("scatter", plan_kernels.scatter_kernel, mask, scattered)
    for paired in (params, HyperAttentionParams(pairing="rank")):
        settings = Settings(paired, True, default_config(arch, dtype, head_dim).tile_size)
        yield build("pair", pair.pair_kernel, f"causal {paired.pairing}", plan.pair_constants(settings))
    yield from _probing_builds(dtype, head_dim, terms)
    dims = head_dim, head_dim
    yield build("tiles", mean_keys.tile_kernel, shape, sampling.tile_mean_constants(*dims))
    yield build("means", mean_keys.mean_kernel, shape, sampling.mean_constants(*dims))
    configs = candidates(arch, dtype, head_dim) if every_candidate else (default_config(arch, dtype, head_dim),)
    for config, of in [(config, of) for of in (params, ROUTED) for config in configs]:
        for causal in (False, True):
            settings = Settings(of, causal, config.tile_size)
            config = with_tile(config, settings.tile_size)
            pairing = " routed" if of is ROUTED else ""
            label = f"{shape} {settings.tile_size}x{config.block_n} {'causal' if causal else 'non-causal'}{pairing}"
            yield build(
                "attend", attend.attend_kernel, label, attend_constants(head_dim, head_dim, settings, config),
                num_warps=config.num_warps, num_stages=config.num_stages, max_registers=config.max_registers,
            )  # fmt: skip
    yield build("delta", query_grad.delta_kernel, shape, backward.delta_constants(head_dim, True))
    for params in (HyperAttentionParams(), ROUTED):
        yield from _backward_builds(arch, dtype, head_dim, params)
    yield build("reduce", sample_grad.reduce_kernel, shape, backward.reduce_constants(head_dim, head_dim))
    yield build("merge", attend.merge_kernel, shape, merge_constants(head_dim))


def _probing_builds(dtype: torch.dtype, head_dim: int, terms: dict[str, int]) -> Iterator[Build]:
    """The kernels that score keys and draw samples, by the default number of probes."""
    kind = TYPES[dtype]
    shape = f"{kind} d={head_dim}"

    def build(name: str, kernel: Any, label: str, constants: dict[str, Any], **options: Any) -> Build:
        return Build(name, kernel, label, _types(kernel, kind, kind), constants, **options)

    for causal in (False, True):
        mask = "causal" if causal else "non-causal"
        where = geometry((1, 1, 1, 8192, 8192), Settings(HyperAttentionParams(), causal, 64))
        constants = sampling.probe_constants(head_dim, dtype, where)
        options = sampling.probe_options(head_dim, dtype)
        yield build("probe", probe.probe_kernel, f"{shape} {mask}", constants | terms, **options)
        yield build("score", probe.score_kernel, f"{shape} {mask}", constants, **options)
        yield build("sum", systematic.sum_kernel, mask, sampling.systematic_constants(causal))
        drawn = sampling.systematic_constants(causal) | {"AT_ONCE": sampling.SUM_TILES}
        yield build("draw", systematic.draw_kernel, mask, drawn)
    yield build("norm", probe.norm_kernel, "", sampling.norm_constants(constants["BLOCK_P"]))
    yield build("design", systematic.design_kernel, "", {"AT_ONCE": sampling.DESIGN_TILES})


def _backward_builds(arch: int, dtype: torch.dtype, head_dim: int, params: HyperAttentionParams) -> Iterator[Build]:
    """The kernels of the backward pass; of a causal call those that add to the gradients of earlier levels."""
    kind = TYPES[dtype]
    config = default_backward_config(arch, dtype, head_dim)
    settings = Settings(params, True, default_config(arch, dtype, head_dim).tile_size)
    of_keys = backward.key_config(settings, config, head_dim)
    by_query, by_key, by_sample = (
        backward.tile_constants(head_dim, head_dim, settings, config.block_m, block_n)
        for block_n in (backward.query_keys(settings, config), of_keys.key_block_n, config.key_block_n)
    )
    shape, pairing = f"{kind} d={head_dim}", " routed" if params is ROUTED else ""
    query_label, key_label, sample_label = (
        f"{shape} {c['BLOCK_M']}x{c['BLOCK_N']}{pairing}" for c in (by_query, by_key, by_sample)
    )

    def build(name: str, kernel: Any, label: str, constants: dict[str, Any], total: str = kind) -> Build:
        of_queries = kernel is query_grad.query_kernel
        if name == "spread":
            return Build(name, kernel, label, _types(kernel, kind, total), constants)
        warps = config.num_warps if of_queries else config.key_warps or config.num_warps
        limit = backward.query_registers(settings) if of_queries else None
        return Build(name, kernel, label, _types(kernel, kind, total), constants, warps, config.num_stages, limit)

    for causal in (False, True):
        total, mask = ("fp32", "causal") if causal else (kind, "non-causal")
        added = {"ACCUMULATE": causal, "HAS_MEANS": True}
        yield build("queries", query_grad.query_kernel, f"{query_label} {mask}", {**by_query, **added}, total)
        sizes, types = {**by_key, **added}, _types(key_grad.key_kernel, kind, total)
        warps, stages = of_keys.key_warps or of_keys.num_warps, of_keys.key_stages or of_keys.num_stages
        options = warps, stages, backward.KEY_REGISTERS
        yield Build("keys", key_grad.key_kernel, f"{key_label} {mask}", types, sizes, *options)
    of_means = sampling.mean_grad_constants(head_dim, head_dim, by_query["SPLIT"], by_query["BLOCK_M"])
    yield build("spread", mean_keys.mean_grad_kernel, query_label, of_means)
    yield build("samples", sample_grad.sample_kernel, sample_label, by_sample)


def _types(kernel: Any, kind: str, total: str) -> dict[str, str]:
    """The signature: what is not named above is a 32-bit integer, or a constant where its name is in capitals."""
    known = {name: type_ for type_, names in _TYPES.items() for name in names}
    known |= dict.fromkeys(_IN_DTYPE, f"*{kind}") | dict.fromkeys(_GRADIENTS, f"*{total}")
    return {name: known.get(name, "constexpr" if name.isupper() else "i32") for name in kernel.arg_names}
