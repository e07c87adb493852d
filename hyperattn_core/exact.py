"""Exact attention, its log-sum-exp and its gradients, without autograd, on any device; the leaves of a causal call."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
from torch import Tensor

from hyperattn_core.exact_aten import (
    Attended,
    BackwardInputs,
    Gradients,
    kernel_backward,
    kernel_forward,
    lse_dtype,
    takes_groups,
)

HeadBackward = Callable[[BackwardInputs, bool, float], Gradients]


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


def exact_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
    """Output (B, H, Nq, Dv) and log-sum-exp (B, H, Nq) without autograd; H may be a multiple of Hkv."""
    if q.shape[2] == 0:
        return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3], dtype=lse_dtype(q))
    spread = None
    if is_causal and not (v.device.type == "cpu" and bool(v.sum().isfinite())):
        # A masked probability of 0 times a non-finite value would reach rows that do not see it: take such values
        # out of the product and add them to the rows from their position on.
        finite = v.isfinite()
        spread = _so_far(torch.where(finite, 0.0, v))
        v = torch.where(finite, v, 0.0)
    outs, lses = [], []
    for q_group in [q] if takes_groups(q, v) else _groups(q, k.shape[1]):
        out, lse = kernel_forward(q_group, k, v, is_causal, scale)
        outs.append(out if spread is None else out + spread.to(out.dtype))
        lses.append(lse)
    return _ungroup(outs), _ungroup(lses)


def _so_far(x: Tensor) -> Tensor:
    """The sums of every row and those before it, along dimension 2; x holds zeros, infinities and NaN alone."""
    if torch.are_deterministic_algorithms_enabled():
        # A cumulative sum raises there on CUDA. Extremes take a NaN on too, and cost a pass more.
        return x.cummax(dim=2).values + x.cummin(dim=2).values
    return x.cumsum(dim=2)


def fused_forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> Attended:
    """As exact_forward, by one call of the device's own kernel where there is one: a NaN in v may spread within it."""
    if takes_groups(q, v):
        return kernel_forward(q, k, v, is_causal, scale)
    return exact_forward(q, k, v, is_causal, scale)


def exact_backward(
    inputs: BackwardInputs, is_causal: bool, scale: float, *, head_backward: HeadBackward = kernel_backward
) -> Gradients:
    """Gradients (dq, dk, dv) of the part of an attention that these keys contribute.

    With p = exp(scale q.k - lse) and delta = rowsum(grad_out * out) - grad_lse, ds = p (grad_out.v - delta) holds for
    every subset of the keys. `head_backward` makes them where there are as many heads as kv heads.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    if q.shape[2] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if takes_groups(q, v, inputs.grad_lse) and head_backward is kernel_backward:
        return kernel_backward(inputs, is_causal, scale)
    count = q.shape[1] // k.shape[1]
    # The tensors of each group: a query head per kv head.
    groups = zip(
        *([x] * count if x is k or x is v or x is None else _groups(x, k.shape[1]) for x in vars(inputs).values()),
        strict=True,
    )
    dqs: list[Tensor] = []
    sums: list[Tensor] = []
    for part in groups:
        dq, *grads = head_backward(BackwardInputs(*part), is_causal, scale)
        dqs.append(dq)
        sums = [a + b for a, b in zip(sums, grads, strict=True)] if sums else grads
    return _ungroup(dqs), sums[0], sums[1]


def _groups(x: Tensor, kv_heads: int) -> list[Tensor]:
    """Split heads (B, H, ...) into the H / Hkv groups of one query head per kv head, as views."""
    if x.shape[1] == kv_heads:
        return [x]
    return list(x.unflatten(1, (kv_heads, -1)).unbind(2))


def _ungroup(groups: list[Tensor]) -> Tensor:
    return groups[0] if len(groups) == 1 else torch.stack(groups, dim=2).flatten(1, 2)


def leaf_slices(seq_len: int, leaf_len: int, most: int | None = None) -> list[slice]:
    """The positions of the full leaves, then those of the shorter last leaf, if any.

    Full leaves come together, or by so many as have at most `most` positions, if not a single one.
    """
    full = seq_len - seq_len % leaf_len
    step = full if most is None else max(1, most // leaf_len) * leaf_len
    parts = [slice(i, min(i + step, full)) for i in range(0, full, step)] if full else []
    return [*parts, slice(full, seq_len)] if seq_len > full else parts


def as_leaves(x: Tensor, part: slice, leaf_len: int) -> Tensor:
    """Positions `part` of x (B, H, N, ...) as leaves (leaves, B * H, length, ...): a view where B and H are one run."""
    length = min(leaf_len, part.stop - part.start)
    return x.flatten(0, 1)[:, part].unflatten(1, (-1, length)).transpose(0, 1)


def store_leaves(into: Tensor, part: slice, leaves: Tensor) -> None:
    """Write leaves (leaves, B * H, length, ...) to positions `part` of a contiguous (B, H, N, ...)."""
    into.flatten(0, 1)[:, part].unflatten(1, (-1, leaves.shape[2])).copy_(leaves.transpose(0, 1))
