"""Exact attention with its log-sum-exp, forward and backward, through PyTorch's fused kernels where they exist.

`scaled_dot_product_attention` returns no log-sum-exp, so the fused kernels are called by their ATen names: the flash
kernel for CPU (any floating dtype), FlashAttention-2 on CUDA (float16 and bfloat16). Elsewhere attention is computed in
chunks of queries by plain matrix products, in linear memory too.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Attended = tuple[Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor]
_CHUNK_ELEMENTS = 2**22
# PyTorch's CPU kernel takes a row whose logits are all NaN for a fully masked one, and gives zeros, where the keys do
# not fill one vector register: fewer keys than this go through plain matrix products, which hide no NaN.
CPU_KERNEL_MIN_KEYS = 32
_FLASH_MAX_WIDTH = 256
# The flash kernel for CUDA loads vectors of 16 bytes, of 8 elements, and does not ask whether they are aligned.
_ALIGNED_BYTES = 16
_ALIGNED_ELEMENTS = 8
_setting_order = threading.Lock()
#: out and lse; takes no groups.
cpu_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class BackwardInputs:
    """Inputs of a backward pass; out and lse may be those of attention over more keys than k.

    q, k and v are those of the call, out and grad_out (B, H, Nq, Dv), lse and grad_lse (B, H, Nq); grad_lse is None
    where only the output is differentiated. The two may have a higher precision than sums are made in.
    """

    grad_out: Tensor
    grad_lse: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> BackwardInputs:
        """The same after a change of every tensor."""
        return replace(self, **{name: change(x) for name, x in vars(self).items() if x is not None})

    def delta(self) -> Tensor:
        """rowsum(grad_out * out) - grad_lse (B, H, Nq), in the dtype of accumulation."""
        dtype = lse_dtype(self.q)
        delta = (self.grad_out.to(dtype) * self.out.to(dtype)).sum(3)
        return delta if self.grad_lse is None else delta - self.grad_lse.to(dtype)

    def of_part(self, own_out: Tensor, own_lse: Tensor) -> BackwardInputs:
        """Those of a part of the keys as an attention of its own, whose output and lse were own_out and own_lse.

        With the share w of the part in a row these two have the gradients w grad_out and w (grad_out.own_out - delta).
        In sums over a row's keys large terms cancel out, if the weights of each part add up to its share in the output.
        """
        share = torch.exp(own_lse - self.lse)
        own_delta = replace(self, out=own_out, grad_lse=None).delta()
        grad_out = (self.grad_out * share.unsqueeze(3)).to(own_delta.dtype)
        grad_lse = share * (own_delta - self.delta())
        return replace(self, grad_out=grad_out, grad_lse=grad_lse, out=own_out, lse=own_lse)


def lse_dtype(x: Tensor) -> torch.dtype:
    """The dtype of log-sum-exps and of accumulation: float64 for float64 inputs, else float32."""
    return torch.promote_types(x.dtype, torch.float32)


def in_kernel_dtype(x: Tensor) -> Tensor:
    """x in the dtype in which PyTorch's fused kernel for the device is fastest; on a CPU it need not be that of x.

    Without tiles of float16 or bfloat16 (AMX) a CPU multiplies them slower than float32, and gains nothing by rounding.
    """
    return x.to(cpu_kernel_dtype(x.dtype)) if x.device.type == "cpu" else x


@functools.cache
def cpu_kernel_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which this CPU computes inputs of a dtype: that of sums, but for float16 and bfloat16 with AMX."""
    tiles = {torch.bfloat16: "_is_amx_tile_supported", torch.float16: "_is_amx_fp16_supported"}
    if dtype in tiles and getattr(torch.cpu, tiles[dtype], lambda: False)():
        return dtype
    return torch.promote_types(dtype, torch.float32)


def _has_fused_kernel(q: Tensor, v: Tensor, more_columns: int = 0) -> bool:
    """True if the device has a kernel for such inputs, with so many columns more than v has."""
    if q.device.type == "cpu":
        return v.shape[2] >= CPU_KERNEL_MIN_KEYS
    width = max(q.shape[3], v.shape[3] + more_columns)
    return q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16) and width <= _FLASH_MAX_WIDTH


def takes_groups(q: Tensor, v: Tensor, grad_lse: Tensor | None = None) -> bool:
    """True if a kernel runs that takes fewer kv heads than query heads by itself: FlashAttention-2 on CUDA."""
    return q.device.type == "cuda" and _has_fused_kernel(q, v, 0 if grad_lse is None else 1)


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


def kernel_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
    """Output (B, H, Nq, Dv) and lse (B, H, Nq) by the device's fused kernel, else by matrix products in chunks.

    H must be Hkv but where takes_groups says otherwise. With is_causal a non-finite value may reach rows before it.
    """
    if not _has_fused_kernel(q, v):
        return _math_forward(q, k, v, is_causal, scale)
    value_dim = v.shape[3]
    q, scale, _ = _positive_scale(q, scale)
    q, k, v = _padded(_kernel_width(q, q.shape[3], value_dim), q, k, v)
    if q.device.type == "cpu":
        out, lse = cpu_kernel(q, k, v, 0.0, is_causal, scale=scale)
        if not bool(out.sum().isfinite()) and (factor := range_factor(v)) != 1:
            out, lse = cpu_kernel(q, k, v * factor, 0.0, is_causal, scale=scale)
            out = out / factor
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, False, scale=scale)[:2]
    return out[..., :value_dim], lse


def kernel_backward(inputs: BackwardInputs, is_causal: bool, scale: float) -> Gradients:
    """dq, dk and dv of kernel_forward, or of its part of an attention whose final out and lse are given."""
    grad_out, grad_lse, q, k, v, out, lse = vars(inputs).values()
    if not _has_fused_kernel(q, v, 0 if grad_lse is None else 1):
        return _math_backward(inputs, is_causal, scale)
    dim, value_dim = q.shape[3], v.shape[3]
    q, scale, sign = _positive_scale(q, scale)
    if grad_lse is not None:
        # The kernels know no gradient of lse, but ds has it in common with rowsum(grad_out * out): one more column.
        out = torch.cat([out, out.new_full((*out.shape[:3], 1), -1.0)], dim=3)
        grad_out = torch.cat([grad_out, grad_lse.unsqueeze(3).to(grad_out.dtype)], dim=3)
    q, k, v, out, grad_out = _padded(_kernel_width(q, dim, out.shape[3]), q, k, v, out, grad_out)
    lse = lse.to(lse_dtype(q), memory_format=torch.contiguous_format)
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


def range_factor(v: Tensor) -> float:
    """The power of two that keeps the kernel's sums of v (B, H, Nk, Dv) finite: 1 but for values near the largest."""
    if v.numel() == 0:
        return 1.0
    # Two passes, which are faster than that of aminmax.
    least, most = v.amin(), v.amax()
    # Exponentials are at most 1, and normalised after they are summed.
    room = math.ceil(math.log2(v.shape[2])) + 1
    return 2.0**-room if max(-float(least), float(most)) > torch.finfo(lse_dtype(v)).max * 2.0**-room else 1.0


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
        outs.append((logits.softmax(dim=3) @ v.to(logits.dtype)).to(q.dtype))
        lses.append(logits.logsumexp(dim=3))
    return torch.cat(outs, dim=2), torch.cat(lses, dim=2)


def whole_backward(
    inputs: BackwardInputs, is_causal: bool, scale: float, *, log_weights: Tensor | float = 0.0
) -> Gradients:
    """dq, dk and dv of attention over the keys of k alone, by matrix products; out and lse are not asked.

    The weights are made anew and add up to one, and the ds of a row to grad_lse, however large the logits: what float32
    leaves of a large lse does neither. `log_weights` (B, H, 1, Nk) are added to the logits.
    """
    return _math_backward(inputs, is_causal, scale, is_whole=True, log_weights=log_weights)


def _math_backward(
    inputs: BackwardInputs,
    is_causal: bool,
    scale: float,
    *,
    is_whole: bool = False,
    log_weights: Tensor | float = 0.0,
) -> Gradients:
    q, k, v, dtype = inputs.q, inputs.k, inputs.v, lse_dtype(inputs.q)
    delta = None if is_whole else inputs.delta().unsqueeze(3)
    dq = torch.empty_like(q)
    dk, dv = torch.zeros_like(k, dtype=dtype), torch.zeros_like(v, dtype=dtype)
    for rows in _query_chunks(q, k.shape[2]):
        logits = _logits(q, k, rows, is_causal, scale).add_(log_weights)
        g = inputs.grad_out[:, :, rows].to(dtype)
        dp = g @ v.to(dtype).transpose(2, 3)
        if delta is None:
            p = logits.softmax(dim=3)
            row_delta = (p * dp).sum(3, keepdim=True)
            if inputs.grad_lse is not None:
                row_delta -= inputs.grad_lse[:, :, rows].to(dtype).unsqueeze(3)
        else:
            p, row_delta = (logits - inputs.lse[:, :, rows].to(dtype).unsqueeze(3)).exp(), delta[:, :, rows]
        ds = p * (dp - row_delta) * scale
        dq[:, :, rows] = (ds @ k.to(dtype)).to(q.dtype)
        dk += ds.transpose(2, 3) @ q[:, :, rows].to(dtype)
        dv += p.transpose(2, 3) @ g
    return dq, dk.to(k.dtype), dv.to(v.dtype)
