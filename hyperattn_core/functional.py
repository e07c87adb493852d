"""The public call: hyper_attention(q, k, v, ...)."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from hyperattn_core.backends import chosen_backend
from hyperattn_core.checks import check_inputs
from hyperattn_core.exact import default_scale
from hyperattn_core.exact_aten import lse_dtype
from hyperattn_core.oracle import oracle_attention
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.plan import AttentionPlan, check_plan_request, make_plan
from hyperattn_core.torch_backend.attention import torch_attention


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
        RuntimeError: backend="triton" and Triton does not import.
    """
    check_inputs(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    factor = default_scale(q, scale)
    if plan is None:
        params = check_plan_request(q, k, params, seed, is_causal=is_causal)
    else:
        _check_plan(plan, q, k, is_causal, params)
    tile_size = plan.levels[0].tile_size if plan is not None and plan.levels else None
    chosen = chosen_backend(q, v.shape[3], params if plan is None else None, backend, tile_size=tile_size)
    if chosen == "triton":
        from hyperattn_core.triton_backend.attention import triton_attention

        out, lse = triton_attention(q, k, v, plan, params, seed, is_causal, factor)
        return (out, lse) if return_lse else out
    if plan is None:
        plan = make_plan(q, k, params, seed, is_causal=is_causal, backend="torch")
    if chosen == "oracle":
        out, lse = oracle_attention(q, k, v, plan, factor)
        out, lse = out.to(q.dtype), lse.to(lse_dtype(q))
    else:
        out, lse = torch_attention(q, k, v, plan, factor)
    return (out, lse) if return_lse else out


def _check_plan(
    plan: AttentionPlan, q: Tensor, k: Tensor, is_causal: bool, params: HyperAttentionParams | None
) -> None:
    if not isinstance(plan, AttentionPlan):
        raise ValueError(f"plan must be an AttentionPlan or None, got {type(plan).__name__}")
    shape = (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2])
    if plan.shape != shape:
        raise ValueError(f"plan was made for (batch, heads, kv_heads, queries, keys) = {plan.shape}, got {shape}")
    if plan.is_causal != is_causal:
        raise ValueError(f"plan was made for is_causal={plan.is_causal}, got is_causal={is_causal}")
    if params is not None and params != plan.params:
        raise ValueError(f"plan was made with {plan.params}, got {params}; pass one of the two")
    if plan.levels and plan.levels[0].key_order.device != k.device:
        raise ValueError(f"plan is on {plan.levels[0].key_order.device}, the inputs are on {k.device}")
