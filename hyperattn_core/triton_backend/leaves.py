"""The exact causal leaves, on views of q, k and v: the faster of PyTorch's fused kernels, where they agree."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperattn_core.exact import as_leaves, fused_forward
from hyperattn_core.exact_aten import Attended
from hyperattn_core.triton_backend.packing import dense_rows

_TUNING_TOKENS = 1 << 17
#: Of the log-sum-exp, which is in float32; a kernel of another convention (another base, no scale) is far off.
_LSE_TOLERANCE = 1e-2
_OUT_TOLERANCE = 5e-2


@dataclass(frozen=True)
class Leaves:
    """Results of the leaves of positions `part`: out (leaves, B * H, length, Dv), lse (leaves, B * H, length)."""

    part: slice
    out: Tensor
    lse: Tensor


def leaf_forward(q: Tensor, k: Tensor, v: Tensor, part: slice, leaf_len: int, scale: float) -> Leaves:
    """Exact causal attention of the leaves of one part.

    On a GPU a NaN or infinity in v may reach other rows of its own leaf, as in PyTorch's own kernel: to keep it from
    that would cost more than the leaves do.
    """
    q, k, v = (as_leaves(x, part, leaf_len) for x in (q, k, v))
    if q.device.type == "cuda" and q.shape[2] == leaf_len and leaf_kernel(q, v, scale) == "cudnn":
        out, lse = _cudnn_forward(q, k, v, scale)
    else:
        out, lse = fused_forward(q, k, v, True, scale)
    return Leaves(part, dense_rows(out), dense_rows(lse))


def leaf_kernel(q: Tensor, v: Tensor, scale: float) -> str:
    """The kernel for full leaves (leaves, B * H, length, D) of such inputs: "flash" (FlashAttention-2) or "cudnn".

    The first call for a GPU, dtype, head size and leaf length compares them; FlashAttention-2 where it may not
    (HYPERATTN_AUTOTUNE=0, or while a CUDA graph is captured).
    """
    if q.dtype not in (torch.float16, torch.bfloat16) or q.shape[3] != v.shape[3] or q.shape[3] % 8 or scale <= 0:
        return "flash"
    key = (q.get_device(), q.dtype, q.shape[3], q.shape[2], q.shape[1] // v.shape[1])
    if key not in _remembered:
        if os.environ.get("HYPERATTN_AUTOTUNE", "1") == "0" or torch.cuda.is_current_stream_capturing():
            return "flash"
        _remembered[key] = _faster(q, q.shape[1] // v.shape[1])
    return _remembered[key]


def describe_leaves() -> dict[str, str]:
    """The kernels that this process has taken for leaves, as text."""
    return {
        f"leaves {str(dtype).removeprefix('torch.')} d={head_dim} length={leaf_len}": kernel
        for (_, dtype, head_dim, leaf_len, _), kernel in _remembered.items()
    }


_remembered: dict[tuple[int, torch.dtype, int, int, int], str] = {}


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
    result = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=scale)
    out: Tensor = result[0]
    return out, result[1].reshape(out.shape[:3])


def _faster(like: Tensor, group: int) -> str:
    """Time both kernels on random leaves; cuDNN is taken only where it runs, agrees, and is faster."""
    from triton.testing import do_bench

    leaf_len, head_dim = like.shape[2:]
    leaves = max(1, _TUNING_TOKENS // leaf_len)
    generator = torch.Generator(like.device).manual_seed(0)

    def leaf(heads: int) -> Tensor:
        x = torch.randn(heads, leaves * leaf_len, head_dim, generator=generator, device=like.device, dtype=like.dtype)
        return x.unflatten(1, (leaves, leaf_len)).transpose(0, 1)  # strides as those of real leaves

    q, k, v = leaf(2 * group), leaf(2), leaf(2)
    scale = head_dim**-0.5
    flash = functools.partial(fused_forward, q, k, v, True, scale)
    cudnn = functools.partial(_cudnn_forward, q, k, v, scale)
    try:
        (out, lse), (other_out, other_lse) = flash(), cudnn()
        agree = ((other_lse - lse).abs() < _LSE_TOLERANCE).all() & ((other_out - out).abs() < _OUT_TOLERANCE).all()
        return "cudnn" if agree and _median_ms(do_bench, cudnn) < _median_ms(do_bench, flash) else "flash"
    except RuntimeError:  # PyTorch without cuDNN, a shape that cuDNN has no plan for, or no memory to compare in.
        return "flash"


def _median_ms(do_bench: Any, run: Any) -> float:
    return float(do_bench(run, warmup=10, rep=50, return_mode="median"))
