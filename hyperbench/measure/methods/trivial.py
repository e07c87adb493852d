"""Answers that need little or no attention: context for every error, and floors for every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Function = TypeVar("Function", bound=Callable[..., Tensor])


def ignoring(*names: str) -> Callable[[Function], Function]:
    """Mark a method whose output does not depend on these inputs, and is not meant to."""

    def mark(function: Function) -> Function:
        function.__dict__["ignores"] = names
        return function

    return mark


@ignoring("q", "k", "v")
def zero(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Zeros (B, H, N, Dv), differentiable so that its gradients are zeros too."""
    return q.new_zeros(*q.shape[:3], v.shape[3]) + 0.0 * (q.sum() + k.sum() + v.sum())


@ignoring("q", "k")
def mean_v(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The mean of the values that a query may see (B, H, N, Dv); the gradients of q and k are zeros."""
    shared = repeat_heads(v, q.shape[1])
    if is_causal:
        wide = torch.promote_types(v.dtype, torch.float32)
        counts = torch.arange(1, v.shape[2] + 1, device=v.device, dtype=wide).unsqueeze(1)
        mean = (shared.to(wide).cumsum(dim=2) / counts).to(v.dtype)
    else:
        mean = shared.mean(dim=2, keepdim=True).expand(*q.shape[:3], v.shape[3])
    return mean + 0.0 * (q.sum() + k.sum())


def uniform(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, sample_size: int, seed: int) -> Tensor:
    """Attention over the same 2 m uniformly drawn keys for all queries (B, H, N, Dv), without any hashing.

    Under a causal mask a query attends to those of the drawn keys that it may see; the key at position 0 is always
    among them, so that no query is left with none.
    """
    num_keys = k.shape[2]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randperm(num_keys, generator=generator, device="cpu")[: 2 * sample_size]
    if is_causal:
        drawn = torch.cat([drawn.new_zeros(1), drawn]).unique()
    index = drawn.to(k.device)
    mask = None
    if is_causal:
        mask = index.unsqueeze(0) <= torch.arange(q.shape[2], device=q.device).unsqueeze(1)
    heads = q.shape[1]
    keys, values = repeat_heads(k[:, :, index], heads), repeat_heads(v[:, :, index], heads)
    return scaled_dot_product_attention(q, keys, values, attn_mask=mask)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Each of the kv heads of x (B, Hkv, N, D) repeated for its group of query heads: (B, H, N, D)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
