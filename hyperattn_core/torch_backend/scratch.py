"""Scratch tensors that the chunks of a pass share, so that they stay in cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Buffers:
    """Scratch tensors by name, made once and reused by every chunk of the same shape."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A scratch tensor of this shape; what it held before is lost."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return flat[:size].view(shape)

    def gather(self, name: str, x: Tensor, index: Tensor) -> Tensor:
        """x[index] along the first dimension, in a scratch tensor."""
        return torch.index_select(x, 0, index, out=self.get(name, index.shape[0], *x.shape[1:], dtype=x.dtype))
