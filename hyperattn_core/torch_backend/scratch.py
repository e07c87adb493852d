"""Scratch tensors that the chunks of a pass share, so that they stay in cache, and that the next call finds again."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

#: Bytes of scratch tensors that are kept between calls, for CPUs: fresh memory costs a page fault for every 4 KB.
KEPT_BYTES = 2**26
_kept: dict[torch.dtype, Buffers] = {}
_taking_turns = threading.Lock()


class Buffers:
    """Scratch tensors by name, made once and reused by every chunk of the same shape."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A scratch tensor of this shape; what it held before is lost."""
        size, dtype = math.prod(shape), dtype or self.dtype
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != dtype:
            flat = self._flat[name] = torch.empty(size, dtype=dtype, device=self.device)
        return flat[:size].view(shape)

    def gather(self, name: str, x: Tensor, index: Tensor) -> Tensor:
        """x[index] along the first dimension, in a scratch tensor."""
        return torch.index_select(x, 0, index, out=self.get(name, index.shape[0], *x.shape[1:], dtype=x.dtype))

    def keep_at_most(self, num_bytes: int) -> None:
        """Give up the largest tensors, so that the others take no more than this."""
        for name in sorted(self._flat, key=lambda name: self._flat[name].nbytes, reverse=True):
            if sum(x.nbytes for x in self._flat.values()) > num_bytes:
                del self._flat[name]


@contextlib.contextmanager
def kept_buffers(dtype: torch.dtype, device: torch.device) -> Iterator[Buffers]:
    """Scratch tensors of the calls before, if they were on a CPU; calls at the same time have some of their own."""
    if device.type != "cpu":
        yield Buffers(dtype, device)
        return
    with _taking_turns:
        buffers = _kept.pop(dtype, None)
    buffers = buffers or Buffers(dtype, device)
    yield buffers
    buffers.keep_at_most(KEPT_BYTES)
    with _taking_turns:
        _kept[dtype] = buffers


def release_scratch() -> None:
    """Give up the scratch tensors that are kept between calls: at most 64 MiB for each of float32 and float64."""
    with _taking_turns:
        _kept.clear()
