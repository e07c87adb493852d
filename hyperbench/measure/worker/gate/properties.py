"""Properties that any honest method has, whatever it approximates; they are checked on short inputs of their own.

A length suffices at which the method does all that it does at longer ones: twice its largest parameter. A method that
was examined once in a process is not examined again for its longer points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyperbench.measure.inputs import make_grad_output, make_inputs
from hyperbench.measure.methods.method import Method
from hyperbench.measure.worker.calls import Inputs, as_leaves, gradients
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from hyperbench.store.schema import Point

_MIN_PROBE_LEN = 1024
_MAX_PROBE_SIDE = 2
#: How much larger keys and values after a position are made to tempt a mask; float16 ends at 65,504.
_LARGE = {"float16": 16.0}
_LARGE_OTHERWISE = 1000.0
MEMOISED_IN_PLACE = (
    "a memoised result: after q, k and v were changed in place, the output is not that of the same values in other "
    "storage"
)
NOT_CAUSAL = "not causal: outputs up to position"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an examination found: why the method is refused ("" where it is not), and whether it is causal in q.

    `causal_in_q` is None without a causal mask, and where there is no position that has others after it.
    """

    refusal: str = ""
    causal_in_q: bool | None = None


_examined: dict[tuple[str, str, bool], Verdict] = {}


def examine(method: Method, point: Point, exact: bool) -> bool | None:
    """Whether outputs depend on no later query (None without a causal mask).

    Raises IncorrectError, saying what is wrong, if the method changes its inputs, ignores one that it does not say it
    ignores, answers from memory, gives another output for the same inputs, sees keys or values after a position, or
    claims to be exact and is not.
    """
    short = probe_point(point)
    key = (short.point_id, method.target, exact)
    if key not in _examined:
        _examined[key] = _first_verdict(method, short, point, exact)
    verdict = _examined[key]
    if verdict.refusal:
        raise IncorrectError(verdict.refusal)
    return verdict.causal_in_q


def examine_exact_gradients(method: Method, point: Point) -> None:
    """Raise IncorrectError unless the gradients of an exact method are those of exact attention, at a short length.

    Where those at the point's own length are not compared: above the limit of lengths, and in all rounds but the first.
    """
    probe = probe_point(point)
    inputs, grad_output = make_inputs(probe), make_grad_output(probe)
    leaves = as_leaves(inputs)
    try:
        raw = gradients(method.function(*leaves, is_causal=probe.is_causal, **probe.hyper), leaves, grad_output)
    except IncorrectError:
        raise
    except Exception:  # it takes no such shape
        return
    grads = accuracy.check_grads(raw, inputs)
    reference = _exact_answer(probe, inputs, grad_output)
    accuracy.check_exact(accuracy.grad_errors(grads, reference), probe.dtype)


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


def _first_verdict(method: Method, short: Point, point: Point, exact: bool) -> Verdict:
    whole = _gaussian(point, point.seq_len, point.batch, point.kv_heads)
    try:
        return _Examination(method, short, exact).verdict()
    except Exception:
        # It may not take so short a sequence or so few heads; then its own shape has to do.
        if short == whole:
            raise
    # Exact attention in float64 would take too long there.
    return _Examination(method, whole, exact, is_compared=False).verdict()


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

    def verdict(self) -> Verdict:
        """What is found; an IncorrectError of the checks becomes the refusal."""
        try:
            base = self._check_memory()
            if self._is_compared:
                self._check_exact(base)
            if self._probe.seq_len > 1:
                # A single key has all the weight, whatever it and the query are.
                self._check_dependence(base)
            if not self._probe.is_causal or self._probe.seq_len < 2:
                return Verdict()
            self._check_causality(base)
            return Verdict(causal_in_q=self._is_causal_in_q(base))
        except IncorrectError as error:
            return Verdict(refusal=str(error))

    def _check_memory(self) -> Tensor:
        """The output on the inputs, from a method that answers anew when values change where they lie."""
        held = _copies(self._inputs)
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
        moved = self._moved(got, self._ask(*_copies(self._others)))
        if moved is not None:
            raise IncorrectError(f"{MEMOISED_IN_PLACE} (relative difference {moved:.3g})")
        if first is not None and second is not None and second < first:
            raise IncorrectError(
                f"a memoised result: a second call on the same values makes {second} of the {first} calls of "
                "PyTorch that the first makes"
            )
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
        """Whether these inputs, changed after t alone, change an output up to t; that of an exact kernel may round."""
        out = self._ask(q, k, v, finite=False)[:, :, : t + 1]
        before = base[:, :, : t + 1]
        if self._exact or not self._method.deterministic:
            return not accuracy.relative_frobenius(out, before) <= self._tolerance
        return not torch.equal(out, before)

    def _moved(self, one: Tensor, other: Tensor) -> float | None:
        """By how much two outputs differ, or None; on a GPU, or without determinism, rounding is no difference."""
        if torch.equal(one, other):
            return None
        error = accuracy.relative_frobenius(other, one)
        to_the_bit = self._method.deterministic and one.device.type == "cpu"
        return error if to_the_bit or not error <= self._tolerance else None

    def _counted(self, inputs: Inputs) -> tuple[Tensor, int | None]:
        """The output and the number of calls of PyTorch behind it; None where they cannot be seen."""
        seen = _Operations()
        try:
            return self._ask(*inputs, during=seen), seen.count
        except IncorrectError:
            raise
        except Exception:  # of code that nothing may look into
            return self._ask(*inputs), None

    def _ask(
        self, q: Tensor, k: Tensor, v: Tensor, finite: bool = True, during: AbstractContextManager[Any] | None = None
    ) -> Tensor:
        """The method's output on these inputs, in storage of its own."""
        before = _copies((q, k, v))
        with torch.no_grad(), during or nullcontext():
            out: Any = self._method.function(q, k, v, is_causal=self._probe.is_causal, **self._probe.hyper)
        changed = [n for n, x, y in zip("qkv", (q, k, v), before, strict=True) if not torch.equal(x, y)]
        if changed:
            raise IncorrectError(changed_in_place(changed))
        return accuracy.check_output(out, q, v, finite=finite).clone()


def changed_in_place(names: list[str]) -> str:
    """The refusal of a method after whose call these inputs hold other values."""
    return f"the method changed {', '.join(names)} in place; it must leave its inputs as they are"


def _exact_answer(probe: Point, inputs: Inputs, grad_output: Tensor | None) -> Reference:
    return make_reference(
        *inputs, grad_output, is_causal=probe.is_causal, num_rows=probe.seq_len, dtype=torch.float64,
        operator_norm=False, seed=probe.seed,
    )  # fmt: skip


class _Operations(TorchFunctionMode):
    """Counts what is asked of PyTorch."""

    count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _copies(inputs: Inputs) -> Inputs:
    q, k, v = (x.clone() for x in inputs)
    return q, k, v
