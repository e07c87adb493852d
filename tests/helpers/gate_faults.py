"""Methods that are honest where the short examination looks, or in their forward pass alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.helpers.odd_methods import exact

#: Up to this length they do as they should; tests make it the least length of the short examination.
HONEST = 128


def zeros_when_long(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """A kernel that is not launched for more blocks than it knows."""
    out = exact(q, k, v, is_causal=is_causal)
    return 0.0 * out if q.shape[2] > HONEST else out


class _RemembersWhenLong:
    """Keeps the answer for the place where long queries lie."""

    def __init__(self) -> None:
        self._kept: dict[Any, Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        if q.shape[2] <= HONEST or torch.is_grad_enabled():
            return exact(q, k, v, is_causal=is_causal)
        key = q.data_ptr(), k.data_ptr(), v.data_ptr()
        if key not in self._kept:
            self._kept[key] = exact(q, k, v, is_causal=is_causal)
        return self._kept[key]


remembers_when_long = _RemembersWhenLong()


def leaks_when_long(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The mean of all values, those to come as well, is mixed in where the sequence is long."""
    out = exact(q, k, v, is_causal=is_causal)
    return out + 1e-6 * v.mean(dim=2, keepdim=True) if q.shape[2] > HONEST else out


class _WithBackward(torch.autograd.Function):
    """Attention whose gradients are made by a function of how to make them, of grad_output, and of what is kept."""

    @staticmethod
    def forward(ctx: Any, rule: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
        ctx.rule, ctx.is_causal, ctx.kept = rule, is_causal, {}
        ctx.save_for_backward(q, k, v)
        return exact(q, k, v, is_causal=is_causal)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        def true(under: Tensor) -> tuple[Tensor, ...]:
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            with torch.enable_grad():
                return torch.autograd.grad(exact(*leaves, is_causal=ctx.is_causal), leaves, under)

        return (None, *ctx.rule(true, grad, ctx.kept), None)


def _method(rule: Callable[..., Any]) -> Callable[..., Tensor]:
    def method(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        out: Tensor = _WithBackward.apply(rule, q, k, v, is_causal)
        return out

    return method


def _keep(key: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def rule(true: Callable[..., Any], grad: Tensor, kept: dict[Any, Any]) -> Any:
        if key(grad) not in kept:
            kept[key(grad)] = true(grad)
        return kept[key(grad)]

    return rule


class _Spent:
    """Right for the first few times that it is asked for gradients: longer than any check goes on."""

    def __init__(self, runs: int) -> None:
        self._left = runs

    def __call__(self, true: Callable[..., Any], grad: Tensor, kept: dict[Any, Any]) -> Any:
        self._left -= 1
        return tuple((1.0 if self._left >= 0 else 0.5) * x for x in true(grad))


def _when_long(rule: Callable[..., Any]) -> Callable[..., Any]:
    return lambda true, grad, kept: rule(true, grad, kept) if grad.shape[2] > HONEST else true(grad)


honest_backward = _method(lambda true, grad, kept: true(grad))
keeps_its_gradients = _method(_keep(lambda grad: 0))
keeps_by_place = _method(_keep(lambda grad: grad.data_ptr()))
keeps_by_content = _method(_keep(lambda grad: grad.numpy().tobytes()))
keeps_when_long = _method(_when_long(_keep(lambda grad: 0)))
spends_its_graph_later = _method(_Spent(runs=7))
zero_gradients = _method(lambda true, grad, kept: [0.0 * x for x in true(grad)])
zero_gradients_when_long = _method(_when_long(lambda true, grad, kept: [0.0 * x for x in true(grad)]))
fixed_gradients = _method(lambda true, grad, kept: true(torch.ones_like(grad)))


def zero_gradient_of_q(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The queries are detached, and a zero times them stands in for their gradient."""
    return exact(q.detach(), k, v, is_causal=is_causal) + 0.0 * q.sum()


def needs_no_queries(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The mean of all values, and openly so."""
    return v.mean(dim=2, keepdim=True).expand_as(q) + 0.0 * (q.sum() + k.sum())


needs_no_queries.__dict__["ignores"] = ("q", "k")
