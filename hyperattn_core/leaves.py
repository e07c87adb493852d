"""The exact leaves of a causal call: which positions they hold, and tensors cut into them."""

from __future__ import annotations

from torch import Tensor


def leaf_slices(seq_len: int, leaf_len: int, most: int | None = None) -> list[slice]:
    """The positions of the full leaves, then those of the shorter last leaf, if any.

    Full leaves come together, or by so many as have at most `most` positions, if not a single one.
    """
    full = seq_len - seq_len % leaf_len
    step = full if most is None else max(1, most // leaf_len) * leaf_len
    parts = [slice(i, min(i + step, full)) for i in range(0, full, step)] if full else []
    return [*parts, slice(full, seq_len)] if seq_len > full else parts


def as_leaves(x: Tensor, part: slice, leaf_len: int) -> Tensor:
    """Positions `part` of x (B, H, N, ...) as leaves (leaves, B * H, length, ...): a view where B and H are one run."""
    length = min(leaf_len, part.stop - part.start)
    return x.flatten(0, 1)[:, part].unflatten(1, (-1, length)).transpose(0, 1)


def store_leaves(into: Tensor, part: slice, leaves: Tensor) -> None:
    """Write leaves (leaves, B * H, length, ...) to positions `part` of a contiguous (B, H, N, ...)."""
    into.flatten(0, 1)[:, part].unflatten(1, (-1, leaves.shape[2])).copy_(leaves.transpose(0, 1))
