"""Errors of the gradients of each attention, at the q, k and v of a trained model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from byte_lm import ByteLM, Text
from detached_merge import merged_parts, parts_of
from lm_training import MAX_LAYERS, Settings, held_out_batch
from torch import Tensor

from hyperattn_core import AttentionPlan, hyper_attention, make_plan

Attention = Callable[[Tensor, Tensor, Tensor, AttentionPlan], Tensor]


@dataclass(frozen=True)
class GradientError:
    """|gradient - true gradient| / |true gradient| (Frobenius) for q, k and v of one layer, all heads together."""

    attention: str
    layer: int
    dq: float
    dk: float
    dv: float


@dataclass(frozen=True)
class Call:
    """One layer's attention in a pass through the model: its inputs, its plan, the loss's gradient at its output."""

    q: Tensor
    k: Tensor
    v: Tensor
    plan: AttentionPlan
    grad_out: Tensor


def hyper(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """The library's HyperAttention at a plan."""
    return hyper_attention(q, k, v, is_causal=True, plan=plan)


def lse_detached(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """The same output, without the gradient of the log-sum-exps."""
    return merged_parts(q, k, v, plan, detach=True)


def calls_of(model: ByteLM, text: Text, settings: Settings) -> list[Call]:
    """Every layer's attention on the first held-out batch, at one plan each."""
    seen: list[tuple[Tensor, Tensor, Tensor, AttentionPlan, Tensor]] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        plan = make_plan(q, k, settings.params, -MAX_LAYERS + layer, is_causal=True)
        out = hyper(q, k, v, plan)
        seen.append((q.detach(), k.detach(), v.detach(), plan, out))
        return out

    loss = model(held_out_batch(text, settings, 0), recorded)
    grads_out = torch.autograd.grad(loss, [out for *_, out in seen])
    return [Call(q, k, v, plan, grad) for (q, k, v, plan, _), grad in zip(seen, grads_out, strict=True)]


def gradient_errors(calls: list[Call]) -> list[GradientError]:
    """Each attention's gradient against autograd's in float64, through the merge with its log-sum-exps."""
    found = []
    for layer, call in enumerate(calls):
        true = _gradients(lambda q, k, v, plan: merged_parts(q, k, v, plan, detach=False), call, torch.float64)
        for name, attention in (("hyper", hyper), ("hyper_lse_detached", lse_detached)):
            errors = [
                float((a.double() - b).norm() / b.norm())
                for a, b in zip(_gradients(attention, call, call.q.dtype), true, strict=True)
            ]
            found.append(GradientError(name, layer, *errors))
    return found


def _gradients(attention: Attention, call: Call, dtype: torch.dtype) -> tuple[Tensor, ...]:
    q, k, v = (x.to(dtype).requires_grad_() for x in (call.q, call.k, call.v))
    return torch.autograd.grad(attention(q, k, v, call.plan), (q, k, v), call.grad_out.to(dtype))


def share_met(plan: AttentionPlan) -> float:
    """The part of all pairs of a query and a key before or at it that enter the estimate, the mean over heads."""
    batch, heads, _, seq_len, _ = plan.shape
    met = 0.0
    for part in parts_of(plan):
        pairs = float((part.weights > 0).sum())
        met += pairs * batch * heads * (seq_len // part.node_len) if part.is_leaf else pairs
    return met / (batch * heads * seq_len * (seq_len + 1) / 2)
