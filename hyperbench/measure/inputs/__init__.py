"""Inputs: one file a family, found by its name; the same q, k and v for every method and on every device.

A family is a module of this package with a function `draw(numbers, shape, **parameters)` that returns q (B, H, N, D), k
and v (B, Hkv, N, D). Its random numbers come from `numbers`, in float32 on the CPU, whatever the defaults of torch are;
they are cast afterwards, so that two dtypes see the same numbers rounded.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperbench.config.catalog import check_name, nearest
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
    """q (B, H, N, D), k and v (B, Hkv, N, D) of a point, on its device, in its dtype. Raises ValueError if unknown."""
    shape = Shape(point.batch, point.heads, point.kv_heads, point.seq_len, point.head_dim)
    drawn = _family(point.input)(Numbers(point.seed, point.input), shape, **point.input_params)
    q, k, v = (x.to(device=point.device, dtype=getattr(torch, point.dtype)) for x in drawn)
    return q, k, v


def make_grad_output(point: Point) -> Tensor:
    """The fixed Gaussian grad_output (B, H, N, D) under which all backward passes of a point run."""
    drawn = Numbers(point.seed, "grad_output").normal(point.batch, point.heads, point.seq_len, point.head_dim)
    return drawn.to(device=point.device, dtype=getattr(torch, point.dtype))


def check_params(family: str, params: dict[str, Any]) -> None:
    """Raise ValueError on a parameter that the family lacks or a value it cannot take."""
    known = list(inspect.signature(_family(family)).parameters)[2:]
    for name, value in params.items():
        if name not in known:
            raise ValueError(
                f"input.{name} is no parameter of {family}; allowed: {', '.join(known)}{nearest(name, known)}"
            )
        whole = name.startswith("num_")
        good = isinstance(value, int) if whole else isinstance(value, (int, float))
        if isinstance(value, bool) or not good or not (1 if whole else 0) <= value < math.inf:
            raise ValueError(
                f"input.{name}={value} must be {'a positive integer' if whole else 'a number of at least 0'}"
            )


def _family(name: str) -> Callable[..., Inputs]:
    """The `draw` function of a family. Raises ValueError on an unknown name, with the nearest one."""
    check_name("input", name, available())
    draw: Callable[..., Inputs] = importlib.import_module(f"{__name__}.{name}").draw
    return draw
