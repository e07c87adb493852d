"""Inputs: one file a family, found by its name; the same q, k and v for every method and on every device.

A family is a module of this package with a function `draw(numbers, shape, **parameters)` that returns q (B, H, N, D), k
and v (B, Hkv, N, D). Its random numbers come from `numbers`, in float32 on the CPU, whatever the defaults of torch are;
they are cast afterwards, so that two dtypes see the same numbers rounded. A module may have `check(**parameters)` too,
which raises ValueError on values that `draw` cannot take. An input may be of a family of another name, by its parameter
`family`, and, with `_target_`, a function from outside (`_function.py`).
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperbench.config.catalog import check_name, nearest
from hyperbench.config.inputs import TARGET
from hyperbench.store.schema import Point

Inputs = tuple[Tensor, Tensor, Tensor]


class Shape(NamedTuple):
    """The sizes of the inputs: q is (batch, heads, seq_len, head_dim), k and v have kv_heads."""

    batch: int
    heads: int
    kv_heads: int
    seq_len: int
    head_dim: int


class Numbers:
    """Random numbers of one stream of a seed, on the CPU; real ones in float32."""

    def __init__(self, seed: int, stream: str) -> None:
        self._generator = torch.Generator(device="cpu")
        self._generator.manual_seed(random.Random(f"{seed}/{stream}").getrandbits(63))

    def normal(self, *size: int) -> Tensor:
        """Independent standard normal numbers."""
        return torch.randn(*size, generator=self._generator, device="cpu", dtype=torch.float32)

    def uniform(self, *size: int) -> Tensor:
        """Independent numbers between 0 and 1."""
        return torch.rand(*size, generator=self._generator, device="cpu", dtype=torch.float32)

    def integers(self, below: int, *size: int) -> Tensor:
        """Independent integers from 0 up to, and without, `below`."""
        return torch.randint(below, size, generator=self._generator, device="cpu")

    def permutation(self, count: int) -> Tensor:
        """The integers from 0 up to, and without, `count` in random order."""
        return torch.randperm(count, generator=self._generator, device="cpu")


def available() -> list[str]:
    """The names of all families; none is imported."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def make_inputs(point: Point) -> Inputs:
    """q (B, H, N, D), k and v (B, Hkv, N, D) of a point, on its device, in its dtype.

    Raises ValueError on an unknown input, on a file that is not what it was, and on what a function from outside gives
    that is no q, k and v of the point's shape.
    """
    shape = Shape(point.batch, point.heads, point.kv_heads, point.seq_len, point.head_dim)
    family, params = _family_of(point.input, point.input_params)
    if (target := params.pop(TARGET, None)) is not None:
        from hyperbench.measure.inputs import _function

        drawn = _function.draw(target, shape, point.seed, params)
    else:
        drawn = _family(family).draw(Numbers(point.seed, family), shape, **params)
    q, k, v = (x.to(device=point.device, dtype=getattr(torch, point.dtype)) for x in drawn)
    return q, k, v


def make_grad_output(point: Point) -> Tensor:
    """The fixed Gaussian grad_output (B, H, N, D) under which all backward passes of a point run."""
    drawn = Numbers(point.seed, "grad_output").normal(point.batch, point.heads, point.seq_len, point.head_dim)
    return drawn.to(device=point.device, dtype=getattr(torch, point.dtype))


def check_params(name: str, params: dict[str, Any]) -> None:
    """Raise ValueError on a parameter that an input lacks or a value it cannot take.

    `name` is that of the input; where it has no parameter `family`, its family is of that name.
    """
    family, params = _family_of(name, params)
    if (target := params.pop(TARGET, None)) is not None:
        from hyperbench.measure.inputs import _function

        _function.check(target, params)
        return
    module = _family(family)
    known = dict(list(inspect.signature(module.draw).parameters.items())[2:])
    for key, value in params.items():
        if key not in known:
            raise ValueError(
                f"input.{key} is no parameter of {family}; allowed: {', '.join(known)}{nearest(key, known)}"
            )
        # Values of other kinds are the family's own to check.
        if known[key].annotation in (inspect.Parameter.empty, "float", "int"):
            _check_number(key, value)
    if hasattr(module, "check"):
        module.check(**params)


def _check_number(name: str, value: object) -> None:
    whole = name.startswith("num_")
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good or not (1 if whole else 0) <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"input.{name}={value} must be {'a positive integer' if whole else 'a number of at least 0'}")


def _family_of(name: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The family of an input, and its parameters without it."""
    others = dict(params)
    return str(others.pop("family", name)), others


def _family(name: str) -> Any:
    """The module of a family. Raises ValueError on an unknown name, with the nearest one."""
    check_name("input", name, available())
    return importlib.import_module(f"{__name__}.{name}")
