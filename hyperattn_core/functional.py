"""The public calls: hyper_attention, exact_attention, make_plan and attention_stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from hyperattn_core.backends import PLAN_BACKENDS, chosen_backend
from hyperattn_core.checks import check_inputs
from hyperattn_core.exact import default_scale
from hyperattn_core.exact_aten import Attended, lse_dtype
from hyperattn_core.operators import ops
from hyperattn_core.operators.autocast import cast_inputs, outside_autocast
from hyperattn_core.operators.implementations import implementation
from hyperattn_core.oracle import oracle_attention
from hyperattn_core.params import HyperAttentionParams, check_int
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.packed import Packed, PackedPlan, Settings
from hyperattn_core.planning.plan import AttentionPlan, plan_shape
from hyperattn_core.stages import Stages
from hyperattn_core.torch_backend.stages import torch_stages


@overload
def hyper_attention(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = ..., scale: float | None = ...,
    params: HyperAttentionParams | None = ..., seed: int = ..., plan: AttentionPlan | None = ...,
    return_lse: Literal[False] = ..., enable_gqa: bool = ..., backend: str = ...,
) -> Tensor: ...  # fmt: skip


@overload
def hyper_attention(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = ..., scale: float | None = ...,
    params: HyperAttentionParams | None = ..., seed: int = ..., plan: AttentionPlan | None = ...,
    return_lse: Literal[True], enable_gqa: bool = ..., backend: str = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def hyper_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    params: HyperAttentionParams | None = None,
    seed: int = 0,
    plan: AttentionPlan | None = None,
    return_lse: bool = False,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """HyperAttention in near-linear time (Algorithm 3; Algorithm 4 under a causal mask).

    The gradient is the true gradient of the estimator at its plan. Deterministic: the same seed gives the same output.

    Args:
        q: queries (B, H, Nq, D), float16, bfloat16, float32 or float64.
        k: keys (B, Hkv, Nk, D).
        v: values (B, Hkv, Nk, Dv).
        is_causal: row t sees keys 0..t; needs Nq == Nk.
        scale: factor of the logits, 1 / sqrt(D) if None.
        params: the estimator's parameters, HyperAttentionParams() if None.
        seed: seed of the projections and samples.
        plan: a plan made before by make_plan; params and seed are then the plan's.
        return_lse: also return the log-sum-exp (B, H, Nq), differentiable, float32 (float64 for float64 inputs).
        enable_gqa: allow H to be a multiple of Hkv.
        backend: "torch" (any device), "triton" (fused kernels on NVIDIA GPUs: float16, bfloat16 and float32, head sizes
            up to 256, num_projections up to 10), "oracle" (dense, float64, for tests), or "auto": Triton on a CUDA GPU
            where its kernels can run the call, else PyTorch, with a BackendFallback warning once.

    Returns:
        out (B, H, Nq, Dv) in the dtype of q; (out, lse) with return_lse.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, scale is not a finite number, the plan was made for
            another call, or the backend is unknown or cannot run the call.
        RuntimeError: backend="triton" and Triton does not import or is too old.
    """
    q, k, v = cast_inputs(q, k, v)
    check_inputs(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    factor, is_causal = default_scale(q, scale), bool(is_causal)
    if plan is None:
        params, seed = _checked_params(q, k, params, seed, is_causal=is_causal)
    else:
        _check_plan(plan, q, k, is_causal, params)
    tile_size = plan.levels[0].tile_size if plan is not None and plan.levels else None
    chosen = chosen_backend(q, v.shape[3], params if plan is None else None, backend, tile_size=tile_size)
    if chosen == "oracle":
        if any(level.key() == TransformType.Vmap for level in retrieve_all_functorch_interpreters()):
            raise RuntimeError("backend='oracle' takes no vmap: use the batch dimension, or backend='torch'")
        plan = plan or make_plan(q, k, params, seed, is_causal=is_causal, scale=factor, backend="torch")
        out, lse = oracle_attention(q, k, v, plan, factor)
        out, lse = out.to(q.dtype), lse.to(lse_dtype(q))
        return (out, lse) if return_lse else out
    if plan is not None:
        packed = _exact_plan(q, is_causal) if plan.is_exact else implementation(chosen).pack(plan)
    else:
        assert params is not None
        packed = _plan(q, k, v, params, seed, is_causal, chosen, factor)
    out, lse = _attend(q, k, v, packed, chosen, factor)
    return (out, lse) if return_lse else out


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
) -> Tensor | Attended:
    """Softmax attention, differentiable through the output and the log-sum-exp.

    A NaN in a row of v reaches only the rows that see it, also under a causal mask.

    Args:
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        v: values (B, Hkv, Nk, Dv).
        is_causal: row t sees keys 0..t; needs Nq == Nk.
        scale: factor of the logits, 1 / sqrt(D) if None.
        enable_gqa: allow H to be a multiple of Hkv.
        return_lse: also return the log-sum-exp (B, H, Nq) in float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or scale is not a finite number.
    """
    q, k, v = cast_inputs(q, k, v)
    check_inputs(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    out, lse = _attend(q, k, v, _exact_plan(q, bool(is_causal)), "torch", default_scale(q, scale))
    return (out, lse) if return_lse else out


def make_plan(
    q: Tensor,
    k: Tensor,
    params: HyperAttentionParams | None = None,
    seed: int = 0,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    tile_size: int | None = None,
    backend: str = "auto",
) -> AttentionPlan:
    """Hash, sort, pair and sample: the plan of one call (Algorithm 1; Algorithm 4 for the causal nodes).

    Under a causal mask the sequence is cut into leaves of min_seq_len positions, and level j pairs nodes of
    min_seq_len * 2**j keys with the equally many queries after them, so the cut depends on positions alone.

    Args:
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D), Hkv dividing H.
        params: the estimator's parameters, the library's defaults if None.
        seed: seed of the projections and samples; the same seed gives the same plan on every device, but for
            projections within rounding of zero.
        is_causal: plan causal attention (Nq == Nk).
        scale: factor of the logits, 1 / sqrt(D) if None; probes and "routed" pairing alone ask for it.
        tile_size: most queries in a tile, a matter of speed; the backend's choice if None, 8 with "routed" pairing.
        backend: "torch", "triton" or "auto", as for hyper_attention; both make the same plan.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, seed or tile_size is out of range, or the backend is
            unknown or cannot make the plan.
        RuntimeError: backend="triton" and Triton does not import or is too old.
    """
    q, k = cast_inputs(q, k)
    params, seed = _checked_params(q, k, params, seed, is_causal=is_causal)
    if tile_size is not None:
        tile_size = check_int("tile_size", tile_size, low=1)
    chosen = chosen_backend(q, q.shape[3], params, backend, PLAN_BACKENDS, tile_size)
    is_causal, shape = bool(is_causal), plan_shape(q, k)
    if not level_shapes(shape, params, is_causal=is_causal):
        return AttentionPlan(params, seed, is_causal, shape, (), None)
    passes = implementation(chosen)
    tile_size = tile_size or passes.default_tile_size(q.device, q.dtype, q.shape[3])
    packed = ops.plan(q, k, seed, chosen, Settings(params, is_causal, tile_size), default_scale(q, scale))
    levels = passes.unpack(packed, shape, seed)
    leaf_len = params.min_seq_len if is_causal else None
    return PackedPlan(params, seed, is_causal, shape, levels, leaf_len, packed, chosen, packed_levels=levels)


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

    hash: ranks of queries and keys (projections, with "centred" hashing). probe, where probes are used: how much the
    probes attend to each key. sort: the order, the pairing and the tiles. sample: the sampled keys. attend: the
    non-causal levels. leaves and merge, under a causal mask: exact attention on the diagonal, and the union of all
    parts. mean_keys, with "truncated" sampling: the mean keys; in PyTorch, where it comes last, also their union with
    the rest. A call that is exact attention has the one stage exact.

    Args:
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        v: values (B, Hkv, Nk, Dv).
        is_causal, scale, params, seed, enable_gqa: those of hyper_attention.
        backend: "torch", "triton", or "auto" for the one that hyper_attention takes.

    Raises:
        ValueError, RuntimeError: as hyper_attention; ValueError also for backend="oracle", which has no stages.
    """
    q, k, v = cast_inputs(q, k, v)
    check_inputs(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    factor = default_scale(q, scale)
    params, seed = _checked_params(q, k, params, seed, is_causal=is_causal)
    if chosen_backend(q, v.shape[3], params, backend, PLAN_BACKENDS) == "torch":
        stages_of = torch_stages
    else:
        from hyperattn_core.triton_backend.stages import triton_stages as stages_of
    with outside_autocast(q.device.type):
        stages = stages_of(q, k, v, params, seed, bool(is_causal), factor)
    return {name: _outside_autocast(stage, q.device.type) for name, stage in stages.items()}


def _outside_autocast(stage: Callable[[], object], device_type: str) -> Callable[[], object]:
    def run() -> object:
        with outside_autocast(device_type):
            return stage()

    return run


def _plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    params: HyperAttentionParams,
    seed: int,
    is_causal: bool,
    backend: str,
    scale: float,
) -> Packed:
    # In a graph that serves all lengths, the operators find out by themselves that a call is exact.
    if not torch.compiler.is_compiling() and not level_shapes(plan_shape(q, k), params, is_causal=is_causal):
        return _exact_plan(q, is_causal)
    tile_size = implementation(backend).default_tile_size(q.device, q.dtype, max(q.shape[3], v.shape[3]))
    return ops.plan(q, k, seed, backend, Settings(params, is_causal, tile_size), scale)


def _exact_plan(q: Tensor, is_causal: bool) -> Packed:
    return Packed(*ops.no_plan(q, "torch"), Settings(HyperAttentionParams(), is_causal, 1))


def _attend(q: Tensor, k: Tensor, v: Tensor, packed: Packed, backend: str, scale: float) -> Attended:
    out, lse = ops.attend(q, k, v, packed.data, packed.weights, backend, packed.settings.to_list(), scale)
    return out, lse.to(lse_dtype(q))


def _checked_params(
    q: Tensor, k: Tensor, params: HyperAttentionParams | None, seed: int, *, is_causal: bool
) -> tuple[HyperAttentionParams, int]:
    """Check the arguments of make_plan, whichever backend makes the plan; params, or the defaults, and seed."""
    params = params if params is not None else HyperAttentionParams()
    if not isinstance(params, HyperAttentionParams):
        raise ValueError(
            f"params must be HyperAttentionParams or None, got {type(params).__name__}; "
            "HyperAttentionParams.from_dict makes them from plain data"
        )
    check_inputs(q, k, is_causal=is_causal, enable_gqa=True)
    return params, check_int("seed", seed)


def _check_plan(
    plan: AttentionPlan, q: Tensor, k: Tensor, is_causal: bool, params: HyperAttentionParams | None
) -> None:
    if not isinstance(plan, AttentionPlan):
        raise ValueError(f"plan must be an AttentionPlan or None, got {type(plan).__name__}")
    shape = plan_shape(q, k)
    if plan.shape != shape:
        raise ValueError(f"plan was made for (batch, heads, kv_heads, queries, keys) = {plan.shape}, got {shape}")
    if plan.is_causal != is_causal:
        raise ValueError(f"plan was made for is_causal={plan.is_causal}, got is_causal={is_causal}")
    if params is not None and params != plan.params:
        raise ValueError(f"plan was made with {plan.params}, got {params}; pass one of the two")
    if plan.levels and plan.levels[0].key_order.device != k.device:
        raise ValueError(f"plan is on {plan.levels[0].key_order.device}, the inputs are on {k.device}")
