"""Parts that the checks of properties share: changing inputs in place, counting calls, comparing two answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hyperbench.measure.inputs import Inputs
from hyperbench.measure.methods.method import Method
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.store.schema import Point

Result = TypeVar("Result")
MEMOISED_IN_PLACE = (
    "a memoised result: after q, k and v were changed in place, the output is not that of the same values in other "
    "storage"
)
_GOES_BY_VALUES = (
    "a set-up that goes by the values of q, k and v, and whose time is not taken: after they were changed in place, "
    "the callable of prepare gives another output than one that is prepared for these values"
)
NOT_CAUSAL = "not causal: outputs up to position"
_outcomes: dict[Hashable, Any] = {}


def once(key: Hashable, examine: Callable[[], Result]) -> Result:
    """The result of an examination that is made once in this process for a key; a refusal is raised each time."""
    if key not in _outcomes:
        try:
            _outcomes[key] = examine()
        except IncorrectError as error:
            _outcomes[key] = error.with_traceback(None)
    found: Result = _outcomes[key]
    if isinstance(found, IncorrectError):
        raise type(found)(str(found))
    return found


def if_it_takes_the_shape(examine: Callable[[], object]) -> None:
    """Examine, unless the method raises anything but a refusal: it then takes no such shape."""
    try:
        examine()
    except IncorrectError:
        raise
    except Exception:
        return


def stale(method: Method) -> str:
    """The refusal of a method whose output is that of values which are gone."""
    return _GOES_BY_VALUES if method.has_setup else MEMOISED_IN_PLACE


def how_to_leak(point: Point) -> str:
    """The end of a refusal: the key with which a method that leaks is measured nevertheless."""
    return f"; with +method.{point.method}.allow_leak=true it is measured all the same, and marked as leaking"


def changed_in_place(names: list[str]) -> str:
    """The refusal of a method after whose call these inputs hold other values."""
    return f"the method changed {', '.join(names)} in place; it must leave its inputs as they are"


def copies(inputs: Inputs) -> Inputs:
    """The same three tensors in storage of their own."""
    q, k, v = (x.clone() for x in inputs)
    return q, k, v


@contextmanager
def replaced(tensors: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> Iterator[None]:
    """Let tensors hold other values, where they lie, for a while."""
    before = tuple(x.clone() for x in tensors)
    try:
        for x, y in zip(tensors, others, strict=True):
            x.copy_(y)
        yield
    finally:
        for x, y in zip(tensors, before, strict=True):
            x.copy_(y)


def difference(one: Tensor, other: Tensor, method: Method, dtype: str) -> float | None:
    """The relative difference of two outputs; None if there is none.

    On a GPU, or from a method that is not deterministic, what rounding explains is no difference.
    """
    if torch.equal(one, other):
        return None
    error = accuracy.relative_frobenius(other, one)
    to_the_bit = method.deterministic and one.device.type == "cpu"
    return error if to_the_bit or not error <= accuracy.EXACT_TOLERANCES[dtype] else None


class _Counter:
    count = 0

    def _pass_on(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class _Calls(_Counter, TorchFunctionMode):
    """Counter of the calls of PyTorch that are made from Python."""

    __torch_function__ = _Counter._pass_on


class Operations(_Counter, TorchDispatchMode):
    """Counter of the operations below autograd, where a backward pass asks for them."""

    __torch_dispatch__ = _Counter._pass_on


def counted(call: Callable[[], Result], *, below_autograd: bool = False) -> tuple[Result, int | None]:
    """The result of a call, and the number of calls of PyTorch behind it; None where they cannot be seen."""
    seen: Any = Operations() if below_autograd else _Calls()
    try:
        with seen:
            return call(), seen.count
    except IncorrectError:
        raise
    except Exception:  # of code that nothing may look into
        return call(), None


def check_count(first: int | None, second: int | None, repeated: str, error: type[IncorrectError]) -> None:
    """Raise the error if the second of two equal calls asks less of PyTorch than the first."""
    if first is not None and second is not None and second < first:
        raise error(
            f"a memoised result: {repeated} makes {second} of the {first} calls of PyTorch that the first makes"
        )
