"""The exact leaves of a causal call: which positions they hold, and tensors cut into them."""

from __future__ import annotations

from torch import Tensor


def leaf_slices(seq_len: int, leaf_len: int) -> list[slice]:
    """The positions of all full leaves together, then those of the shorter last leaf, if any."""
    full = seq_len - seq_len % leaf_len
    return [part for part in (slice(0, full), slice(full, seq_len)) if part.stop > part.start]


def as_leaves(x: Tensor, part: slice, leaf_len: int) -> Tensor:
    """Positions `part` of x (B, H, N, ...) as leaves (leaves, B * H, length, ...): a view where B and H are one run."""
    length = min(leaf_len, part.stop - part.start)
    return x.flatten(0, 1)[:, part].unflatten(1, (-1, length)).transpose(0, 1)


def store_leaves(into: Tensor, part: slice, leaves: Tensor) -> None:
    """Write leaves (leaves, B * H, length, ...) to positions `part` of a contiguous (B, H, N, ...)."""
    into.flatten(0, 1)[:, part].unflatten(1, (-1, leaves.shape[2])).copy_(leaves.transpose(0, 1))
