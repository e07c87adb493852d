"""Rows of one head in sorted order, laid out for products run by run: keys and values, their gradients, queries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.planning.plan import LevelPlan
from hyperattn_core.precision import rounds_products
from hyperattn_core.torch_backend.scratch import Buffers

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
    """The keys and values of one kv row, sorted, as its runs meet them: the samples, then one block, with two columns.

    A product with rows of QueryRows then is a logit in base 2, with a sample's weight added as its logarithm, less the
    row's shift, and a product of gradient and value less the row's delta: nothing is left to do but to exponentiate.

    A column may be left out, as zeros: that of weights where products round their operands, when add_weights adds them
    afterwards, and that of shifts with `shifted` false.
    """

    def __init__(
        self,
        level: LevelPlan,
        k: Tensor,
        v: Tensor,
        row: tuple[int, int],
        factors: tuple[float, float],
        scratch: Buffers,
        *,
        shifted: bool = False,
    ) -> None:
        self.order = level.key_order[row][0].long()
        self.samples = level.sample_index[row][0].long()
        self.num_samples, self.block_size = self.samples.shape[0], level.block_size
        width = k.shape[3]
        self.rows = scratch.get("sorted_rows", 2, k.shape[2], width)
        take(k[row], self.order, self.rows[0])
        take(v[row], self.order, self.rows[1])
        self._factors = torch.tensor(factors, dtype=scratch.dtype, device=k.device).view(2, 1, 1)
        self._blocks = self.rows.split(self.block_size, dim=1)
        blocks = torch.arange(level.num_blocks, device=k.device).unsqueeze(1)
        log_weights = level.sample_weight[row][0].log2().to(scratch.dtype)
        # A sample that lies in the block weighs 0: it is there already.
        self._log_weights = torch.where(self.samples // self.block_size == blocks, -math.inf, log_weights).unbind()
        self._weighted = not rounds_products(k.device, scratch.dtype)
        self._met = scratch.get("met", 2, self.num_samples + self.block_size, width + 2)
        self._met[:, :, width] = 0.0
        self._met[:, :, width + 1] = float(shifted)
        torch.mul(self.rows[:, self.samples], self._factors, out=self._met[:, : self.num_samples, :width])
        self._weight_column = self._met[0, : self.num_samples, width]
        # Views of what is met, made once for the full blocks and once for the last one: its end, rows and all of it.
        self._views = {}
        for size in {block.shape[1] for block in self._blocks}:
            met = self._met[:, : self.num_samples + size]
            self._views[size] = met[:, self.num_samples :, :width], (met, *met[:, :, :width])
        self._block = -1

    def met(self, block: int) -> tuple[Tensor, Tensor, Tensor]:
        """All that queries of a block meet (2, m + b, D + 2), its keys and its values; the next block overwrites it."""
        rows = self._blocks[block]
        into, views = self._views[rows.shape[1]]
        if block != self._block:
            torch.mul(rows, self._factors, out=into)
            if self._weighted:
                self._weight_column.copy_(self._log_weights[block])
            self._block = block
        return views

    def add_weights(self, logits: Tensor, block: int) -> None:
        """Add the samples' weights to logits (queries, m + b), unless the product has done so."""
        if not self._weighted:
            logits[:, : self.num_samples] += self._log_weights[block]


class MetGrads:
    """Gradients of a row's keys and values, the factors undone: of its samples, and of the block that is being met."""

    def __init__(self, keys: RowKeys, factors: tuple[float, float], scratch: Buffers) -> None:
        self._keys, self._num_samples = keys, keys.num_samples
        self._factors = torch.tensor(factors, dtype=scratch.dtype, device=keys.rows.device).view(2, 1, 1)
        self._total = scratch.get("grad_rows", *keys.rows.shape)
        self._blocks = self._total.split(keys.block_size, dim=1)
        self._met = scratch.get("met_grads", 2, keys.num_samples + keys.block_size, keys.rows.shape[2]).zero_()
        self._met_block = self._met[:, keys.num_samples :]
        self._left = [False] * len(self._blocks)

    def add(self, p: Tensor, rows: Tensor) -> None:
        """Add the products of ds and p (2, m + b, queries) with rows of q and grad_out (2, queries, D)."""
        if p.shape[1] == self._met.shape[1]:
            self._met.baddbmm_(p, rows)
        else:
            self._met[:, : p.shape[1]] += torch.bmm(p, rows)

    def leave(self, block: int) -> None:
        """Hand over what a block has got before another one is met."""
        total, here = self._blocks[block], self._met_block
        if total.shape[1] != here.shape[1]:
            here = here[:, : total.shape[1]]
        if self._left[block]:
            total.addcmul_(here, self._factors)
        else:
            torch.mul(here, self._factors, out=total)
        self._left[block] = True
        here.zero_()

    def sorted(self) -> Tensor:
        """The gradients (2, keys, D), of keys and of values, in sorted order, once every block is left."""
        for block, left in zip(self._blocks, self._left, strict=True):
            if not left:
                block.zero_()
        samples = self._met[:, : self._num_samples].mul_(self._factors)
        return self._total.index_add_(1, self._keys.samples, samples)


class QueryRows:
    """Rows of the queries of one head in sorted order, with the two columns that RowKeys has a counterpart of."""

    def __init__(self, level: LevelPlan, b: int, h: int) -> None:
        self.order = level.query_order[b, h, 0].long()
        self.runs = list(runs(level.tile_first[b, h, 0], level.tile_count[b, h, 0], level.tile_block[b, h, 0, :, 0]))
        self.sizes = [run.stop - run.first for run in self.runs]

    def fill(self, into: Tensor, x: Tensor, shift: Tensor | None, log_weight: float) -> None:
        """into (queries, D + 2) = the rows of x (queries, D), the factor of the logarithms and -shift (queries,)."""
        width = x.shape[1]
        take(x, self.order, into[:, :width])
        into[:, width], into[:, width + 1] = log_weight, 0.0
        if shift is not None:
            torch.neg(shift.index_select(0, self.order), out=into[:, width + 1])

    def unsorted(self, rows: Tensor, into: Tensor) -> None:
        """into = rows, in sorted order, back in the order of the queries."""
        take(rows, inverse(self.order), into)


def take(rows: Tensor, index: Tensor, into: Tensor) -> None:
    """into = rows[index], rounded to the dtype of into."""
    if rows.dtype == into.dtype:
        torch.index_select(rows, 0, index, out=into)
    else:
        into.copy_(rows.index_select(0, index))


def inverse(order: Tensor) -> Tensor:
    """The inverse of a permutation."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
