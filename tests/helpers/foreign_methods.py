"""Methods as other packages have them: another layout, a set-up, draws from the global generators, no causal form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.helpers.odd_methods import exact

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def of_tokens(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Attention of (batch, seq_len, heads, head_dim) tensors, contiguous ones alone."""
    if not all(x.is_contiguous() for x in (q, k, v)):
        raise ValueError("q, k and v must be contiguous")
    swapped = (x.transpose(1, 2) for x in (q, k, v))
    return exact(*swapped, is_causal=is_causal).transpose(1, 2).contiguous()


def of_tokens_and_says_so(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The same."""
    return of_tokens(q, k, v, is_causal=is_causal)


of_tokens_and_says_so.__dict__["layout"] = "bnhd"


def in_another_layout(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Takes one layout and returns another."""
    return exact(q, k, v, is_causal=is_causal).transpose(1, 2)


class Prepared:
    """Attention in a window, with a mask that is made beforehand; the function itself is never called."""

    def __init__(self, *, by_values: bool = False) -> None:
        self._by_values = by_values
        self.prepared: list[tuple[int, ...]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, window: int = 16) -> Tensor:
        raise AssertionError

    def prepare(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, window: int = 16) -> Attend:
        """The callable, with its mask."""
        assert not q.requires_grad
        assert not torch.is_grad_enabled()
        self.prepared.append(tuple(q.shape))
        at = torch.arange(k.shape[2])
        apart = at.unsqueeze(1) - at
        mask = apart.abs() < window
        mask &= (apart >= 0) | (not is_causal)
        order = k.norm(dim=3).mean() if self._by_values else 1.0
        return lambda q, k, v: order * scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


prepared = Prepared()
prepared_by_values = Prepared(by_values=True)


def prepared_badly(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """A set-up that gives nothing to call."""
    raise AssertionError


prepared_badly.__dict__["prepare"] = lambda q, k, v, *, is_causal: q


def draws(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Noise from the global generator."""
    out = exact(q, k, v, is_causal=is_causal)
    return out + 0.1 * torch.randn_like(out)


def draws_by_seed(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int) -> Tensor:
    """Noise of a seed that it is handed."""
    out = exact(q, k, v, is_causal=is_causal)
    return out + 0.1 * torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=out.dtype)


def projected(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Draws in its set-up alone."""
    raise AssertionError


def _prepare_projected(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Attend:
    weights = torch.rand(q.shape[3], dtype=q.dtype)
    return lambda q, k, v: exact(q * weights, k, v, is_causal=is_causal)


projected.__dict__["prepare"] = _prepare_projected


def both_ways_alone(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """No causal form, and openly so."""
    assert not is_causal
    return exact(q, k, v, is_causal=False)


both_ways_alone.__dict__["causal"] = False


def refuses_a_mask(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """No causal form, told when it is called."""
    if is_causal:
        raise NotImplementedError("no causal mask yet")
    return exact(q, k, v, is_causal=False)


def leaks(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The largest of all keys reaches every output, as in a published package."""
    return exact(q, k - k.amax(dim=2, keepdim=True), v, is_causal=is_causal) * (1 + v.mean())


def windowed(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, **hyper: Any) -> Tensor:
    """Any parameter."""
    return exact(q, k, v, is_causal=is_causal)
