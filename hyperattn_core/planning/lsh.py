"""Angular locality-sensitive hashing (Algorithm 1): sign projections, bucket codes, their rank along the Gray code."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hyperattn_core.planning.draws import kept_on_device
from hyperattn_core.precision import planning_dtype


def project(x: Tensor, directions: Tensor) -> Tensor:
    """The projections (..., r) of rows x (..., D), any floating dtype, on directions (D, r).

    float16 and bfloat16 are projected in float32, and in float64 where PyTorch may round the operands of products in
    float32: the codes do not depend on that setting.
    """
    dtype = planning_dtype(x)
    # A product with so few columns is the faster one with a direction's components next to each other.
    return x.to(dtype) @ directions.to(dtype).t().contiguous().t()


def codes_above(projected: Tensor, thresholds: Tensor | float) -> Tensor:
    """Bucket code of every row of projections: bit i is set where the projection on direction i is above its threshold.

    Args:
        projected: projections (..., r).
        thresholds: of the directions, to be broadcast to them.

    Returns:
        Codes (...), int32, in [0, 2**r). A projection at its threshold, or a NaN, leaves its bit unset.
    """
    # On a CPU, comparing into numbers is several times faster than into booleans, a product than integer arithmetic.
    # Weights up to 2**14 are exact in every floating dtype used here.
    bits = torch.gt(projected, thresholds, out=torch.empty_like(projected))
    weights = 2.0 ** torch.arange(projected.shape[-1], device=projected.device, dtype=projected.dtype)
    return (bits @ weights).to(torch.int32)


def bucket_codes(x: Tensor, directions: Tensor) -> Tensor:
    """Bucket code of every row of x (..., D), int32 (...): bit i is set where projection i of its r is positive."""
    return codes_above(project(x, directions), 0.0)


def gray_rank(codes: Tensor, num_projections: int) -> Tensor:
    """Rank of each code along the reflected Gray code: the inverse of rank -> rank ^ (rank >> 1).

    Consecutive ranks have codes that differ in exactly one bit, so neighbouring buckets differ in one projection.
    """
    table = _gray_ranks(num_projections, str(codes.device))
    return table.index_select(0, codes.view(-1)).view(codes.shape)


@kept_on_device(maxsize=16)
def _gray_ranks(num_projections: int, device: str) -> Tensor:
    """The rank of every code, int32 (2**r,)."""
    rank = torch.arange(2**num_projections, dtype=torch.int32, device=device)
    shift = 1
    while shift < num_projections:
        rank = rank ^ (rank >> shift)
        shift *= 2
    return rank


def hash_ranks(x: Tensor, directions: Tensor) -> Tensor:
    """Hash rank of every row of x (..., D) under directions (D, r): int32 (...), in [0, 2**r)."""
    return gray_rank(bucket_codes(x, directions), directions.shape[1])


def sort_by_rank(ranks: Tensor, num_ranks: int) -> tuple[Tensor, Tensor]:
    """Stable sort of every row by hash rank, as one sort over (row, rank) pairs.

    Args:
        ranks: int32 (R, N), values in [0, num_ranks].  The value num_ranks stands for "no row" and sorts last.
        num_ranks: 2**r.

    Returns:
        order: int32 (R, N), a permutation of 0..N-1 per row.
        starts: int32 (R, num_ranks + 1), where each rank begins in the row's order; the last entry is the number
            of entries that are not "no row".
    """
    num_rows, length = ranks.shape
    stride = num_ranks + 1
    if ranks.device.type == "cpu":
        return _sort_on_cpu(ranks, stride)
    dtype = torch.int32 if num_rows * stride < 2**31 else torch.int64
    row_base = torch.arange(num_rows, device=ranks.device, dtype=dtype).unsqueeze(1)
    pairs = (ranks.to(dtype) + row_base * stride).view(-1)
    sorted_pairs, flat_order = torch.sort(pairs, stable=True)
    wanted = torch.arange(num_rows * stride, device=ranks.device, dtype=dtype)
    starts = torch.searchsorted(sorted_pairs, wanted, out_int32=True).view(num_rows, stride)
    order = flat_order.view(num_rows, length).to(torch.int32) - (row_base * length).to(torch.int32)
    return order, starts - (row_base * length).to(torch.int32)


def _sort_on_cpu(ranks: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """sort_by_rank by NumPy, whose stable sort of numbers of 16 bits is a radix sort, several times as fast."""
    narrow = (ranks - 2**15).to(torch.int16) if stride > 2**15 else ranks.to(torch.int16)
    order = torch.from_numpy(np.argsort(narrow.numpy(), axis=1, kind="stable"))
    base = torch.arange(len(ranks), device=ranks.device, dtype=ranks.dtype).unsqueeze(1) * stride
    counts = torch.bincount((ranks + base).view(-1), minlength=len(ranks) * stride).view(-1, stride)
    return order.to(torch.int32), (counts.cumsum(1) - counts).to(torch.int32)
