"""Window attention in chunks as long as one side of the window, by the fused kernels of exact attention.

A query's window lies in its own chunk and those next to it: each part is a square or a triangle of pairs, for which the
kernels need no mask, and all chunks go by one call. Parts are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from hyperattn_core.exact import default_scale, exact_backward, exact_forward
from hyperattn_core.exact_aten import BackwardInputs, lse_dtype
from hyperattn_core.merge import merge_into
from hyperbench.measure.methods.windows.band import Band

Inputs = tuple[Tensor, Tensor, Tensor]
_ARE_KEYS = (False, True, True)


@dataclass(frozen=True)
class Part:
    """Pairs of the queries of a chunk with keys of the chunk `offset` chunks on, as slices of the two.

    With is_causal query i of the slice meets keys up to i; where is_flipped both slices are taken backwards for that.
    """

    offset: int
    queries: slice
    keys: slice
    is_causal: bool
    is_flipped: bool = False


@dataclass(frozen=True)
class Chunks:
    """The chunks of a band, `first` to `last`, whose queries' windows lie in whole chunks after the first tokens."""

    band: Band
    size: int
    first: int
    last: int

    @classmethod
    def of(cls, band: Band) -> Chunks:
        """Chunks of as many positions as lie between a query and the last key of its window, one side of it."""
        size = (band.left if band.is_causal else band.right) + 1
        first = max(1, -(-(band.left + band.sinks) // size))
        return cls(band, size, first, max(first, band.seq_len // size - (0 if band.is_causal else 1)))

    @property
    def rows(self) -> slice:
        """The queries of these chunks."""
        return slice(self.first * self.size, self.last * self.size)

    def parts(self) -> Iterator[Part]:
        """The parts of a chunk's pairs: with its own keys, with those before it, with those after it."""
        size, whole = self.size, slice(0, self.size)
        yield Part(0, whole, whole, self.band.is_causal)
        # Key j of the chunk before is met by query i from i <= j - step on, one of the chunk after from i >= j + step.
        if (step := size - self.band.left) < size:
            yield Part(-1, slice(0, size - step), slice(step, size), True, is_flipped=True)
        if not self.band.is_causal and (step := size - self.band.right) < size:
            yield Part(1, slice(step, size), slice(0, size - step), True)

    def place(self, x: Tensor, part: Part, *, is_key: bool) -> Tensor:
        """Rows of x (B, H, N, ...) that are a part's queries or keys: (chunks, B * H, rows, ...), of dense x a view."""
        shift = part.offset * self.size if is_key else 0
        span = slice(self.rows.start + shift, self.rows.stop + shift)
        return _chunked(x, span, self.size)[:, :, part.keys if is_key else part.queries]


def parts_forward(inputs: Inputs, chunks: Chunks, out: Tensor) -> Tensor:
    """Write the output of the chunks' queries to out (B, H, N, Dv), and give their log-sum-exp (B, H, rows)."""
    (q, k, v), rows = inputs, chunks.rows
    scale, dtype, sinks = default_scale(q, None), lse_dtype(q), chunks.band.sinks
    merged = q.new_empty(*q.shape[:2], rows.stop - rows.start, v.shape[3], dtype=dtype)
    lse = q.new_empty(merged.shape[:3], dtype=dtype)
    for index, part in enumerate(chunks.parts()):
        queries, keys, values = (
            _flip(chunks.place(x, part, is_key=is_key), part) for x, is_key in zip(inputs, _ARE_KEYS, strict=True)
        )
        part_out, part_lse = (_flip(x, part) for x in exact_forward(queries, keys, values, part.is_causal, scale))
        here = slice(0, merged.shape[2])
        into_out, into_lse = (_chunked(x, here, chunks.size)[:, :, part.queries] for x in (merged, lse))
        if index == 0:
            into_out.copy_(part_out)
            into_lse.copy_(part_lse)
        else:
            merge_into(into_out, into_lse, part_out.to(dtype), part_lse)
    if sinks:
        other, other_lse = exact_forward(q[:, :, rows], k[:, :, :sinks], v[:, :, :sinks], False, scale)
        merge_into(merged, lse, other.to(dtype), other_lse)
    out[:, :, rows] = merged
    return lse


def parts_backward(given: BackwardInputs, chunks: Chunks, grads: Inputs) -> None:
    """Add the gradients of the chunks' queries to dq, dk and dv, each part's from the final output and log-sum-exp."""
    (dq, dk, dv), rows, scale = grads, chunks.rows, default_scale(given.q, None)
    for part in chunks.parts():
        g, q, out = (_flip(chunks.place(x, part, is_key=False), part) for x in (given.grad_out, given.q, given.out))
        k, v = (_flip(chunks.place(x, part, is_key=True), part) for x in (given.k, given.v))
        lse = _flip(_chunked(given.lse, slice(0, given.lse.shape[2]), chunks.size)[:, :, part.queries], part)
        found = exact_backward(BackwardInputs(g, None, q, k, v, out, lse), part.is_causal, scale)
        for into, grad, is_key in zip(grads, found, _ARE_KEYS, strict=True):
            chunks.place(into, part, is_key=is_key).add_(_flip(grad, part))
    if chunks.band.sinks:
        tokens = slice(0, chunks.band.sinks)
        g, q, out = (x[:, :, rows] for x in (given.grad_out, given.q, given.out))
        k, v = given.k[:, :, tokens], given.v[:, :, tokens]
        found = exact_backward(BackwardInputs(g, None, q, k, v, out, given.lse), False, scale)
        for into, grad, where in zip((dq, dk, dv), found, (rows, tokens, tokens), strict=True):
            into[:, :, where] += grad


def _chunked(x: Tensor, span: slice, size: int) -> Tensor:
    """Positions `span` of x (B, H, N, ...) as (chunks, B * H, size, ...): a view where B and H are one run."""
    return x.flatten(0, 1)[:, span].unflatten(1, (-1, size)).transpose(0, 1)


def _flip(x: Tensor, part: Part) -> Tensor:
    return x.flip(2) if part.is_flipped else x
