"""One level of the estimator in PyTorch on the CPU, run by run: the queries that meet a block, as they are, untiled.

Samples and block lie in one matrix of keys (sorted_rows.py): a run is two products forward and five backward, of just
the rows there are. Which rows share a product depends on the data, and with it the last bit of a result: causal calls,
where an output must not depend on later tokens to the last bit, go through tiles.py instead.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hyperattn_core.exact_aten import BackwardInputs, Gradients
from hyperattn_core.planning.plan import LevelPlan
from hyperattn_core.precision import rounds_products
from hyperattn_core.torch_backend.scratch import Buffers
from hyperattn_core.torch_backend.sorted_rows import MetGrads, QueryRows, RowKeys, inverse, take
from hyperattn_core.torch_backend.tiles import LN_2, LOG2_E

_SMALL_LOGIT = 32.0


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
                keys.add_weights(p, run.block)
                if not small:
                    # The logarithm keeps sums of exponentials and finite values from overflowing.
                    p.sub_(torch.amax(p, 1, keepdim=True, out=part_top).add_(math.ceil(math.log2(p.shape[1]))))
                torch.sum(p.exp2_(), 1, keepdim=True, out=part_total)
                torch.mm(p, values, out=part_out)
            queries.unsorted(sorted_out.div_(total), out[b, h])
            queries.unsorted(top.double().add_(total.log2_()).mul_(LN_2).view(-1), lse[b, h])
    return out, lse


def runs_backward(level: LevelPlan, inputs: BackwardInputs, delta: Tensor, scale: float, scratch: Buffers) -> Gradients:
    """Gradients of runs_forward in the dtypes of q, k and v: p = w exp(s - lse), ds = p (grad_out.v - delta).

    Large logits are made just as in the forward pass and then shifted: rounded in another way, their exponentials would
    not be those that add up to exp(lse).
    """
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
    shifted = not rounds_products(q.device, scratch.dtype) and bool(inputs.lse.abs().max() <= _SMALL_LOGIT)
    for b, kv_head, members in _rows(q, k):
        keys = RowKeys(level, k, v, (b, kv_head), (scale * LOG2_E, LN_2), scratch, shifted=shifted)
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
                if shifted:
                    torch.bmm(met, part, out=products[:2])
                else:
                    logits = scratch.get("p", part.shape[2], met.shape[1])
                    keys.add_weights(torch.mm(part[0].t(), met[0].t(), out=logits), block)
                    torch.add(logits.t(), part[0, -1], out=products[0])
                    torch.mm(met[1], part[1], out=products[1]).add_(part[1, -1])
                # Keys and values have met q and grad_out; of those two, q meets ds and grad_out p: first and last.
                ds, dp, p = products
                torch.exp2(ds, out=p)
                torch.mul(p, dp, out=ds)
                torch.mm(ds.t(), met_keys, out=part_dq)
                grads.add(products[::2], part_rows)
            grads.leave(block)
            queries.unsorted(sorted_dq, dq[b, h])
        place = inverse(keys.order)
        for grad, into in zip(grads.sorted(), (dk, dv), strict=True):
            take(grad, place, into[b, kv_head])
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
