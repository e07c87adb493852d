"""Attention as the formula says, dense, in float64, with autograd; what everything else is compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def drawn(batch: int, heads: int, kv_heads: int, seq_len: int, head_dim: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Gaussian q, k, v and grad_output in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(batch, h, seq_len, head_dim) for h in (heads, kv_heads, kv_heads, heads)]
    return tuple(torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)


def probabilities(q: Tensor, k: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """D^-1 A (B, H, N, N) and the log-sum-exp (B, H, N)."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if is_causal:
        logits = logits.masked_fill(torch.ones(logits.shape[2:]).triu(1).bool(), -math.inf)
    return logits.softmax(3), logits.logsumexp(3)


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """The output (B, H, N, D)."""
    return probabilities(q, k, is_causal)[0] @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)


def gradients(q: Tensor, k: Tensor, v: Tensor, grad_output: Tensor, is_causal: bool) -> tuple[Tensor, ...]:
    """dq, dk and dv by autograd."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    return torch.autograd.grad(attention(leaves[0], leaves[1], leaves[2], is_causal), leaves, grad_output)
