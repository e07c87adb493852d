"""Merging partial attentions over disjoint sets of keys by their log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets from the attention over each.

    out = (exp(lse_a) out_a + exp(lse_b) out_b) / (exp(lse_a) + exp(lse_b)), computed without overflow: from the
    difference of the two, so that the weights add up to one however large they are.

    Args:
        out_a, out_b: outputs (..., D).
        lse_a, lse_b: their log-sum-exp (...); at least one of the two is finite per row.

    Returns:
        out (..., D) and lse (...).
    """
    out = out_a * _share(lse_a, lse_b, out_a) + out_b * _share(lse_b, lse_a, out_b)
    return out, torch.logaddexp(lse_a, lse_b)


def merge_into(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> None:
    """Replace out (..., D) and lse (...) by their merge with other_out and other_lse."""
    out.lerp_(other_out, _share(other_lse, lse, out))
    torch.logaddexp(lse, other_lse, out=lse)


def _share(lse: Tensor, other_lse: Tensor, out: Tensor) -> Tensor:
    """The weight (..., 1) of a part in a merge of two: exp(lse) / (exp(lse) + exp(other_lse)), in the dtype of out."""
    return torch.sigmoid(lse - other_lse).to(out.dtype).unsqueeze(-1)
