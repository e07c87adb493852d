"""Bitwise fingerprints of tensors, to detect changes without a copy, and rows of them, to tell how large they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbench.measure.worker.errors.accuracy import relative_frobenius

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK_ROWS = 2**16
_KEPT_ROWS = 128


@dataclass(frozen=True)
class Fingerprint:
    """Memory of some tensors: a hash of the bits of each, and a few of its rows, evenly spaced."""

    bits: tuple[int, ...]
    rows: tuple[Tensor, ...]


def fingerprint_of(tensors: Sequence[Tensor]) -> Fingerprint:
    """The fingerprint of tensors (B, H, N, D)."""
    return Fingerprint(tuple(map(bits_of, tensors)), tuple(_spaced_rows(x).clone() for x in tensors))


def difference(before: Fingerprint, tensors: Sequence[Tensor]) -> float | None:
    """None if the tensors have the same bits; else the largest relative Frobenius difference of the rows kept."""
    if before.bits == tuple(map(bits_of, tensors)):
        return None
    pairs = zip(tensors, before.rows, strict=True)
    return max(relative_frobenius(_spaced_rows(x), rows) for x, rows in pairs)


def bits_of(x: Tensor) -> int:
    """64 bits that depend on every bit of x (..., D) and on where it stands."""
    bits = x.detach().contiguous().view(_INTEGERS[x.element_size()]).reshape(-1, x.shape[-1])
    columns = _weights(0, bits.shape[1], x.device)
    total = torch.zeros((), dtype=torch.int64, device=x.device)
    for start in range(0, len(bits), _CHUNK_ROWS):
        part = bits[start : start + _CHUNK_ROWS].to(torch.int64)
        total += ((part * columns).sum(1) * _weights(start, len(part), x.device)).sum()
    return int(total)


def _weights(start: int, count: int, device: torch.device) -> Tensor:
    """An odd number for each index from start on, without a pattern that a change of the tensor could have."""
    index = torch.arange(start + 1, start + count + 1, device=device) * 0x1E3779B97F4A7C15
    mixed = (index ^ (index >> 29)) * 0x3F58476D1CE4E5B9
    return (mixed ^ (mixed >> 32)) | 1


def _spaced_rows(x: Tensor) -> Tensor:
    return x.detach()[:, :, :: max(1, x.shape[2] // _KEPT_ROWS)]
