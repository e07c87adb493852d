"""One level of the estimator on a CPU, forward and backward, by PyTorch's fused attention kernel, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hyperattn_core.exact_aten import (
    BackwardInputs,
    Gradients,
    cpu_kernel,
    cpu_kernel_dtype,
    lse_dtype,
    whole_backward,
)
from hyperattn_core.torch_backend.batches import Batch, LevelBatches
from hyperattn_core.torch_backend.scratch import Buffers

#: Columns of a whole vector: widths are multiples of it.
COLUMNS = 16
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def fused_forward(
    batches: LevelBatches,
    inputs: tuple[Tensor, Tensor, Tensor],
    scale: float,
    results: tuple[Tensor, Tensor],
    scratch: Buffers,
) -> None:
    """Write the estimates of a level to the rows of its queries.

    Args:
        batches: the queries of the level and the keys that they meet.
        inputs: q (B, H, Nq, D), k and v (B, Hkv, Nk, D), contiguous.
        scale: factor of the logits.
        results: out (B * H * Nq + 1, D) and lse (B * H * Nq + 1,); their last row is for empty slots.
        scratch: for the rows of a batch.
    """
    q, k, v = (x.flatten(0, 2) for x in inputs)
    dtype = cpu_kernel_dtype(q.dtype)
    for batch in batches:
        x = _gather(scratch, "q", q, batch.queries, dtype)
        keys, values = (_gather(scratch, name, rows, batch.keys, dtype) for name, rows in (("k", k), ("v", v)))
        found = cpu_kernel(x, keys, values, 0.0, False, attn_mask=batch.log_weights, scale=scale)
        targets = batch.targets.view(-1)
        for into, part in zip(results, found, strict=True):
            into.index_copy_(0, targets, part.reshape(len(targets), *into.shape[1:]).to(into.dtype))


def fused_backward(
    levels: Iterable[LevelBatches],
    inputs: BackwardInputs,
    grads: Gradients,
    scale: float,
    scratch: Buffers,
    *,
    is_large: bool,
) -> None:
    """Add the gradients of all levels to dq (B * H * Nq + 1, D), dk and dv (B, Hkv, Nk, D).

    Probabilities are made anew from the final log-sum-exp: p = w exp(s - lse), ds = p (grad_out.v - delta). With
    is_large they are made from the one that each part of the keys had by itself: the final one has too few digits.
    """
    rows, width = _rows_with_lse_column(inputs), inputs.q.shape[3]
    # An empty slot weighs nothing.
    lse = torch.nn.functional.pad(inputs.lse.reshape(-1), (0, 1), value=torch.inf)
    # More digits where an operand is a gradient of lse, or where logits are large.
    has_digits = is_large or inputs.grad_lse is not None
    dtype = scratch.dtype if has_digits else cpu_kernel_dtype(inputs.q.dtype)
    totals = [x.view(-1, width) for x in grads]
    for batches in levels:
        for batch in batches:
            x, grad_out, out = (_gather(scratch, name, rows[name], batch.queries, dtype) for name in _OF_QUERIES)
            keys, values = (_gather(scratch, name, rows[name], batch.keys, dtype) for name in ("k", "v"))
            part = BackwardInputs(grad_out, None, x, keys, values, out, lse[batch.targets].unsqueeze(1))
            found = (_large_backward if is_large else _small_backward)(part, batch, scale)
            for total, index, grad in zip(totals, (batch.targets, batch.keys, batch.keys), found, strict=True):
                total.index_add_(0, index.view(-1), grad.reshape(index.numel(), -1)[:, :width].to(total.dtype))


_OF_QUERIES = ("q", "grad_out", "out")


def _rows_with_lse_column(inputs: BackwardInputs) -> dict[str, Tensor]:
    """q, k, v, grad_out and out (B * H * N, D), with columns more where there is a gradient of lse.

    The kernel knows none, but ds has it in common with rowsum(grad_out * out), of which it is one more term.
    """
    rows = {name: getattr(inputs, name).flatten(0, 2) for name in (*_OF_QUERIES, "k", "v")}
    if inputs.grad_lse is None:
        return rows
    width, dtype = inputs.q.shape[3], lse_dtype(inputs.q)
    wide = {name: torch.nn.functional.pad(x, (0, COLUMNS)).to(dtype) for name, x in rows.items()}
    wide["grad_out"][:, width], wide["out"][:, width] = inputs.grad_lse.reshape(-1), -1.0
    return wide


def _small_backward(part: BackwardInputs, batch: Batch, scale: float) -> Gradients:
    found: Gradients = _kernel_backward(
        part.grad_out, part.q, part.k, part.v, part.out, part.lse.to(lse_dtype(part.q)), 0.0, False,
        attn_mask=batch.log_weights, scale=scale,
    )  # fmt: skip
    return found


def _large_backward(part: BackwardInputs, batch: Batch, scale: float) -> Gradients:
    """For logits of any size, through the output and the lse of the part in the forward pass."""
    own = cpu_kernel(part.q, part.k, part.v, 0.0, False, attn_mask=batch.log_weights, scale=scale)
    return whole_backward(part.of_part(*own), False, scale, log_weights=batch.log_weights)


def _gather(scratch: Buffers, name: str, x: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of x (rows, D) as (parts, 1, length, D) of a dtype, in scratch tensors; index (parts, length)."""
    found = scratch.gather(f"{name} of {x.dtype}", x, index.view(-1))
    if dtype != x.dtype:
        found = scratch.get(name, *found.shape, dtype=dtype).copy_(found)
    return found.view(len(index), 1, -1, x.shape[1])
