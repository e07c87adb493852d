"""Labels of a method in code of our own: the name of what runs, its operations, and the checks of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from hyperattn_core.params import check_int
from hyperbench import __version__
from hyperbench.store.schema import Pass, Point

Function = TypeVar("Function", bound=Callable[..., Tensor])
#: Forward passes that a pass of plain products costs: autograd makes two products for each.
_PASS_FACTORS = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.0, Pass.FORWARD_BACKWARD: 3.0}
#: Operations of a query that meets a key, for each entry of the head: two products, a multiply-add is two.
_FLOPS_PER_PAIR = 4.0


def own_code(pairs_per_query: Callable[[Point], float]) -> Callable[[Function], Function]:
    """Label a method of ours: its version, its operations, and sizes that must be at least 1 (a seed: 0).

    `pairs_per_query` counts its products of matrices in keys that a query would meet for as many operations.
    """

    def label(function: Function) -> Function:
        names = [p.name for p in inspect.signature(function).parameters.values() if type(p.default) is int]

        def implementation(device: str) -> str:
            version = torch.__version__.partition("+")[0]
            return f"hyperbench-{__version__}-{function.__name__}-torch-{version}-{device}"

        def executed_flops(point: Point, pass_: Pass) -> float:
            pairs = point.batch * point.heads * point.seq_len * pairs_per_query(point)
            return _FLOPS_PER_PAIR * point.head_dim * pairs * _PASS_FACTORS[pass_]

        def check(hyper: dict[str, Any]) -> None:
            for name in names:
                check_int(name, hyper.get(name, 1), low=0 if name == "seed" else 1)

        function.__dict__.update(implementation=implementation, executed_flops=executed_flops, check=check)
        return function

    return label
