"""Window attention: in fused kernels where the device has some of use, in slices elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperattn_core.exact_aten import BackwardInputs, lse_dtype
from hyperbench.measure.methods.windows.band import Band
from hyperbench.measure.methods.windows.parts import Chunks, parts_backward, parts_forward
from hyperbench.measure.methods.windows.slices import slices_backward, slices_forward


def window_attention(q: Tensor, k: Tensor, v: Tensor, band: Band) -> Tensor:
    """Softmax attention of q (B, H, N, D) over the keys of k and v (B, Hkv, N, D) in the band: (B, H, N, Dv).

    Differentiable once. Memory grows with N and with the window, not with their product.
    """
    # On a CPU the kernel takes as long for a triangle of such a size as for a square.
    by_kernels = q.device.type == "cuda" and q.dtype in (torch.float16, torch.bfloat16)
    out: Tensor = WindowAttention.apply(q, k, v, band, by_kernels)
    return out


class WindowAttention(torch.autograd.Function):
    """The same with the choice as an argument; with `by_kernels` queries near the two ends go in slices too."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, band: Band, by_kernels: bool) -> Tensor:
        """The output (B, H, N, Dv)."""
        chunks, spans = _split(band, by_kernels)
        out = q.new_empty(*q.shape[:3], v.shape[3])
        slices_forward((q, k, v), band, spans, out)
        lse = None if chunks is None else parts_forward((q, k, v), chunks, out)
        ctx.save_for_backward(q, k, v, None if chunks is None else out, lse)
        ctx.split = band, chunks, spans
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """dq, dk and dv."""
        q, k, v, out, lse = ctx.saved_tensors
        band, chunks, spans = ctx.split
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse_dtype(q), device=q.device) for x in (q, k, v))
        slices_backward((q, k, v), grad_out, band, spans, (dq, dk, dv))
        if chunks is not None:
            parts_backward(BackwardInputs(grad_out, None, q, k, v, out, lse), chunks, (dq, dk, dv))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _split(band: Band, by_kernels: bool) -> tuple[Chunks | None, list[slice]]:
    """The chunks that go by kernels, and the spans of queries that do not."""
    chunks = Chunks.of(band)
    if not by_kernels or chunks.first == chunks.last:
        return None, [slice(0, band.seq_len)]
    return chunks, [slice(0, chunks.rows.start), slice(chunks.rows.stop, band.seq_len)]
