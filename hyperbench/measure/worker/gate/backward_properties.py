"""Properties of an honest backward pass, whatever the method approximates: it answers grad_output, each time anew.

They are looked for on short inputs, and at the point itself where a call is quick.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs, make_grad_output, make_inputs
from hyperbench.measure.methods.method import Method, arranged
from hyperbench.measure.worker.calls import as_leaves, gradients, seeded
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.gate.checks import check_count, copies, counted, if_it_takes_the_shape, once, replaced
from hyperbench.measure.worker.gate.properties import exact_answer, probe_point
from hyperbench.store.schema import Point

Grads = tuple[Tensor, Tensor, Tensor]


class KeptGraphError(IncorrectError):
    """A backward pass that is wrong on a graph that has been run before; on a new one it may be sound."""


def examine_backward(method: Method, point: Point) -> None:
    """Raise IncorrectError on a dishonest backward pass, seen at a short length; a method is examined once.

    Raises KeptGraphError where it is wrong on a graph that has been run before and right on a new one.
    """
    probe = probe_point(point)
    key = (probe.point_id, method.target, method.options, "backward")
    once(key, lambda: if_it_takes_the_shape(lambda: _examine(method, probe)))


def examine_exact_gradients(method: Method, point: Point) -> None:
    """Raise IncorrectError unless the gradients of an exact method are those of exact attention, at a short length.

    Where those at the point's own length are not compared: above the limit of lengths, and in all rounds but the first.
    """
    probe = probe_point(point)

    def examine() -> None:
        inputs, grad_output = _inputs_of(method, probe)
        leaves = as_leaves(inputs)
        raw = gradients(_call(method, probe, leaves), leaves, grad_output)
        reference = exact_answer(probe, inputs, grad_output)
        accuracy.check_exact(accuracy.grad_errors(accuracy.check_grads(raw, inputs), reference), probe.dtype)

    if_it_takes_the_shape(examine)


def check_answers(first: Grads, other: Grads, inputs: Inputs, ignores: frozenset[str]) -> None:
    """Raise IncorrectError if gradients are zero, or the same under two values of grad_output.

    `ignores` are the inputs of q, k and v on which the output openly does not depend. Nothing is said of one position,
    nor of inputs that are the same at all positions: there the gradients of q and k are zero in truth.
    """
    if any(torch.equal(x, x[:, :, :1].expand_as(x)) for x in inputs):
        return
    for name, grad, under_other in zip("qkv", first, other, strict=True):
        if name in ignores:
            continue
        if not bool(grad.any()):
            raise IncorrectError(
                f"the gradient of {name} is zero everywhere, though the output depends on {name}; a method whose "
                f"output does not says so: ignores = ({name!r},)"
            )
        if torch.equal(grad, under_other):
            raise IncorrectError(f"the gradient of {name} stays the same when grad_output changes")


def check_kept(again: tuple[Tensor | None, ...], fresh: Grads, inputs: Inputs, method: Method, dtype: str) -> None:
    """Raise KeptGraphError unless a second backward pass of a graph gives what that of a new graph gives.

    Both under the same grad_output, which was another one at the first pass of the kept graph.
    """
    kept = accuracy.check_grads(again, inputs)
    if not method.deterministic:
        return
    tolerance = accuracy.EXACT_TOLERANCES[dtype]
    for name, x, expected in zip("qkv", kept, fresh, strict=True):
        error = accuracy.relative_frobenius(x, expected)
        if not error <= tolerance:
            raise KeptGraphError(
                f"a second backward pass on one graph, under another grad_output, gives another gradient of {name} "
                f"than a new graph (relative difference {error:.3g}): it goes by what the first one left behind"
            )


def other_grad_output(grad_output: Tensor) -> Tensor:
    """Another grad_output (B, H, N, Dv) of the same kind."""
    return 0.5 * grad_output.flip(2)


def _inputs_of(method: Method, probe: Point) -> tuple[Inputs, Tensor]:
    """The inputs and the grad_output of a point, as the method's layout has them in memory."""
    q, k, v = (arranged(x, method.layout) for x in make_inputs(probe))
    return (q, k, v), arranged(make_grad_output(probe), method.layout)


def _call(method: Method, probe: Point, leaves: Inputs) -> Tensor:
    with seeded(method, probe):
        attend = method.ready(*leaves, is_causal=probe.is_causal, **probe.hyper)
    with seeded(method, probe):
        return attend(*leaves)


def _examine(method: Method, probe: Point) -> None:
    inputs, grad_output = _inputs_of(method, probe)
    leaves = as_leaves(inputs)
    out = _call(method, probe, leaves)
    kept = partial(gradients, out, leaves, grad_output, keep_graph=True)
    raw, first_count = counted(kept, below_autograd=True)
    first = copies(accuracy.check_grads(raw, inputs))
    _, second_count = counted(kept, below_autograd=True)
    other = other_grad_output(grad_output)
    with replaced((grad_output,), (other,)):
        again = kept()
    new = as_leaves(inputs)
    fresh = accuracy.check_grads(gradients(_call(method, probe, new), new, other), inputs)
    check_answers(first, fresh, inputs, method.ignores)
    check_kept(again, fresh, inputs, method, probe.dtype)
    check_count(first_count, second_count, "a second backward pass on one graph", KeptGraphError)
