"""One level of the estimator in PyTorch on the CPU, run by run: the queries that meet a block, as they are, untiled.

Samples and block lie in one matrix of keys, so that a run is two products forward and five backward, of just the rows
there are. Which rows share a product depends on the data, and with it the last bit of a result: causal calls, where an
output must not depend on later tokens to the last bit, go through torch_tiles instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.plan import LevelPlan
from hyperattn_core.torch_tiles import Buffers

_RUN_QUERIES = 512


@dataclass(frozen=True)
class Run:
    """Sorted queries first..stop-1 of a row, which meet one block of sorted keys."""

    first: int
    stop: int
    block: int


def runs(tile_first: Tensor, tile_count: Tensor, tile_block: Tensor) -> Iterator[Run]:
    """The tiles (T,) of one row joined where they meet the same block, in runs of at most some hundred queries."""
    first, stop, block = 0, 0, -1
    for tile, count, met in zip(tile_first.tolist(), tile_count.tolist(), tile_block.tolist(), strict=True):
        if count == 0:
            continue
        if met == block and tile == stop and stop + count - first <= _RUN_QUERIES:
            stop += count
            continue
        if stop > first:
            yield Run(first, stop, block)
        first, stop, block = tile, tile + count, met
    if stop > first:
        yield Run(first, stop, block)


class RowKeys:
    """The keys and values of one kv row, sorted, behind its samples, as one stack (2, m + b, D)."""

    def __init__(
        self, level: LevelPlan, k: Tensor, v: Tensor, row: tuple[int, int], scale: float, scratch: Buffers
    ) -> None:
        self.order = level.key_order[row][0].long()
        self.samples = level.sample_index[row][0].long()
        self.num_samples, self.block_size = self.samples.shape[0], level.block_size
        self.rows = scratch.get("sorted_rows", 2, k.shape[2], k.shape[3])
        _take(k[row], self.order, self.rows[0])
        _take(v[row], self.order, self.rows[1])
        self.rows[0].mul_(scale)
        self._blocks = self.rows.split(self.block_size, dim=1)
        blocks = torch.arange(level.num_blocks).unsqueeze(1)
        weights = level.sample_weight.to(scratch.dtype)
        # A sample that lies in the block weighs 0: it is there already.
        self._weights = torch.where(self.samples // self.block_size == blocks, 0.0, weights).unbind()
        self._met = scratch.get("met", 2, self.num_samples + self.block_size, k.shape[3])
        self._met[:, : self.num_samples] = self.rows[:, self.samples]
        self._block = -1

    def met(self, block: int) -> tuple[Tensor, Tensor]:
        """Keys and values (2, m + b, D) that queries of a block meet, and the samples' weights (m,).

        The rows are a view that the next block overwrites.
        """
        if block != self._block:
            self._view = self._met[:, : self.num_samples + self._blocks[block].shape[1]]
            self._view[:, self.num_samples :] = self._blocks[block]
            self._block = block
        return self._view, self._weights[block]


class MetGrads:
    """Gradients of a row's values and keys as its runs meet them: the samples', then those of one block.

    They are summed up transposed, (2, D, m + b): a product of a batch of two that way round is the faster one.
    """

    def __init__(self, keys: RowKeys, scratch: Buffers) -> None:
        self._total = scratch.get("grad_rows", *keys.rows.shape).zero_()
        self._blocks = self._total.split(keys.block_size, dim=1)
        self._samples, self._num_samples = keys.samples, keys.num_samples
        width = keys.num_samples + keys.block_size
        self._met = scratch.get("met_grads", 2, keys.rows.shape[2], width).zero_()
        self._widths = [keys.num_samples + block.shape[1] for block in self._blocks]

    def add(self, block: int, rows: Tensor, p: Tensor) -> None:
        """Add the products of rows (2, queries, D), transposed, with p and ds (2, queries, m + b), for one block."""
        if self._widths[block] == self._met.shape[2]:
            self._met.baddbmm_(rows.transpose(1, 2), p)
        else:
            self._met[:, :, : self._widths[block]] += torch.bmm(rows.transpose(1, 2), p)

    def leave(self, block: int) -> None:
        """Hand over what a block has got before another one is met."""
        here = self._met[:, :, self._num_samples : self._widths[block]]
        self._blocks[block].add_(here.transpose(1, 2))
        here.zero_()

    def sorted(self) -> Tensor:
        """The gradients (2, keys, D), of values and of keys, in sorted order, once every block is left."""
        return self._total.index_add_(1, self._samples, self._met[:, :, : self._num_samples].transpose(1, 2))


def runs_forward(
    level: LevelPlan, q: Tensor, k: Tensor, v: Tensor, scale: float, scratch: Buffers
) -> tuple[Tensor, Tensor]:
    """Estimate a level of one node a row: out (B, H, Nq, Dv) in the dtype of q, lse (B, H, Nq) in that of scratch."""
    batch, heads, num_queries, width = q.shape
    if width != v.shape[3]:
        q, k, wide_v = _equally_wide(q, k, v)
        out, lse = runs_forward(level, q, k, wide_v, scale, scratch)
        return out[..., : v.shape[3]].contiguous(), lse
    out = torch.empty(batch, heads, num_queries, width, dtype=q.dtype)
    lse = torch.empty(batch, heads, num_queries, dtype=scratch.dtype)
    for b, kv_head, members in _rows(q, k):
        keys = RowKeys(level, k, v, (b, kv_head), scale, scratch)
        for h in members:
            order, row_runs, sizes = _row_runs(level, b, h)
            x = scratch.gather("x", q[b, h], order).to(scratch.dtype)
            sorted_out = scratch.get("sorted_out", num_queries, width)
            sorted_lse = scratch.get("sorted_lse", num_queries, 1)
            parts = zip(row_runs, x.split(sizes), sorted_out.split(sizes), sorted_lse.split(sizes), strict=True)
            for run, part, part_out, part_lse in parts:
                (met_keys, met_values), weight = keys.met(run.block)
                p = scratch.get("p", part.shape[0], met_keys.shape[0])
                torch.mm(part, met_keys.t(), out=p)
                top = p.amax(1, keepdim=True)
                p.sub_(top).exp_()
                p[:, : keys.num_samples].mul_(weight)
                total = p.sum(1, keepdim=True)
                torch.mm(p, met_values, out=part_out)
                part_out.div_(total)
                torch.add(top, total.log_(), out=part_lse)
            place = _inverse(order)
            _take(sorted_out, place, out[b, h])
            _take(sorted_lse.view(-1), place, lse[b, h])
    return out, lse


def runs_backward(
    level: LevelPlan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    scratch: Buffers,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of runs_forward in the dtypes of q, k and v: p = w exp(s - lse), ds = p (grad_out.v - delta).

    lse and delta = rowsum(grad_out * out) - grad_lse are (B, H, Nq).
    """
    width = max(q.shape[3], v.shape[3])
    if q.shape[3] != v.shape[3]:
        wide_q, wide_k, wide_v, wide_grad = _equally_wide(q, k, v, grad_out)
        dq, dk, dv = runs_backward(level, wide_q, wide_k, wide_v, wide_grad, lse, delta, scale, scratch)
        return dq[..., : q.shape[3]], dk[..., : k.shape[3]], dv[..., : v.shape[3]]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    num_queries = q.shape[2]
    for b, kv_head, members in _rows(q, k):
        keys = RowKeys(level, k, v, (b, kv_head), scale, scratch)
        grads = MetGrads(keys, scratch)
        for h in members:
            order, row_runs, sizes = _row_runs(level, b, h)
            # q and grad_out meet keys and values, grad_out and q meet p and ds: each time the first two or the last.
            rows = scratch.get("rows", 3, num_queries, width)
            _take(q[b, h], order, rows[0])
            _take(grad_out[b, h], order, rows[1])
            rows[2] = rows[0]
            sorted_dq = scratch.get("sorted_dq", num_queries, width)
            row_lse, row_delta = (t[b, h].index_select(0, order).unsqueeze(1) for t in (lse, delta))
            parts = zip(
                rows.split(sizes, dim=1), *(t.split(sizes) for t in (row_lse, row_delta, sorted_dq)), strict=True
            )
            block = row_runs[0].block
            for run, (part, part_lse, part_delta, part_dq) in zip(row_runs, parts, strict=True):
                if run.block != block:
                    grads.leave(block)
                    block = run.block
                met, weight = keys.met(block)
                products = scratch.get("products", 2, part.shape[1], met.shape[1])
                torch.bmm(part[:2], met.transpose(1, 2), out=products)
                p, ds = products
                p.sub_(part_lse).exp_()
                p[:, : keys.num_samples].mul_(weight)
                ds.sub_(part_delta).mul_(p)
                torch.mm(ds, met[0], out=part_dq)
                grads.add(block, part[1:], products)
            grads.leave(block)
            _take(sorted_dq, _inverse(order), dq[b, h])
        place = _inverse(keys.order)
        sorted_dv, sorted_dk = grads.sorted()
        _take(sorted_dk.mul_(scale), place, dk[b, kv_head])
        _take(sorted_dv, place, dv[b, kv_head])
    return dq, dk, dv


def _equally_wide(*tensors: Tensor) -> list[Tensor]:
    """Zero columns up to the widest: keys and values go through products as a batch of two."""
    width = max(x.shape[3] for x in tensors)
    return [torch.nn.functional.pad(x, (0, width - x.shape[3])) for x in tensors]


def _rows(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, range]]:
    """Batch entry, kv head and the query heads of its group."""
    group = q.shape[1] // k.shape[1]
    for b in range(q.shape[0]):
        for kv_head in range(k.shape[1]):
            yield b, kv_head, range(kv_head * group, (kv_head + 1) * group)


def _row_runs(level: LevelPlan, b: int, h: int) -> tuple[Tensor, list[Run], list[int]]:
    """The order of a row's queries, its runs, and their lengths."""
    found = list(runs(level.tile_first[b, h, 0], level.tile_count[b, h, 0], level.tile_block[b, h, 0]))
    return level.query_order[b, h, 0].long(), found, [run.stop - run.first for run in found]


def _take(rows: Tensor, index: Tensor, into: Tensor) -> None:
    """into = rows[index], rounded to the dtype of into."""
    if rows.dtype == into.dtype:
        torch.index_select(rows, 0, index, out=into)
    else:
        into.copy_(rows.index_select(0, index))


def _inverse(order: Tensor) -> Tensor:
    """The inverse of a permutation."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0]))
