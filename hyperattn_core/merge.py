"""Merging partial attentions over disjoint sets of keys by their log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets from the attention over each.

    out = (exp(lse_a) out_a + exp(lse_b) out_b) / (exp(lse_a) + exp(lse_b)), computed without overflow.

    Args:
        out_a, out_b: outputs (..., D).
        lse_a, lse_b: their log-sum-exp (...); at least one of the two is finite per row.

    Returns:
        out (..., D) and lse (...).
    """
    lse = torch.logaddexp(lse_a, lse_b)
    out = out_a * (lse_a - lse).exp().unsqueeze(-1) + out_b * (lse_b - lse).exp().unsqueeze(-1)
    return out, lse


def merge_into(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Replace out (..., D) and lse (...) by their merge with other_out and other_lse, which is used as scratch."""
    new_lse = torch.logaddexp(lse, other_lse)
    out.mul_((lse - new_lse).exp_().unsqueeze(-1))
    out.add_(other_out.mul_((other_lse - new_lse).exp_().unsqueeze(-1)))
    lse.copy_(new_lse)
