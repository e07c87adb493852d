"""The exact causal leaves, through PyTorch's fused kernels on views of q, k and v: no copies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hyperattn_core.exact import exact_forward, fused_forward
from hyperattn_core.triton_backend.plan import dense_rows


@dataclass(frozen=True)
class Leaves:
    """Results of the leaves of positions `part`: out (leaves, B * H, length, Dv), lse (leaves, B * H, length)."""

    part: slice
    out: Tensor
    lse: Tensor


def as_leaf_batch(x: Tensor, part: slice, leaf_len: int) -> Tensor:
    """Positions `part` of x (B, H, N, D) as (leaves, B * H, length, D): a view where B and H are one run of memory."""
    length = min(leaf_len, part.stop - part.start)
    return x.flatten(0, 1)[:, part].unflatten(1, (-1, length)).transpose(0, 1)


def leaf_forward(q: Tensor, k: Tensor, v: Tensor, part: slice, leaf_len: int, scale: float) -> Leaves:
    """Exact causal attention of the leaves of one part.

    On a GPU a NaN or infinity in v may reach other rows of its own leaf, as in PyTorch's own kernel: to keep it from
    that would cost more than the leaves do.
    """
    q, k, v = (as_leaf_batch(x, part, leaf_len) for x in (q, k, v))
    run = fused_forward if q.device.type == "cuda" else exact_forward
    out, lse = run(q, k, v, True, scale)
    return Leaves(part, dense_rows(out), dense_rows(lse))
