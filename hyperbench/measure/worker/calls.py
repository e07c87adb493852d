"""Calls of each pass: the forward pass without a graph, the backward pass on a kept one, or both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.store.schema import Pass


def timed_call(
    method: Callable[[Tensor, Tensor, Tensor], Tensor],
    pass_: Pass,
    inputs: Inputs,
    grad_output: Tensor,
    *,
    accumulate: bool = False,
) -> Callable[[], object]:
    """The call of a pass of a method on q (B, H, N, D), k and v (B, Hkv, N, D), under a fixed grad_output (B, H, N, D).

    With `accumulate` gradients are added up in .grad, as the paper's authors time them.
    Raises whatever the method raises, and IncorrectError if its output has no gradient.
    """
    if pass_ is Pass.FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return method(*inputs)

        return forward
    leaves = as_leaves(inputs)
    if accumulate:
        return _accumulating(method, pass_, leaves, grad_output)
    if pass_ is Pass.FORWARD_BACKWARD:
        return lambda: gradients(method(*leaves), leaves, grad_output)
    # One graph serves all samples: building it anew would cost a forward pass per sample.
    out = method(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad_output, retain_graph=True)


def as_leaves(inputs: Inputs) -> Inputs:
    """The same values as leaves of a new graph."""
    q, k, v = (x.detach().requires_grad_() for x in inputs)
    return q, k, v


def rotated(inputs: Inputs, count: int) -> list[Inputs]:
    """The inputs and copies of them with other values, `count` in all: what is remembered of one helps with no other.

    A copy has the same entries along the sequence (dimension 2), shifted, so that it is of the same kind; under one
    permutation of all positions attention costs the same. There are no more copies than positions.
    """
    seq_len = inputs[0].shape[2]
    count = max(1, min(count, seq_len))
    shifts = [index * seq_len // count for index in range(1, count)]
    copies = [(q.roll(shift, 2), k.roll(shift, 2), v.roll(shift, 2)) for q, k, v in [inputs] for shift in shifts]
    return [inputs, *copies]


def number_of_copies(
    inputs: Inputs, wanted: int, most_bytes: int, most_calls: float = 0.0, kept_bytes: int | None = None
) -> int:
    """Number of sets of inputs used in turn: as wanted, but no more than fit into so many bytes, one at the least.

    With `kept_bytes` a set also keeps what a forward pass left (so much, at least twice its inputs): the graph for a
    backward pass, or the results of stages. It costs a forward pass to make: there are at most one and `most_calls`.
    """
    size = sum(x.numel() * x.element_size() for x in inputs)
    if kept_bytes is not None:
        wanted = min(wanted, 1 + int(min(most_calls, wanted)))
        size += max(kept_bytes, 2 * size)
    return max(1, min(wanted, most_bytes // size))


def in_turn(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """A call that makes one of the calls after the other, again and again."""
    if len(calls) == 1:
        return calls[0]
    following = itertools.cycle(calls)
    return lambda: next(following)()


def _accumulating(
    method: Callable[[Tensor, Tensor, Tensor], Tensor], pass_: Pass, leaves: Inputs, grad_output: Tensor
) -> Callable[[], object]:
    if pass_ is Pass.FORWARD_BACKWARD:
        return lambda: method(*leaves).backward(grad_output)
    out = method(*leaves)
    return lambda: out.backward(grad_output, retain_graph=True)


def gradients(
    out: Tensor, leaves: Inputs, grad_output: Tensor, *, keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of q, k and v; None where the output does not depend on one.

    Raises IncorrectError if it depends on none.
    """
    if not out.requires_grad:
        raise IncorrectError("the output has no gradient with respect to q, k and v")
    return torch.autograd.grad(out, leaves, grad_output, retain_graph=keep_graph, allow_unused=True)
