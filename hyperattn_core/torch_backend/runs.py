"""One level of the estimator in PyTorch on the CPU, run by run: the queries that meet a block, as they are, untiled.

Samples and block lie in one matrix of keys, so that a run is two products forward and five backward, of just the rows
there are. Which rows share a product depends on the data, and with it the last bit of a result: causal calls, where an
output must not depend on later tokens to the last bit, go through tiles.py instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.exact_aten import BackwardInputs, Gradients
from hyperattn_core.planning.plan import LevelPlan
from hyperattn_core.precision import rounds_products
from hyperattn_core.torch_backend.scratch import Buffers
from hyperattn_core.torch_backend.tiles import LN_2, LOG2_E

_RUN_QUERIES = 512
_SMALL_LOGIT = 32.0


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
    The shift is last, so that both passes round the same before it. Where products round their operands the columns are
    zero, and add_columns adds what they stand for.
    """

    def __init__(
        self,
        level: LevelPlan,
        k: Tensor,
        v: Tensor,
        row: tuple[int, int],
        factors: tuple[float, float],
        scratch: Buffers,
    ) -> None:
        self.order = level.key_order[row][0].long()
        self.samples = level.sample_index[row][0].long()
        self.num_samples, self.block_size = self.samples.shape[0], level.block_size
        width = k.shape[3]
        self.rows = scratch.get("sorted_rows", 2, k.shape[2], width)
        _take(k[row], self.order, self.rows[0])
        _take(v[row], self.order, self.rows[1])
        self._factors = torch.tensor(factors, dtype=scratch.dtype, device=k.device).view(2, 1, 1)
        self._blocks = self.rows.split(self.block_size, dim=1)
        blocks = torch.arange(level.num_blocks, device=k.device).unsqueeze(1)
        log_weights = level.sample_weight.log2().to(scratch.dtype)
        # A sample that lies in the block weighs 0: it is there already.
        self._log_weights = torch.where(self.samples // self.block_size == blocks, -math.inf, log_weights).unbind()
        self._have_columns = not rounds_products(k.device, scratch.dtype)
        self._met = scratch.get("met", 2, self.num_samples + self.block_size, width + 2)
        self._met[:, :, width] = 0.0
        self._met[:, :, width + 1] = float(self._have_columns)
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
            if self._have_columns:
                self._weight_column.copy_(self._log_weights[block])
            self._block = block
        return views

    def add_columns(self, products: Tensor, rows: Tensor, block: int) -> None:
        """Add the two columns of rows (..., D + 2, queries) to products (..., m + b, queries), of logits first."""
        if not self._have_columns:
            products.view(-1, *products.shape[-2:])[0, : self.num_samples] += self._log_weights[block].unsqueeze(1)
            products += rows[..., -1:, :]


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
        self.runs = list(runs(level.tile_first[b, h, 0], level.tile_count[b, h, 0], level.tile_block[b, h, 0]))
        self.sizes = [run.stop - run.first for run in self.runs]

    def fill(self, into: Tensor, x: Tensor, shift: Tensor | None, log_weight: float) -> None:
        """into (queries, D + 2) = the rows of x (queries, D), the factor of the logarithms and -shift (queries,)."""
        width = x.shape[1]
        _take(x, self.order, into[:, :width])
        into[:, width], into[:, width + 1] = log_weight, 0.0
        if shift is not None:
            torch.neg(shift.index_select(0, self.order), out=into[:, width + 1])

    def unsorted(self, rows: Tensor, into: Tensor) -> None:
        """into = rows, in sorted order, back in the order of the queries."""
        _take(rows, _inverse(self.order), into)


def runs_forward(
    level: LevelPlan, q: Tensor, k: Tensor, v: Tensor, scale: float, scratch: Buffers
) -> tuple[Tensor, Tensor]:
    """Estimate a level of one node a row: out (B, H, Nq, Dv) in the dtype of q, lse (B, H, Nq) in float64."""
    batch, heads, num_queries, width = q.shape
    if width != v.shape[3]:
        q, k, wide_v = _equally_wide(q, k, v)
        out, lse = runs_forward(level, q, k, wide_v, scale, scratch)
        return out[..., : v.shape[3]].contiguous(), lse
    out = torch.empty(batch, heads, num_queries, width, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, num_queries, dtype=torch.float64, device=q.device)
    for b, kv_head, members in _rows(q, k):
        keys = RowKeys(level, k, v, (b, kv_head), (scale * LOG2_E, 1.0), scratch)
        for h in members:
            queries = QueryRows(level, b, h)
            x = scratch.get("rows", num_queries, width + 2)
            queries.fill(x, q[b, h], None, 1.0)
            sorted_out = scratch.get("sorted_out", num_queries, width)
            total, top = scratch.get("totals", 2, num_queries, 1).zero_()
            small = _logits_are_small(x[:, :width], keys.rows, scale * LOG2_E)
            parts = zip(queries.runs, *(t.split(queries.sizes) for t in (x, sorted_out, total, top)), strict=True)
            for run, part, part_out, part_total, part_top in parts:
                met, _, values = keys.met(run.block)
                p = scratch.get("p", part.shape[0], met.shape[1])
                torch.mm(part, met[0].t(), out=p)
                keys.add_columns(p.t(), part.t(), run.block)
                if not small:
                    # The logarithm keeps sums of exponentials and finite values from overflowing.
                    p.sub_(torch.amax(p, 1, keepdim=True, out=part_top).add_(math.ceil(math.log2(p.shape[1]))))
                torch.sum(p.exp2_(), 1, keepdim=True, out=part_total)
                torch.mm(p, values, out=part_out)
            queries.unsorted(sorted_out.div_(total), out[b, h])
            queries.unsorted(top.double().add_(total.log2_()).mul_(LN_2).view(-1), lse[b, h])
    return out, lse


def runs_backward(level: LevelPlan, inputs: BackwardInputs, delta: Tensor, scale: float, scratch: Buffers) -> Gradients:
    """Gradients of runs_forward in the dtypes of q, k and v: p = w exp(s - lse), ds = p (grad_out.v - delta)."""
    q, k, v, grad_out = inputs.q, inputs.k, inputs.v, inputs.grad_out
    width = max(q.shape[3], v.shape[3])
    if q.shape[3] != v.shape[3]:
        wide_q, wide_k, wide_v, wide_grad = _equally_wide(q, k, v, grad_out)
        wide = dataclasses.replace(inputs, q=wide_q, k=wide_k, v=wide_v, grad_out=wide_grad)
        dq, dk, dv = runs_backward(level, wide, delta, scale, scratch)
        return dq[..., : q.shape[3]], dk[..., : k.shape[3]], dv[..., : v.shape[3]]
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    num_queries = q.shape[2]
    # Keys hold log2(e) for the exponential in base 2; its inverse in values and delta, and so in ds, undoes it in dq.
    shifts = ((inputs.lse * LOG2_E).to(scratch.dtype), delta * LN_2)
    for b, kv_head, members in _rows(q, k):
        keys = RowKeys(level, k, v, (b, kv_head), (scale * LOG2_E, LN_2), scratch)
        grads = MetGrads(keys, (scale * LOG2_E, 1.0), scratch)
        for h in members:
            queries = QueryRows(level, b, h)
            rows = scratch.get("rows", 2, num_queries, width + 2)
            for into, x, shift, log_weight in zip(rows, (q, grad_out), shifts, (1.0, 0.0), strict=True):
                queries.fill(into, x[b, h], shift[b, h], log_weight)
            sorted_dq = scratch.get("sorted_out", num_queries, width)
            parts = zip(
                queries.runs,
                rows.transpose(1, 2).split(queries.sizes, dim=2),
                rows[:, :, :width].split(queries.sizes, dim=1),
                sorted_dq.split(queries.sizes),
                strict=True,
            )
            block = queries.runs[0].block
            for run, part, part_rows, part_dq in parts:
                if run.block != block:
                    grads.leave(block)
                    block = run.block
                met, met_keys, _ = keys.met(block)
                products = scratch.get("products", 3, met.shape[1], part.shape[2])
                torch.bmm(met, part, out=products[:2])
                keys.add_columns(products[:2], part, block)
                # Keys and values have met q and grad_out; of those two, q meets ds and grad_out p: first and last.
                ds, dp, p = products
                torch.exp2(ds, out=p)
                torch.mul(p, dp, out=ds)
                torch.mm(ds.t(), met_keys, out=part_dq)
                grads.add(products[::2], part_rows)
            grads.leave(block)
            queries.unsorted(sorted_dq, dq[b, h])
        place = _inverse(keys.order)
        for grad, into in zip(grads.sorted(), (dk, dv), strict=True):
            _take(grad, place, into[b, kv_head])
    return dq, dk, dv


def _logits_are_small(q: Tensor, keys_and_values: Tensor, scale: float) -> bool:
    """True if no logit's exponential nor its product with a value can overflow or vanish, by the rows' norms alone.

    There is no need then to look for each row's maximum. A value row whose length is finite, and so its square,
    has space for 32 bits more; whatever is not a number is not small.
    """
    key, value = torch.linalg.vector_norm(keys_and_values, dim=2).amax(1).tolist()
    query = torch.linalg.vector_norm(q, dim=1).amax().item()
    return query * key * abs(scale) <= _SMALL_LOGIT and math.isfinite(value)


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


def _take(rows: Tensor, index: Tensor, into: Tensor) -> None:
    """into = rows[index], rounded to the dtype of into."""
    if rows.dtype == into.dtype:
        torch.index_select(rows, 0, index, out=into)
    else:
        into.copy_(rows.index_select(0, index))


def _inverse(order: Tensor) -> Tensor:
    """The inverse of a permutation."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(order.shape[0], device=order.device))
