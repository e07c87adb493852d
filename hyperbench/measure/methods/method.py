"""Methods by their dotted names, with what a method may tell about itself.

A method is any callable f(q, k, v, *, is_causal, **hyper). It may have further attributes, each optional:
implementation(device) -> str, implementation_at(point) -> str (where the point decides), note(point) -> str (a line for
the timing's message), why_unsupported(device, dtype) -> str | None, defaults() -> dict, check(hyper) raising
ValueError, executed_flops(point, pass) -> float, with_lse(...) -> (out, lse), plan(q, k, *, is_causal, **hyper) -> the
AttentionPlan at which a call attends, stages(...) -> the parts of its forward pass, prepare(...) -> the callable
f(q, k, v) that is measured in its place, layout ("bnhd" for (batch, seq_len, heads, head_dim)), causal (False where it
has no causal form), ignores (names among "q", "k" and "v" on which its output does not depend on purpose),
deterministic (False where the same inputs and seed do not give the same output to the last bit).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan
from hyperbench.config.catalog import check_name, nearest
from hyperbench.config.types import LAYOUTS, PLAIN_CALL, CallOptions
from hyperbench.flops import exact_flops
from hyperbench.store.schema import ALL_STAGES, Pass, Point

_TENSOR_ARGUMENTS = 3
_BHND = LAYOUTS[0]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A method as found: its function and what it says about itself, with the answers of one that says nothing."""

    target: str
    function: Callable[..., Tensor]
    options: CallOptions = PLAIN_CALL

    def defaults(self) -> dict[str, Any]:
        """Parameter -> value where none is given, for the parameters that have one which is plain data.

        A seed is among them wherever the method takes one.
        """
        own = getattr(self.function, "defaults", None)
        if own is not None:
            return dict(own())
        keywords = self._keywords()
        seed = {"seed": 0} if any(p.name == "seed" for p in keywords) else {}
        return seed | {p.name: p.default for p in keywords if isinstance(p.default, str | int | float | None)}

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError, one line, on an unknown, missing or invalid parameter, or on an unknown layout."""
        keywords = self._keywords()
        check_name(f"the layout of {self.target}", self.layout, LAYOUTS)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters())
        known = sorted({p.name for p in keywords} | set(self.defaults()))
        for name in hyper:
            if name not in known and not (takes_any and self.defaults().keys() <= {"seed"}):
                allowed = ", ".join(known) or "none"
                raise ValueError(f"{self.target} has no parameter {name!r}; allowed: {allowed}{nearest(name, known)}")
        for parameter in (p for p in keywords if p.name != "seed"):
            if parameter.default is inspect.Parameter.empty and hyper.get(parameter.name) is None:
                raise ValueError(f"{self.target} needs a value for its parameter {parameter.name!r}")
        self._own("check", lambda hyper: None)(hyper)

    def implementation(self, device: str, point: Point | None = None) -> str:
        """The name of what runs, for the table; of what runs at a point, where one is given."""
        by_device = self._own("implementation", lambda device: f"{self.target}-{device}")
        if point is None:
            return str(by_device(device))
        return str(self._own("implementation_at", lambda point: by_device(device))(point))

    def note(self, point: Point) -> str:
        """The method's own line on how it runs at a point, or nothing."""
        return str(self._own("note", lambda point: "")(point))

    def why_unsupported(self, device: str, dtype: str) -> str | None:
        """The reason why the method cannot run there, or None."""
        reason: str | None = self._own("why_unsupported", lambda device, dtype: None)(device, dtype)
        return reason

    def executed_flops(self, point: Point, pass_: Pass, exact: bool) -> float | None:
        """Operations executed at a point; None where the method does not say."""
        own = getattr(self.function, "executed_flops", None)
        if own is not None:
            return float(own(point, pass_))
        return exact_flops(point, pass_) if exact else None

    @property
    def ignores(self) -> frozenset[str]:
        """The inputs, of q, k and v, on which the output openly does not depend."""
        return frozenset(getattr(self.function, "ignores", ()))

    @property
    def deterministic(self) -> bool:
        """True if the same inputs and seed give the same output to the last bit; so unless it says otherwise."""
        return bool(getattr(self.function, "deterministic", True))

    @property
    def layout(self) -> str:
        """The order of the axes of its tensors, of LAYOUTS where it is known."""
        return str(self.options.layout or getattr(self.function, "layout", _BHND))

    @property
    def has_causal_form(self) -> bool:
        """True if it can be asked for a causal mask; so unless it says otherwise."""
        own = getattr(self.function, "causal", True)
        return bool(own if self.options.causal is None else self.options.causal)

    @functools.cached_property
    def takes_seed(self) -> bool:
        """True if the seed of its draw is a parameter; else it is that of the global generators of PyTorch."""
        return "seed" in self.defaults()

    @property
    def has_setup(self) -> bool:
        """True if what is measured is a callable that it makes beforehand."""
        return hasattr(self.function, "prepare")

    def ready(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, **hyper: Any) -> Attend:
        """The method as a callable for inputs such as q (B, H, N, D), k and v, with its set-up made.

        The callable takes and returns tensors with these axes, whatever the layout of the method; tensors that lie in
        memory as that has them (see `arranged`) are handed on without a copy. Raises TypeError where the set-up gives
        nothing that can be called.
        """
        attend: Attend
        if self.has_setup:
            with torch.no_grad():
                tensors = map(self._to_layout, (q.detach(), k.detach(), v.detach()))
                attend = self._own("prepare", lambda: None)(*tensors, is_causal=is_causal, **hyper)
            if not callable(attend):
                raise TypeError(f"{self.target}.prepare must return a callable f(q, k, v), not {_kind_of(attend)}")
        else:
            attend = functools.partial(self.function, is_causal=is_causal, **hyper)
        if self.layout == _BHND:
            return attend
        return lambda q, k, v: _swapped(attend(*map(self._to_layout, (q, k, v))))

    @property
    def with_lse(self) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """The method's variant that also returns the log-sum-exp (B, H, N), if it has one."""
        own: Callable[..., tuple[Tensor, Tensor]] | None = getattr(self.function, "with_lse", None)
        if own is None or self.layout == _BHND:
            return own

        def call(q: Tensor, k: Tensor, v: Tensor, **keywords: Any) -> tuple[Tensor, Tensor]:
            out, lse = own(*map(self._to_layout, (q, k, v)), **keywords)
            return _swapped(out), lse

        return call

    @property
    def plan(self) -> Callable[..., AttentionPlan] | None:
        """The plan that the method attends at, from q (B, H, N, D) and k (B, Hkv, N, D), if it has one."""
        return getattr(self.function, "plan", None)

    def stages(
        self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, **hyper: Any
    ) -> dict[str, Callable[[], object]]:
        """The parts of the method's forward pass on q (B, H, N, D), k and v, by name and in order.

        Calling each once, in order, does the work of the pass, and the last one returns its output; after that each can
        be called again by itself. Several such dicts are in use at a time, each on inputs of its own. Raises
        NotImplementedError where the method does not tell its parts, ValueError on what are no named calls.
        """
        own = getattr(self.function, "stages", None)
        if own is None:
            raise NotImplementedError(f"{self.target} does not tell the stages of its forward pass")
        found = own(*map(self._to_layout, (q, k, v)), is_causal=is_causal, **hyper)
        if not isinstance(found, dict) or not found:
            raise ValueError(f"{self.target}.stages must return a dict of calls by name, not {type(found).__name__}")
        for name, call in found.items():
            if not isinstance(name, str) or not name.strip() or name == ALL_STAGES or not callable(call):
                raise ValueError(
                    f"{self.target}.stages must name its calls, by other names than {ALL_STAGES!r}: {name!r}"
                )
        if self.layout == _BHND:
            return found
        *_, (last, output) = found.items()
        return {**found, last: lambda: _swapped(output())}

    def _to_layout(self, x: Tensor) -> Tensor:
        """x (B, H, N, D) in the method's layout, contiguous; no copy where it lies in memory like that."""
        return x if self.layout == _BHND else x.transpose(1, 2).contiguous()

    def _own(self, name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
        """The method's own function of that name, or that of a method that has none."""
        own: Callable[..., Any] = getattr(self.function, name, otherwise)
        return own

    def _parameters(self) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(self.function).parameters.values())
        except (TypeError, ValueError):
            raise ValueError(f"{self.target} is no function with a readable signature") from None

    def _keywords(self) -> list[inspect.Parameter]:
        named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p for p in self._parameters()[_TENSOR_ARGUMENTS:] if p.kind in named and p.name != "is_causal"]


def arranged(x: Tensor, layout: str) -> Tensor:
    """x (B, H, N, D) with its entries in memory in the order of a layout; x itself where they are."""
    return x if layout == _BHND else x.transpose(1, 2).contiguous().transpose(1, 2)


def _swapped(out: Any) -> Any:
    """An output of the layout bnhd with the axes of bhnd; what is no such output stays what it is."""
    return out.transpose(1, 2) if isinstance(out, Tensor) and out.dim() == len(_BHND) else out


def _kind_of(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def find(target: str, options: CallOptions | None = None) -> Method:
    """The method of a dotted name. Raises ValueError, one line, if it cannot be imported or called."""
    return Method(target, imported(target, "_target_"), options or PLAIN_CALL)


def imported(target: str, key: str) -> Callable[..., Any]:
    """The function of a dotted name, the value of a key. Raises ValueError, one line, where there is none."""
    from hydra.errors import HydraException
    from hydra.utils import get_object

    try:
        function = get_object(target)
    # An import runs code of others, which may raise anything; all of it is the user's to read as one line.
    except (Exception, SystemExit) as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        raise ValueError(f"{key}={target} cannot be imported: {' '.join(str(cause).split())}") from None
    if not callable(function):
        raise ValueError(f"{key}={target} is a {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found
