"""Properties that any honest method has, whatever it approximates; they are checked on short inputs of their own.

A length suffices at which the method does all that it does at longer ones: twice its largest parameter. A method that
was examined once in a process is not examined again for its longer points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs, make_grad_output, make_inputs
from hyperbench.measure.methods.method import Method
from hyperbench.measure.worker.calls import as_leaves, gradients
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from hyperbench.measure.worker.gate.checks import (
    MEMOISED_IN_PLACE,
    NOT_CAUSAL,
    changed_in_place,
    check_count,
    copies,
    counted,
    difference,
    if_it_takes_the_shape,
    once,
)
from hyperbench.store.schema import Point

_MIN_PROBE_LEN = 1024
_MAX_PROBE_SIDE = 2
#: How much larger keys and values after a position are made to tempt a mask; float16 ends at 65,504.
_LARGE = {"float16": 16.0}
_LARGE_OTHERWISE = 1000.0


def examine(method: Method, point: Point, exact: bool) -> bool | None:
    """Examine a method at a short length; True if outputs depend on no later query (None without a causal mask).

    Raises IncorrectError, saying what is wrong, if the method changes its inputs, ignores one that it does not say it
    ignores, answers from memory, gives another output for the same inputs, sees keys or values after a position, or
    claims to be exact and is not.
    """
    short = probe_point(point)
    return once((short.point_id, method.target, exact), lambda: _first_answer(method, short, point, exact))


def examine_exact_gradients(method: Method, point: Point) -> None:
    """Raise IncorrectError unless the gradients of an exact method are those of exact attention, at a short length.

    Where those at the point's own length are not compared: above the limit of lengths, and in all rounds but the first.
    """
    probe = probe_point(point)

    def examine() -> None:
        inputs, grad_output = make_inputs(probe), make_grad_output(probe)
        leaves = as_leaves(inputs)
        raw = gradients(method.function(*leaves, is_causal=probe.is_causal, **probe.hyper), leaves, grad_output)
        reference = _exact_answer(probe, inputs, grad_output)
        accuracy.check_exact(accuracy.grad_errors(accuracy.check_grads(raw, inputs), reference), probe.dtype)

    if_it_takes_the_shape(examine)


def probe_point(point: Point) -> Point:
    """The point with Gaussian inputs at which its method is examined: halved in length while it is long enough.

    Long enough is 1,024 and twice the largest parameter; at most two entries of the batch and two kv heads are kept.
    """
    sizes = [n for name, n in point.hyper.items() if isinstance(n, int) and name != "seed"]
    enough = max(_MIN_PROBE_LEN, 2 * max(sizes, default=0))
    seq_len = point.seq_len
    while seq_len % 2 == 0 and seq_len // 2 >= enough:
        seq_len //= 2
    return _gaussian(point, seq_len, min(point.batch, _MAX_PROBE_SIDE), min(point.kv_heads, _MAX_PROBE_SIDE))


def _gaussian(point: Point, seq_len: int, batch: int, kv_heads: int) -> Point:
    heads = kv_heads * (point.heads // point.kv_heads)
    return dataclasses.replace(
        point, seq_len=seq_len, batch=batch, heads=heads, kv_heads=kv_heads, input="gaussian", input_params={}
    )


def _first_answer(method: Method, short: Point, point: Point, exact: bool) -> bool | None:
    whole = _gaussian(point, point.seq_len, point.batch, point.kv_heads)
    try:
        return _Examination(method, short, exact).run()
    except IncorrectError:
        raise
    except Exception:
        # It may not take so short a sequence or so few heads; then its own shape has to do.
        if short == whole:
            raise
    # Exact attention in float64 would take too long there.
    return _Examination(method, whole, exact, is_compared=False).run()


class _Examination:
    """One method on two draws of inputs of one shape: every call is watched for changes of what it was given."""

    def __init__(self, method: Method, probe: Point, exact: bool, is_compared: bool = True) -> None:
        self._method = method
        self._probe = probe
        self._exact = exact
        self._is_compared = exact and is_compared
        self._inputs: Inputs = make_inputs(probe)
        self._others: Inputs = make_inputs(dataclasses.replace(probe, seed=probe.seed ^ 1))
        self._tolerance = accuracy.EXACT_TOLERANCES[probe.dtype]

    def run(self) -> bool | None:
        """Look for every property; True if outputs depend on no later query, None without a mask or another position.

        Raises IncorrectError on the first that is missing.
        """
        base = self._check_memory()
        if self._is_compared:
            self._check_exact(base)
        if self._probe.seq_len < 2:
            # A single key has all the weight, whatever it and the query are.
            return None
        self._check_dependence(base)
        if not self._probe.is_causal:
            return None
        self._check_causality(base)
        return self._is_causal_in_q(base)

    def _check_memory(self) -> Tensor:
        """The output on the inputs, from a method that answers anew when values change where they lie."""
        held = copies(self._inputs)
        base = self._ask(*held)
        for x, y in zip(held, self._others, strict=True):
            x.copy_(y)
        got, first = self._counted(held)
        again, second = self._counted(held)
        moved = self._moved(got, again)
        if moved is not None:
            raise IncorrectError(
                f"two calls on the same inputs give different outputs (relative difference {moved:.3g}); a method that "
                "is not deterministic says so: deterministic = False"
            )
        moved = self._moved(got, self._ask(*copies(self._others)))
        if moved is not None:
            raise IncorrectError(f"{MEMOISED_IN_PLACE} (relative difference {moved:.3g})")
        check_count(first, second, "a second call on the same values", IncorrectError)
        return base

    def _check_exact(self, base: Tensor) -> None:
        reference = _exact_answer(self._probe, self._inputs, None)
        accuracy.check_exact(accuracy.output_errors(base, reference), self._probe.dtype)
        accuracy.check_rows(base, reference, self._probe.dtype)

    def _check_dependence(self, base: Tensor) -> None:
        """Another q, k or v gives another output, and what the last query gets depends on other positions than its."""
        for index, name in ((2, "v"), (0, "q"), (1, "k")):
            if name in self._method.ignores:
                continue
            q, k, v = (y if i == index else x for i, (x, y) in enumerate(zip(self._inputs, self._others, strict=True)))
            if name == "v":
                v = torch.cat([v[:, :, :-1], self._inputs[2][:, :, -1:]], dim=2)
            out = self._ask(q, k, v)
            if self._moved(base, out) is None:
                raise IncorrectError(
                    f"the output stays the same when {name} changes; a method that ignores it says so: ignores = "
                    f"({name!r},)"
                )
            if name == "v" and self._moved(base[:, :, -1:], out[:, :, -1:]) is None:
                raise IncorrectError(
                    "the output of the last position stays the same when the values of all others change: the axes "
                    "must be (batch, heads, seq_len, head_dim)"
                )

    def _check_causality(self, base: Tensor) -> None:
        """No key and no value after a position reaches an output up to it, not even a large one."""
        large = _LARGE.get(self._probe.dtype, _LARGE_OTHERWISE)
        early, *later = self._positions()
        for t, scale in [(early, 1.0), *((t, large) for t in (early, *later))]:
            _, k, v = (self._after(t, i, scale) for i in range(3))
            q, old_k, old_v = self._inputs
            if not self._reaches(base, t, q, k, v):
                continue
            both = {"keys": (k, old_v), "values": (old_k, v)}
            kinds = [name for name, changed in both.items() if self._reaches(base, t, q, *changed)]
            raise IncorrectError(f"{NOT_CAUSAL} {t} change with the {' and the '.join(kinds or both)} after it")

    def _is_causal_in_q(self, base: Tensor) -> bool:
        _, k, v = self._inputs
        return not any(self._reaches(base, t, self._after(t, 0, 1.0), k, v) for t in self._positions())

    def _positions(self) -> list[int]:
        """Positions that have others after them, in order; none is a round number of blocks."""
        n = self._probe.seq_len
        return sorted({min(n // 3, n - 2), min(3 * n // 4 + 1, n - 2), n - 2})

    def _after(self, t: int, index: int, scale: float) -> Tensor:
        x, y = self._inputs[index], self._others[index]
        return torch.cat([x[:, :, : t + 1], scale * y[:, :, t + 1 :]], dim=2)

    def _reaches(self, base: Tensor, t: int, q: Tensor, k: Tensor, v: Tensor) -> bool:
        """True if these inputs, changed after t alone, change an output up to t; that of an exact kernel may round."""
        out = self._ask(q, k, v, finite=False)[:, :, : t + 1]
        before = base[:, :, : t + 1]
        if self._exact or not self._method.deterministic:
            return not accuracy.relative_frobenius(out, before) <= self._tolerance
        return not torch.equal(out, before)

    def _moved(self, one: Tensor, other: Tensor) -> float | None:
        return difference(one, other, self._method, self._probe.dtype)

    def _counted(self, inputs: Inputs) -> tuple[Tensor, int | None]:
        """The method's output, and the number of calls of PyTorch behind it; None where they cannot be seen."""
        counts: list[int | None] = []

        def call(*tensors: Tensor) -> Any:
            out, count = counted(lambda: self._call(*tensors))
            counts.append(count)
            return out

        return self._ask(*inputs, call=call), counts[0]

    def _call(self, *tensors: Tensor) -> Any:
        with torch.no_grad():
            return self._method.function(*tensors, is_causal=self._probe.is_causal, **self._probe.hyper)

    def _ask(
        self, q: Tensor, k: Tensor, v: Tensor, *, finite: bool = True, call: Callable[..., Any] | None = None
    ) -> Tensor:
        """The method's output on these inputs, in storage of its own."""
        before = copies((q, k, v))
        out = (call or self._call)(q, k, v)
        changed = [n for n, x, y in zip("qkv", (q, k, v), before, strict=True) if not torch.equal(x, y)]
        if changed:
            raise IncorrectError(changed_in_place(changed))
        return accuracy.check_output(out, q, v, finite=finite).clone()


def _exact_answer(probe: Point, inputs: Inputs, grad_output: Tensor | None) -> Reference:
    return make_reference(
        inputs, grad_output, is_causal=probe.is_causal, num_rows=probe.seq_len, dtype=torch.float64,
        operator_norm=False, seed=probe.seed,
    )  # fmt: skip
