"""One level of the estimator on a CPU, forward and backward, batch by batch through PyTorch's fused attention kernel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hyperattn_core.exact_aten import BackwardInputs, Gradients, lse_dtype, whole_backward
from hyperattn_core.torch_backend.batches import LevelBatches
from hyperattn_core.torch_backend.scratch import Buffers

COLUMNS = 16
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def fused_forward(
    batches: LevelBatches, flat: tuple[Tensor, Tensor, Tensor], scale: float, results: tuple[Tensor, Tensor], scratch: Buffers
) -> None:
    """Write the estimates of a level to the rows of its queries in out (B * H * Nq + 1, D) and lse (B * H * Nq + 1,).

    Args:
        batches: the queries of the level and the keys that they meet.
        flat: rows of q, k and v, equally wide.
        scale: factor of the logits.
        results: out and lse; their last row is for empty slots.
        scratch: for what each batch gathers.
    """
    (q, k, v), (out, lse) = flat, results
    for batch in batches:
        x = _gather(scratch, "q", q, batch.queries)
        keys, values = _gather(scratch, "k", k, batch.keys), _gather(scratch, "v", v, batch.keys)
        part_out, part_lse = _forward(
            x, keys, values, 0.0, False, attn_mask=batch.log_weights, scale=scale
        )
        targets = batch.targets.view(-1)
        out.index_copy_(0, targets, part_out.reshape(targets.shape[0], -1).to(out.dtype))
        lse.index_copy_(0, targets, part_lse.reshape(-1).to(lse.dtype))


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
    is_large they are so from each part's own, by plain products: the lse then has too few digits.
    """
    rows, width = _rows_with_lse_column(inputs), inputs.q.shape[3]
    lse = torch.nn.functional.pad(inputs.lse.reshape(-1), (0, 1), value=torch.inf)
    lse = lse if is_large else lse.to(scratch.dtype)
    dq, dk, dv = (x.view(-1, width) for x in grads)
    for batches in levels:
        for batch in batches:
            x, grad_out, out = (_gather(scratch, name, rows[name], batch.queries) for name in ("q", "grad_out", "out"))
            keys, values = (_gather(scratch, name, rows[name], batch.keys) for name in ("k", "v"))
            part_lse = lse[batch.targets].unsqueeze(1)
            if is_large:
                part = BackwardInputs(grad_out, None, x, keys, values, out, part_lse)
                parts = _large_backward(part, batch.log_weights, scale)
            else:
                parts = _backward(
                    grad_out, x, keys, values, out, part_lse, 0.0, False, attn_mask=batch.log_weights, scale=scale
                )
            for into, index, part in zip((dq, dk, dv), (batch.targets, batch.keys, batch.keys), parts, strict=True):
                into.index_add_(0, index.view(-1), part.reshape(index.numel(), -1)[:, :width])


def _rows_with_lse_column(inputs: BackwardInputs) -> dict[str, Tensor]:
    """q, k, v, grad_out and out (B * H * N, D), with columns more where there is a gradient of lse.

    The kernel knows none, but ds has it in common with rowsum(grad_out * out), of which it is one more term.
    """
    rows = {name: getattr(inputs, name).flatten(0, 2) for name in ("q", "k", "v", "grad_out", "out")}
    if inputs.grad_lse is None:
        return rows
    width = inputs.q.shape[3]
    wide = {name: torch.nn.functional.pad(x, (0, COLUMNS)) for name, x in rows.items()}
    dtype = lse_dtype(inputs.q)
    wide |= {name: wide[name].to(dtype) for name in ("grad_out", "out")}
    wide["grad_out"][:, width], wide["out"][:, width] = inputs.grad_lse.reshape(-1), -1.0
    return wide


def _large_backward(inputs: BackwardInputs, log_weights: Tensor, scale: float) -> Gradients:
    """As the kernel's, for logits of any size, through the output and the lse that each part had by itself."""
    own = _forward(inputs.q, inputs.k, inputs.v, 0.0, False, attn_mask=log_weights, scale=scale)
    return whole_backward(inputs.of_part(*own), False, scale, log_weights=log_weights)


def _gather(scratch: Buffers, name: str, x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (rows, D) as (parts, 1, length, D), in the dtype of the scratch tensors; index (parts, length)."""
    found = scratch.gather(f"{name} of {x.dtype}", x, index.view(-1)).to(scratch.dtype)
    return found.view(index.shape[0], 1, index.shape[1], -1)
