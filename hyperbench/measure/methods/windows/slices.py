"""Window attention in slices of neighbouring queries: plain matrix products with all the keys that a slice meets.

Between the two ends of the sequence every slice has the same mask, and many go by one product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.exact import default_scale
from hyperattn_core.exact_aten import lse_dtype
from hyperbench.measure.methods.windows.band import Band

Inputs = tuple[Tensor, Tensor, Tensor]
#: Queries of a slice: few, since all of them meet the keys of any.
_SLICE_ROWS = 128
#: Scores of the slices that go by one product.
_MAX_SCORES = 2**20


@dataclass(frozen=True)
class Slices:
    """Neighbouring slices of as many queries each, `rows` together, whose masks are alike.

    The first of them meets `first` tokens of the sequence's beginning and the keys of `near`, each other one those as
    many positions later as it lies behind. Where `is_inner`, neither end of the sequence has a part in the mask.
    """

    rows: slice
    count: int
    first: int
    near: slice
    is_inner: bool

    @property
    def size(self) -> int:
        """Queries of a slice."""
        return (self.rows.stop - self.rows.start) // self.count

    def queries(self, x: Tensor, kv_heads: int) -> Tensor:
        """The rows of x (B, H, N, D) of each slice: (count * B * Hkv, H / Hkv * size, D)."""
        parts = x[:, :, self.rows].unflatten(1, (kv_heads, -1)).unflatten(3, (self.count, self.size))
        return parts.permute(3, 0, 1, 2, 4, 5).flatten(3, 4).flatten(0, 2)

    def place_queries(self, into: Tensor, rows: Tensor, kv_heads: int) -> None:
        """The inverse of `queries`: into (B, H, N, D) = rows."""
        batch, heads = into.shape[:2]
        parts = rows.view(self.count, batch, kv_heads, heads // kv_heads, self.size, -1)
        into[:, :, self.rows] = parts.permute(1, 2, 3, 0, 4, 5).flatten(3, 4).flatten(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """The keys x (B, Hkv, N, D) that each slice meets, or their values: (count * B * Hkv, keys, D)."""
        last = self.near.stop + (self.count - 1) * self.size
        near = x[:, :, self.near.start : last].unfold(2, self.near.stop - self.near.start, self.size)
        near = near.permute(2, 0, 1, 4, 3)
        if self.first:
            near = torch.cat([x[:, :, : self.first].expand(self.count, -1, -1, -1, -1), near], dim=3)
        return near.flatten(0, 2)

    def add_keys(self, into: Tensor, grads: Tensor) -> None:
        """Add gradients of what `keys` gave to into (B, Hkv, N, D)."""
        parts = grads.view(self.count, *into.shape[:2], -1, into.shape[3])
        into[:, :, : self.first] += parts[:, :, :, : self.first].sum(0)
        for index, part in enumerate(parts):
            shift = index * self.size
            into[:, :, self.near.start + shift : self.near.stop + shift] += part[:, :, self.first :]


def slices_of(band: Band, spans: list[slice], rows_at_once: int) -> Iterator[Slices]:
    """The queries of some spans of positions in slices; up to `rows_at_once` together where masks are alike."""
    for span in spans:
        start = span.start
        while start < span.stop:
            size = min(_SLICE_ROWS, span.stop - start)
            first, near = band.near(slice(start, start + size))
            is_inner = near.stop - near.start == band.left + size + band.right and first == band.sinks
            space = min(span.stop, band.seq_len - band.right) - start
            count = max(1, min(space, rows_at_once) // size) if is_inner else 1
            yield Slices(slice(start, start + count * size), count, first, near, is_inner)
            start += count * size


def slices_forward(inputs: Inputs, band: Band, spans: list[slice], out: Tensor) -> None:
    """Write the output of the queries of some spans to out (B, H, N, Dv)."""
    kv_heads = inputs[1].shape[1]
    for part, (scores, _, _, values) in _products(inputs, band, spans):
        part.place_queries(out, torch.bmm(scores.softmax(2), values), kv_heads)


def slices_backward(inputs: Inputs, grad_out: Tensor, band: Band, spans: list[slice], grads: Inputs) -> None:
    """Write dq of the queries of some spans, and add what comes of them to dk and dv, in the dtype of accumulation."""
    (dq, dk, dv), kv_heads, scale = grads, inputs[1].shape[1], default_scale(inputs[0], None)
    grad_out = grad_out.to(dk.dtype)
    for part, (scores, queries, keys, values) in _products(inputs, band, spans):
        p, g = scores.softmax(2), part.queries(grad_out, kv_heads)
        part.add_keys(dv, torch.bmm(p.transpose(1, 2), g))
        dp = torch.bmm(g, values.transpose(1, 2))
        ds = p.mul_(dp.sub_((p * dp).sum(2, keepdim=True)).mul_(scale))
        part.place_queries(dq, torch.bmm(ds, keys), kv_heads)
        part.add_keys(dk, torch.bmm(ds.transpose(1, 2), queries))


def _products(
    inputs: Inputs, band: Band, spans: list[slice]
) -> Iterator[tuple[Slices, tuple[Tensor, Tensor, Tensor, Tensor]]]:
    """Slices with their masked scores, queries, keys and values, in the dtype of accumulation."""
    heads, kv_heads, scale = inputs[0].shape[1], inputs[1].shape[1], default_scale(inputs[0], None)
    q, k, v = (x.to(lse_dtype(x)) for x in inputs)
    width = band.sinks + band.left + _SLICE_ROWS + band.right
    inner: Tensor | None = None
    for part in slices_of(band, spans, _MAX_SCORES // (q.shape[0] * heads * width)):
        mask = inner if part.is_inner else None
        if mask is None or mask.shape[0] != heads // kv_heads * part.size:
            hidden = band.hidden(slice(part.rows.start, part.rows.start + part.size), q.device)
            mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
            mask = mask.repeat(heads // kv_heads, 1)
            inner = mask if part.is_inner else inner
        queries, keys = part.queries(q, kv_heads), part.keys(k)
        scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale)
        yield part, (scores, queries, keys, part.keys(v))
