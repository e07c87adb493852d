"""Inputs that a function from outside makes: f(shape, seed, **parameters) -> (q, k, v).

`shape` is a `Shape` of `hyperbench.measure.inputs`: it has batch, heads, kv_heads, seq_len and head_dim. The function
returns q (B, H, N, D), k and v (B, Hkv, N, D) on any device and of any floating dtype, the same for the same seed;
PyTorch's global generator is seeded for it, and afterwards what it was.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hyperbench.config.catalog import nearest
from hyperbench.measure.inputs import Inputs, Shape
from hyperbench.measure.methods.method import find

_AXES = "(batch, heads, seq_len, head_dim)"
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check(target: str, params: dict[str, Any]) -> None:
    """Raise ValueError, one line, if the function cannot be imported, or not be called with these parameters."""
    found = list(_parameters(target, _imported(target)).values())
    known = {p.name: p for p in found[2:] if p.kind in _KINDS}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found)
    for name in params:
        if name not in known and not takes_any:
            allowed = ", ".join(known) or "none"
            raise ValueError(f"input.{name} is no parameter of {target}; allowed: {allowed}{nearest(name, known)}")
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in params:
            raise ValueError(f"{target} needs a value for its parameter {name!r}; give +input.{name}=VALUE")


def draw(target: str, shape: Shape, seed: int, params: dict[str, Any]) -> Inputs:
    """Call the function for a shape and a seed.

    Raises ValueError, one line, on anything else than q, k and v of that shape with finite floating numbers.
    """
    function = _imported(target)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = function(shape, seed, **params)
    if not isinstance(made, tuple | list) or len(made) != 3 or not all(isinstance(x, Tensor) for x in made):
        raise ValueError(f"{_named(target)} must return three tensors (q, k, v), not {_kind(made)}")
    q, k, v = (x.detach() for x in made)
    for name, x, heads in (("q", q, shape.heads), ("k", k, shape.kv_heads), ("v", v, shape.kv_heads)):
        wanted = (shape.batch, heads, shape.seq_len, shape.head_dim)
        if tuple(x.shape) != wanted:
            swapped = tuple(x.shape) == (wanted[0], wanted[2], wanted[1], wanted[3])
            hint = "; transpose(1, 2) of it is" if swapped else ""
            raise ValueError(f"{_named(target)}: {name} must be {_AXES} = {wanted}, not {tuple(x.shape)}{hint}")
        if not x.is_floating_point():
            raise ValueError(f"{_named(target)}: {name} must be of floating point numbers, not {x.dtype}")
        if not bool(x.isfinite().all()):
            raise ValueError(f"{_named(target)}: {name} holds NaN or infinite numbers")
    return q, k, v


def _imported(target: str) -> Callable[..., Any]:
    try:
        return find(target).function
    except ValueError as error:
        raise ValueError(f"input.{error}") from None


def _parameters(target: str, function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise ValueError(f"{_named(target)} is no function with a readable signature") from None


def _named(target: str) -> str:
    return f"input._target_={target}"


def _kind(made: object) -> str:
    if isinstance(made, tuple | list):
        return f"{len(made)} of {', '.join(dict.fromkeys(type(x).__name__ for x in made)) or 'nothing'}"
    return type(made).__name__
