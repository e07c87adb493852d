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
    """The keys and values of one kv row, sorted, behind its samples; `dtype` is that of all arithmetic."""

    def __init__(
        self, level: LevelPlan, k: Tensor, v: Tensor, row: tuple[int, int], scale: float, scratch: Buffers
    ) -> None:
        dtype = scratch.dtype
        self.order = level.key_order[row][0].long()
        self.samples = level.sample_index[row][0].long()
        self.num_samples, self.block_size = self.samples.shape[0], level.block_size
        self.keys = scratch.gather("sorted_keys", k[row], self.order).to(dtype).mul_(scale)
        self.values = scratch.gather("sorted_values", v[row], self.order).to(dtype)
        self._key_blocks, self._value_blocks = self.keys.split(self.block_size), self.values.split(self.block_size)
        blocks = torch.arange(level.num_blocks).unsqueeze(1)
        weights = level.sample_weight.to(dtype)
        # A sample that lies in the block weighs 0: it is there already.
        self._weights = torch.where(self.samples // self.block_size == blocks, 0.0, weights).unbind()
        self._met_keys, self._met_values = self._behind_samples(self.keys), self._behind_samples(self.values)
        self._block = -1

    def met(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (m + b, D) and values (m + b, Dv) that queries of a block meet, and the samples' weights (m,).

        The tensors are views that the next block overwrites.
        """
        if block != self._block:
            stop = self.num_samples + self._key_blocks[block].shape[0]
            self._views = self._met_keys[:stop], self._met_values[:stop]
            self._views[0][self.num_samples :] = self._key_blocks[block]
            self._views[1][self.num_samples :] = self._value_blocks[block]
            self._block = block
        return (*self._views, self._weights[block])

    def _behind_samples(self, rows: Tensor) -> Tensor:
        room = torch.empty(self.num_samples + self.block_size, rows.shape[1], dtype=rows.dtype)
        room[: self.num_samples] = rows[self.samples]
        return room


class MetGrads:
    """Gradients of a row's keys or values (m + b, D) as its runs meet them: the samples', then those of one block."""

    def __init__(self, rows: Tensor, keys: RowKeys, total: Tensor) -> None:
        self.total = total.zero_()
        self._blocks = self.total.split(keys.block_size)
        self._met = rows.new_zeros(keys.num_samples + keys.block_size, rows.shape[1])
        self._samples, self._sampled = keys.samples, self._met[: keys.num_samples]
        self._views = [self._met[: keys.num_samples + block.shape[0]] for block in self._blocks]
        self._heres = [view[keys.num_samples :] for view in self._views]

    def add(self, block: int, p: Tensor, rows: Tensor) -> None:
        """Add the transpose of p (queries, m + b) times rows (queries, D), for queries that meet a block."""
        self._views[block].addmm_(p.t(), rows)

    def leave(self, block: int) -> None:
        """Hand over what a block has got before another one is met."""
        self._blocks[block].add_(self._heres[block])
        self._heres[block].zero_()

    def sorted(self) -> Tensor:
        """The gradients of all keys in sorted order, once every block is left."""
        return self.total.index_add_(0, self._samples, self._sampled)


def runs_forward(
    level: LevelPlan, q: Tensor, k: Tensor, v: Tensor, scale: float, scratch: Buffers
) -> tuple[Tensor, Tensor]:
    """Estimate a level of one node a row: out (B, H, Nq, Dv) in the dtype of q, lse (B, H, Nq) in that of scratch."""
    batch, heads, num_queries, _ = q.shape
    out = torch.empty(batch, heads, num_queries, v.shape[3], dtype=q.dtype)
    lse = torch.empty(batch, heads, num_queries, dtype=scratch.dtype)
    for b, kv_head, members in _rows(q, k):
        keys = RowKeys(level, k, v, (b, kv_head), scale, scratch)
        for h in members:
            order, row_runs, sizes = _row_runs(level, b, h)
            x = scratch.gather("x", q[b, h], order).to(scratch.dtype)
            sorted_out = scratch.get("sorted_out", num_queries, v.shape[3])
            sorted_lse = scratch.get("sorted_lse", num_queries, 1)
            parts = zip(row_runs, x.split(sizes), sorted_out.split(sizes), sorted_lse.split(sizes), strict=True)
            for run, part, part_out, part_lse in parts:
                met_keys, met_values, weight = keys.met(run.block)
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
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    num_queries, dtype = q.shape[2], scratch.dtype
    for b, kv_head, members in _rows(q, k):
        keys = RowKeys(level, k, v, (b, kv_head), scale, scratch)
        key_grads, value_grads = (
            MetGrads(rows, keys, scratch.get(name, *rows.shape))
            for name, rows in (("sorted_dk", keys.keys), ("sorted_dv", keys.values))
        )
        for h in members:
            order, row_runs, sizes = _row_runs(level, b, h)
            x = scratch.gather("x", q[b, h], order).to(dtype)
            g = scratch.gather("g", grad_out[b, h], order).to(dtype)
            sorted_dq = scratch.get("sorted_dq", num_queries, q.shape[3])
            row_lse, row_delta = (t[b, h].index_select(0, order).unsqueeze(1) for t in (lse, delta))
            parts = zip(*(t.split(sizes) for t in (x, g, row_lse, row_delta, sorted_dq)), strict=True)
            block = row_runs[0].block
            for run, (part, part_g, part_lse, part_delta, part_dq) in zip(row_runs, parts, strict=True):
                if run.block != block:
                    key_grads.leave(block)
                    value_grads.leave(block)
                    block = run.block
                met_keys, met_values, weight = keys.met(block)
                p, ds = (scratch.get(name, part.shape[0], met_keys.shape[0]) for name in ("p", "ds"))
                torch.mm(part, met_keys.t(), out=p)
                p.sub_(part_lse).exp_()
                p[:, : keys.num_samples].mul_(weight)
                torch.mm(part_g, met_values.t(), out=ds)
                ds.sub_(part_delta).mul_(p)
                value_grads.add(block, p, part_g)
                key_grads.add(block, ds, part)
                torch.mm(ds, met_keys, out=part_dq)
            key_grads.leave(block)
            value_grads.leave(block)
            _take(sorted_dq, _inverse(order), dq[b, h])
        place = _inverse(keys.order)
        _take(key_grads.sorted().mul_(scale), place, dk[b, kv_head])
        _take(value_grads.sorted(), place, dv[b, kv_head])
    return dq, dk, dv


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
