"""Autocast as PyTorch's fused attention has it: inputs are cast, and nothing of the computation is."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

_CAST = (torch.float16, torch.bfloat16, torch.float32)


def cast_inputs(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Inputs as scaled_dot_product_attention takes them: under autocast in its dtype, but for float64, which stays."""
    return tuple(_cast(x) for x in inputs)


def outside_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """A context in which operations on tensors of this device keep the dtypes that they are given."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _cast(x: Tensor) -> Tensor:
    # What is no tensor, and other dtypes, are for the checks of inputs to refuse.
    if not isinstance(x, Tensor) or x.dtype not in _CAST or not torch.amp.is_autocast_available(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type)) if torch.is_autocast_enabled(x.device.type) else x
