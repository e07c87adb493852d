"""What is called for each pass: the forward pass without a graph, the backward pass on a kept one, or both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hyperbench.measure.accuracy import IncorrectError
from hyperbench.schema import Pass

Inputs = tuple[Tensor, Tensor, Tensor]


def timed_call(
    method: Callable[[Tensor, Tensor, Tensor], Tensor], pass_: Pass, inputs: Inputs, grad_output: Tensor
) -> Callable[[], object]:
    """The call of a pass of a method on q (B, H, N, D), k and v (B, Hkv, N, D), under a fixed grad_output (B, H, N, D).

    Raises whatever the method raises, and IncorrectError if its output has no gradient.
    """
    if pass_ is Pass.FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return method(*inputs)

        return forward
    leaves = as_leaves(inputs)
    if pass_ is Pass.FORWARD_BACKWARD:
        return lambda: gradients(method(*leaves), leaves, grad_output)
    # One graph serves all samples: building it anew would cost a forward pass per sample.
    out = method(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad_output, retain_graph=True)


def as_leaves(inputs: Inputs) -> Inputs:
    """The same values as leaves of a new graph."""
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    return q, k, v


def gradients(out: Tensor, leaves: Inputs, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of q, k and v; None where the output does not depend on one.

    Raises IncorrectError if it depends on none.
    """
    if not out.requires_grad:
        raise IncorrectError("the output has no gradient with respect to q, k and v")
    return torch.autograd.grad(out, leaves, grad_output, allow_unused=True)
