"""Properties that any honest method has, whatever it approximates; they are checked on short inputs of their own.

A length suffices at which the method does all that it does at longer ones: twice its largest parameter. A method that
was examined once in a process is not examined again for its longer points. What a method does at long inputs alone is
seen at the very point that is timed: by two calls, none in float64.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs, make_inputs
from hyperbench.measure.methods.method import Attend, Method, arranged
from hyperbench.measure.worker.calls import seeded
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from hyperbench.measure.worker.gate.checks import (
    NOT_CAUSAL,
    changed_in_place,
    check_count,
    copies,
    counted,
    difference,
    how_to_leak,
    once,
    replaced,
    stale,
)
from hyperbench.measure.worker.subject import Subject
from hyperbench.store.schema import Point

_MIN_PROBE_LEN = 1024
_MAX_PROBE_SIDE = 2
#: The axes of a layout, in words.
_AXES = {"bhnd": "(batch, heads, seq_len, head_dim)", "bnhd": "(batch, seq_len, heads, head_dim), as layout=bnhd says"}
#: How much larger keys and values after a position are made to tempt a mask; float16 ends at 65,504.
_LARGE = {"float16": 16.0}
_LARGE_OTHERWISE = 1000.0


class Causality(NamedTuple):
    """Dependence of outputs under a causal mask on what is after them.

    `in_q`: on no later query (None without a mask, or without other positions). `leak` says which keys and values
    reach an output of a method that may leak; "" where none does.
    """

    in_q: bool | None
    leak: str


def examine(method: Method, point: Point, exact: bool) -> Causality:
    """Examine a method at a short length; a method is examined once.

    Raises IncorrectError, saying what is wrong, if the method changes its inputs, ignores one that it does not say it
    ignores, answers from memory, gives another output for the same inputs, sees keys or values after a position and is
    not allowed to, or claims to be exact and is not.
    """
    short = probe_point(point)
    key = (short.point_id, method.target, method.options, exact)
    return once(key, lambda: _first_answer(method, short, point, exact))


def examine_at_point(subject: Subject, attend: Attend, inputs: Inputs, base: Tensor) -> None:
    """Change the inputs where they lie, behind one position, and look at what the method makes of it.

    `attend` was made ready for the inputs as they are, and `base` is its output (B, H, N, Dv); afterwards they are that
    again. Raises IncorrectError if the output is not that of the same values elsewhere, if that of the last position
    takes no notice of other values, or if, under a causal mask, one up to the position does and must not.
    """
    method, point = subject.method, subject.point
    # No round number of blocks for most of their sizes.
    t = point.seq_len // 3
    changed = _changed(inputs, t + 1 if point.is_causal else 0, point.is_causal and not subject.causal_in_q)
    with torch.no_grad(), replaced(inputs, changed):
        with subject.seeded():
            out = attend(*inputs)
        got = accuracy.check_output(out, inputs[0], inputs[2], finite=not point.is_causal).clone()
        elsewhere = subject.call(*copies(inputs))
    where = f"; so at seq_len={point.seq_len}, whatever it does at shorter ones"
    moved = difference(elsewhere, got, method, point.dtype)
    if moved is not None:
        raise IncorrectError(f"{stale(method)} (relative difference {moved:.3g}){where}")
    last = got[:, :, -1], base[:, :, -1]
    if "v" not in method.ignores and not torch.equal(inputs[2], changed[2]) and torch.equal(*last):
        raise IncorrectError(
            f"the output of the last position stays the same when the values of other positions change{where}"
        )
    if point.is_causal and _reaches(base, got, t, subject.item.exact or not method.deterministic, point.dtype):
        leak = f"{NOT_CAUSAL} {t} change with the keys or the values after it"
        if not method.options.allow_leak:
            raise IncorrectError(f"{leak}{where}{how_to_leak(point)}")
        subject.leak = subject.leak or leak


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


def exact_answer(probe: Point, inputs: Inputs, grad_output: Tensor | None) -> Reference:
    """Exact attention at all positions, in float64."""
    return make_reference(
        inputs, grad_output, is_causal=probe.is_causal, num_rows=probe.seq_len, dtype=torch.float64,
        operator_norm=False, seed=probe.seed,
    )  # fmt: skip


def _changed(inputs: Inputs, start: int, keep_queries: bool) -> Inputs:
    """The inputs with others at all positions from `start` on but the last.

    Keys are others, in another order of their sizes; values have the other sign.
    """
    q, k, v = copies(inputs)
    part = slice(start, q.shape[2] - 1)
    if not keep_queries:
        q[:, :, part] = q[:, :, part].roll(1, 2)
    k[:, :, part] = -k[:, :, part].roll(1, 2)
    v[:, :, part] = -v[:, :, part]
    return q, k, v


def _reaches(base: Tensor, out: Tensor, t: int, rounds: bool, dtype: str) -> bool:
    """True if an output up to position t is another than in `base`, by more than rounding where the method rounds."""
    before, after = base[:, :, : t + 1], out[:, :, : t + 1]
    if rounds:
        return not accuracy.relative_frobenius(after, before) <= accuracy.EXACT_TOLERANCES[dtype]
    return not torch.equal(after, before)


def _gaussian(point: Point, seq_len: int, batch: int, kv_heads: int) -> Point:
    heads = kv_heads * (point.heads // point.kv_heads)
    return dataclasses.replace(
        point, seq_len=seq_len, batch=batch, heads=heads, kv_heads=kv_heads, input="gaussian", input_params={}
    )


def _first_answer(method: Method, short: Point, point: Point, exact: bool) -> Causality:
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
        self._inputs = self._drawn(probe.seed)
        self._others = self._drawn(probe.seed ^ 1)

    def run(self) -> Causality:
        """The answer of `examine`."""
        base = self._check_memory()
        if self._is_compared:
            reference = exact_answer(self._probe, self._inputs, None)
            accuracy.check_exact(accuracy.output_errors(base, reference), self._probe.dtype)
            accuracy.check_rows(base, reference, self._probe.dtype)
        if self._probe.seq_len < 2:
            # A single key has all the weight, whatever it and the query are.
            return Causality(None, "")
        self._check_dependence(base)
        if not self._probe.is_causal:
            return Causality(None, "")
        leak = self._leak(base)
        if leak and not self._method.options.allow_leak:
            raise IncorrectError(f"{leak}{how_to_leak(self._probe)}")
        return Causality(self._is_causal_in_q(base), leak)

    def _drawn(self, seed: int) -> Inputs:
        q, k, v = make_inputs(dataclasses.replace(self._probe, seed=seed))
        return arranged(q, self._method.layout), arranged(k, self._method.layout), arranged(v, self._method.layout)

    def _check_memory(self) -> Tensor:
        """The output on the inputs, from a method that answers anew when values change where they lie."""
        held = copies(self._inputs)
        attend = self._ready(held)
        base = self._checked(self._call(attend, held), held, copies(self._inputs))
        for x, y in zip(held, self._others, strict=True):
            x.copy_(y)
        got, first = self._counted(attend, held)
        again, second = self._counted(attend, held)
        moved = self._moved(got, again)
        if moved is not None:
            raise IncorrectError(
                f"two calls on the same inputs give different outputs (relative difference {moved:.3g}); a method that "
                "is not deterministic says so: deterministic = False"
            )
        moved = self._moved(got, self._ask(*copies(self._others)))
        if moved is not None:
            raise IncorrectError(f"{stale(self._method)} (relative difference {moved:.3g})")
        check_count(first, second, "a second call on the same values", IncorrectError)
        return base

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
                    f"must be {_AXES[self._method.layout]}"
                )

    def _leak(self, base: Tensor) -> str:
        """The keys and values after a position that reach an output up to it, if only large ones; "" if none does."""
        large = _LARGE.get(self._probe.dtype, _LARGE_OTHERWISE)
        early, *later = self._positions()
        for t, scale in [(early, 1.0), *((t, large) for t in (early, *later))]:
            _, k, v = (self._after(t, i, scale) for i in range(3))
            q, old_k, old_v = self._inputs
            if not self._reaches(base, t, q, k, v):
                continue
            both = {"keys": (k, old_v), "values": (old_k, v)}
            kinds = [name for name, changed in both.items() if self._reaches(base, t, q, *changed)]
            return f"{NOT_CAUSAL} {t} change with the {' and the '.join(kinds or both)} after it"
        return ""

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
        out = self._ask(q, k, v, finite=False)
        return _reaches(base, out, t, self._exact or not self._method.deterministic, self._probe.dtype)

    def _moved(self, one: Tensor, other: Tensor) -> float | None:
        return difference(one, other, self._method, self._probe.dtype)

    def _counted(self, attend: Attend, inputs: Inputs) -> tuple[Tensor, int | None]:
        """The method's output, and the number of calls of PyTorch behind it; None where they cannot be seen."""
        before = copies(inputs)
        out, count = counted(lambda: self._call(attend, inputs))
        return self._checked(out, inputs, before), count

    def _ready(self, inputs: Inputs) -> Attend:
        with seeded(self._method, self._probe):
            return self._method.ready(*inputs, is_causal=self._probe.is_causal, **self._probe.hyper)

    def _call(self, attend: Attend, inputs: Inputs) -> Any:
        with torch.no_grad(), seeded(self._method, self._probe):
            return attend(*inputs)

    def _ask(self, q: Tensor, k: Tensor, v: Tensor, *, finite: bool = True) -> Tensor:
        inputs = (q, k, v)
        before = copies(inputs)
        return self._checked(self._call(self._ready(inputs), inputs), inputs, before, finite=finite)

    def _checked(self, out: object, inputs: Inputs, before: Inputs, *, finite: bool = True) -> Tensor:
        """The output of a call, in storage of its own, after which the inputs are what they were before."""
        changed = [n for n, x, y in zip("qkv", inputs, before, strict=True) if not torch.equal(x, y)]
        if changed:
            raise IncorrectError(changed_in_place(changed))
        return accuracy.check_output(out, inputs[0], inputs[2], finite=finite).clone()
