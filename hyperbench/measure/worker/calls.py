"""Calls of each pass: the forward pass without a graph, the backward pass on a kept one, or both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs
from hyperbench.measure.methods.method import Method
from hyperbench.measure.worker.clock import Clock
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.store.schema import Pass, Point

Result = TypeVar("Result")


@contextmanager
def seeded(method: Method, point: Point) -> Iterator[None]:
    """Make the draws of a method that takes no seed those of the point's: it draws from PyTorch's global generators.

    These are seeded before, and are afterwards what they were.
    """
    if method.takes_seed:
        yield
        return
    generators = [torch.default_generator]
    if point.device == "cuda":
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        # Not torch.manual_seed, which also notes the seed for devices that nobody uses.
        generator.manual_seed(point.seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class SeedingClock:
    """A clock that has the draws of a method seeded before each call, outside its time; the rest is the clock's."""

    def __init__(self, clock: Clock, method: Method, point: Point) -> None:
        self._clock = clock
        self._method = method
        self._point = point

    def time_ms(self, call: Callable[[], object], *, is_load: bool = False) -> float:
        """The clock's time of a call."""
        with seeded(self._method, self._point):
            return self._clock.time_ms(call, is_load=is_load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


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
        return without_gradient(lambda: method(*inputs))
    leaves = as_leaves(inputs)

    def backward(out: Tensor, *, keep_graph: bool = False) -> object:
        if accumulate:
            return out.backward(grad_output, retain_graph=keep_graph)
        return gradients(out, leaves, grad_output, keep_graph=keep_graph)

    if pass_ is Pass.FORWARD_BACKWARD:
        return lambda: backward(method(*leaves))
    # One graph serves all samples: building it anew would cost a forward pass per sample.
    out = method(*leaves)
    return lambda: backward(out, keep_graph=True)


def without_gradient(call: Callable[[], Result]) -> Callable[[], Result]:
    """A call that is made without a graph."""

    def run() -> Result:
        with torch.no_grad():
            return call()

    return run


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
    q, k, v = inputs
    return [inputs, *((_rolled(q, shift), _rolled(k, shift), _rolled(v, shift)) for shift in shifts)]


def _rolled(x: Tensor, shift: int) -> Tensor:
    """x (B, H, N, D) shifted along the sequence, in memory as x is."""
    rolled = x.roll(shift, 2)
    return rolled if x.is_contiguous() else torch.empty_like(x).copy_(rolled)


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


def gradients(
    out: Tensor, leaves: Inputs, grad_output: Tensor, *, keep_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """The gradients of q, k and v; None where the output does not depend on one.

    Raises IncorrectError if it depends on none.
    """
    if not out.requires_grad:
        raise IncorrectError("the output has no gradient with respect to q, k and v")
    return torch.autograd.grad(out, leaves, grad_output, retain_graph=keep_graph, allow_unused=True)
