"""Exact attention with its log-sum-exp, forward and backward, through PyTorch's fused kernels where they exist.

`scaled_dot_product_attention` returns no log-sum-exp, so the fused kernels are called by their ATen names: the flash
kernel for CPU (any floating dtype), FlashAttention-2 on CUDA (float16 and bfloat16). Elsewhere attention is computed in
chunks of queries by plain matrix products, in linear memory too.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperattn_core.checks import check_inputs

Attended = tuple[Tensor, Tensor]
_CHUNK_ELEMENTS = 2**22
# PyTorch's CPU kernel takes a row whose logits are all NaN for a fully masked one, and gives zeros, where the keys do
# not fill one vector register: fewer keys than this go through plain matrix products, which hide no NaN.
_CPU_KERNEL_MIN_KEYS = 32
_FLASH_MAX_WIDTH = 256
# The flash kernel for CUDA loads vectors of 16 bytes, of 8 elements, and does not ask whether they are aligned.
_ALIGNED_BYTES = 16
_ALIGNED_ELEMENTS = 8
_setting_order = threading.Lock()


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
    check_inputs(q, k, v, is_causal=is_causal, enable_gqa=enable_gqa)
    out, lse = _ExactAttention.apply(q, k, v, is_causal, default_scale(q, scale))
    return (out, lse) if return_lse else out


def default_scale(q: Tensor, scale: float | None) -> float:
    """The factor of the logits: 1 / sqrt(head_dim) unless given.

    Raises:
        ValueError: scale is not a finite number.
    """
    if scale is None:
        return 1.0 / math.sqrt(q.shape[-1])
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number or None, got {scale!r}")
    return float(scale)


class _ExactAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
        out, lse = exact_forward(q, k, v, is_causal, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.is_causal, ctx.scale = is_causal, scale
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        return (*exact_backward(grad_out, q, k, v, out, lse, ctx.is_causal, ctx.scale, grad_lse), None, None)


def exact_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
    """Output (B, H, Nq, Dv) and log-sum-exp (B, H, Nq) without autograd; H may be a multiple of Hkv."""
    if q.shape[2] == 0:
        return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=lse_dtype(q))
    spread = None
    if is_causal and not (v.device.type == "cpu" and bool(v.sum().isfinite())):
        # A masked probability of 0 times a non-finite value would reach rows that do not see it: take such values
        # out of the product and add them to the rows from their position on.
        finite = v.isfinite()
        spread = torch.where(finite, 0.0, v).cumsum(dim=2)
        v = torch.where(finite, v, 0.0)
    outs, lses = [], []
    for q_group in _groups(q, k.shape[1]):
        out, lse = _kernel_forward(q_group, k, v, is_causal, scale)
        outs.append(out if spread is None else out + spread.to(out.dtype))
        lses.append(lse)
    return _ungroup(outs), _ungroup(lses)


def fused_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
    """As exact_forward, by one call of the device's own kernel where there is one: a NaN in v may spread within it."""
    if q.device.type == "cuda" and _has_fused_kernel(q, v):
        return _kernel_forward(q, k, v, is_causal, scale)
    return exact_forward(q, k, v, is_causal, scale)


def exact_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) of the part of an attention that these keys contribute.

    `out` and `lse` may be those of attention over more keys than k: with p = exp(scale q.k - lse) and
    delta = rowsum(grad_out * out) - grad_lse, ds = p (grad_out.v - delta) holds for every subset of the keys.
    """
    if q.shape[2] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    kv_heads = k.shape[1]
    grads_lse = [None] * (q.shape[1] // kv_heads) if grad_lse is None else _groups(grad_lse, kv_heads)
    dqs: list[Tensor] = []
    dk: Tensor | None = None
    dv: Tensor | None = None
    parts = zip(
        _groups(grad_out, kv_heads),
        _groups(q, kv_heads),
        _groups(out, kv_heads),
        _groups(lse, kv_heads),
        grads_lse,
        strict=True,
    )
    for g_group, q_group, out_group, lse_group, grad_lse_group in parts:
        dq, dk_group, dv_group = _kernel_backward(
            g_group, q_group, k, v, out_group, lse_group, is_causal, scale, grad_lse_group
        )
        dqs.append(dq)
        dk = dk_group if dk is None else dk + dk_group
        dv = dv_group if dv is None else dv + dv_group
    assert dk is not None
    assert dv is not None
    return _ungroup(dqs), dk, dv


def fused_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    grad_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As exact_backward, by one call of the device's own kernel where there is one."""
    if q.device.type == "cuda" and _has_fused_kernel(q, v, 0 if grad_lse is None else 1):
        return _kernel_backward(grad_out, q, k, v, out, lse, is_causal, scale, grad_lse)
    return exact_backward(grad_out, q, k, v, out, lse, is_causal, scale, grad_lse)


def lse_dtype(x: Tensor) -> torch.dtype:
    """The dtype of log-sum-exps and of accumulation: float64 for float64 inputs, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def _groups(x: Tensor, kv_heads: int) -> list[Tensor]:
    """Split heads (B, H, ...) into the H / Hkv groups of one query head per kv head, as views."""
    if x.shape[1] == kv_heads:
        return [x]
    return list(x.unflatten(1, (kv_heads, -1)).unbind(2))


def _ungroup(groups: list[Tensor]) -> Tensor:
    return groups[0] if len(groups) == 1 else torch.stack(groups, dim=2).flatten(1, 2)


def _has_fused_kernel(q: Tensor, v: Tensor, more_columns: int = 0) -> bool:
    """Whether the device has a kernel for such inputs, with so many columns more than v has."""
    if q.device.type == "cpu":
        return v.shape[2] >= _CPU_KERNEL_MIN_KEYS
    width = max(q.shape[3], v.shape[3] + more_columns)
    return q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16) and width <= _FLASH_MAX_WIDTH


def _padded(width: int, *tensors: Tensor) -> list[Tensor]:
    """Rows as the fused kernels ask for: dense, with zero columns up to a common head size that change no logit."""
    dense = (x if _is_dense(x) else x.clone(memory_format=torch.contiguous_format) for x in tensors)
    return [x if x.shape[3] == width else torch.nn.functional.pad(x, (0, width - x.shape[3])) for x in dense]


def _is_dense(x: Tensor) -> bool:
    if x.device.type != "cuda":
        return x.stride(3) == 1
    aligned = x.data_ptr() % _ALIGNED_BYTES == 0 and all(step % _ALIGNED_ELEMENTS == 0 for step in x.stride()[:3])
    return x.stride(3) == 1 and (aligned or x.shape[3] % _ALIGNED_ELEMENTS != 0)


@contextlib.contextmanager
def _fixed_order() -> Iterator[None]:
    """PyTorch's flash kernel for CUDA adds up dq in a fixed order only under this setting; put back afterwards."""
    with _setting_order:
        enabled = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        fill = torch._C._get_deterministic_fill_uninitialized_memory()
        torch._C._set_deterministic_fill_uninitialized_memory(False)
        torch._C._set_deterministic_algorithms(True, warn_only=False)
        try:
            yield
        finally:
            torch._C._set_deterministic_algorithms(enabled, warn_only=warn_only)
            torch._C._set_deterministic_fill_uninitialized_memory(fill)


def _kernel_width(q: Tensor, *widths: int) -> int:
    width = max(widths)
    return width if q.device.type == "cpu" else -(-width // 8) * 8


def _positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float, int]:
    """q, a positive scale and the sign that q was multiplied by: the kernels' causal masks take no other scale."""
    if scale > 0:
        return q, scale, 1
    sign = -1 if scale < 0 else 0
    return q * sign, abs(scale) or 1.0, sign


def _kernel_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
    if not _has_fused_kernel(q, v):
        return _math_forward(q, k, v, is_causal, scale)
    value_dim = v.shape[3]
    q, scale, _ = _positive_scale(q, scale)
    q, k, v = _padded(_kernel_width(q, q.shape[3], value_dim), q, k, v)
    if q.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal, scale=scale)
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)[:2]
    return out[..., :value_dim], lse


def _kernel_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if not _has_fused_kernel(q, v, 0 if grad_lse is None else 1):
        return _math_backward(grad_out, q, k, v, out, lse, is_causal, scale, grad_lse)
    dim, value_dim = q.shape[3], v.shape[3]
    q, scale, sign = _positive_scale(q, scale)
    if grad_lse is not None:
        # The kernels know no gradient of lse: one more value column of ones with that gradient adds it to ds.
        v = torch.cat([v, v.new_ones(*v.shape[:3], 1)], dim=3)
        grad_out = torch.cat([grad_out, grad_lse.unsqueeze(3).to(grad_out.dtype)], dim=3)
    q, k, v, out, grad_out = _padded(_kernel_width(q, dim, v.shape[3]), q, k, v, out, grad_out)
    if q.device.type == "cpu":
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, q, k, v, out, lse, 0.0, is_causal, scale=scale
        )
    else:
        no_dropout = torch.empty(0, dtype=torch.int64, device=q.device)
        with _fixed_order():
            dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
                grad_out, q, k, v, out, lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, is_causal,
                no_dropout, no_dropout, scale=scale,
            )  # fmt: skip
    return dq[..., :dim] if sign == 1 else dq[..., :dim] * sign, dk[..., :dim], dv[..., :value_dim]


def _query_chunks(q: Tensor, num_keys: int) -> list[slice]:
    rows = max(1, _CHUNK_ELEMENTS // (q.shape[0] * q.shape[1] * num_keys))
    return [slice(i, min(i + rows, q.shape[2])) for i in range(0, q.shape[2], rows)]


def _logits(q: Tensor, k: Tensor, rows: slice, is_causal: bool, scale: float) -> Tensor:
    logits = (q[:, :, rows].to(lse_dtype(q)) * scale) @ k.to(lse_dtype(k)).transpose(2, 3)
    if is_causal:
        hidden = torch.arange(k.shape[2], device=q.device) > torch.arange(
            rows.start, rows.stop, device=q.device
        ).unsqueeze(1)
        logits.masked_fill_(hidden, -math.inf)
    return logits


def _math_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
    outs, lses = [], []
    for rows in _query_chunks(q, k.shape[2]):
        logits = _logits(q, k, rows, is_causal, scale)
        lse = logits.logsumexp(dim=3)
        outs.append(((logits - lse.unsqueeze(3)).exp() @ v.to(logits.dtype)).to(q.dtype))
        lses.append(lse)
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def _math_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    grad_lse: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = lse_dtype(q)
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
    for rows in _query_chunks(q, k.shape[2]):
        p = (_logits(q, k, rows, is_causal, scale) - lse[:, :, rows].unsqueeze(3)).exp()
        g = grad_out[:, :, rows].to(dtype)
        delta = (g * out[:, :, rows].to(dtype)).sum(3, keepdim=True)
        if grad_lse is not None:
            delta = delta - grad_lse[:, :, rows].unsqueeze(3)
        ds = p * (g @ v.to(dtype).transpose(2, 3) - delta) * scale
        dq[:, :, rows] = (ds @ k.to(dtype)).to(q.dtype)
        dk += ds.transpose(2, 3) @ q[:, :, rows].to(dtype)
        dv += p.transpose(2, 3) @ g
    return dq, dk.to(k.dtype), dv.to(v.dtype)
