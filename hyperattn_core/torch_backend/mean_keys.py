"""The mean keys of "truncated" sampling: one key more in each node, for what its truncated samples lack of the others.

Samples of a node whose weight is one are certain: each key of a probability of one is among them. The other U keys of
the node are uncertain. The samples drawn from them weigh MAX_WEIGHT at most, together W. Their mean key, with the mean
of their values, weighs max(0, U - W) (1 - b / S): one query in S / b has those of a block besides. The union with what
else a query meets is a merge of two attentions.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.exact_aten import Attended, BackwardInputs, Gradients, lse_dtype
from hyperattn_core.merge import merge_into
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.levels import LevelShape, level_shapes, node_rows
from hyperattn_core.planning.plan import LevelPlan, plan_shape

_DELTA_ROWS = 2**14


@dataclass(frozen=True)
class MeanKeys:
    """The mean keys of a level, zero where the samples lack nothing; else a NaN of a node makes its own NaN.

    Attributes:
        level: its nodes.
        shares: (B, Hkv, G, S), 1 / U for an uncertain key, 0 for a certain one, in order of position.
        log_weight: (B, H, G), -inf where the samples lack nothing.
        key: (B, H, G, D), repeated for the heads of a group.
        value: (B, H, G, Dv), likewise.
    """

    level: LevelShape
    shares: Tensor
    log_weight: Tensor
    key: Tensor
    value: Tensor

    def parts(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """level.query_rows of tensors, each with the log weights, keys and values of its nodes in front."""
        rows = self.level.query_rows(*tensors)
        nodes = [part[0].shape[2] for part in rows]
        own = zip(*(x.split(nodes, dim=2) for x in (self.log_weight, self.key, self.value)), strict=True)
        return [(*mine, *theirs) for mine, theirs in zip(own, rows, strict=True)]


def mean_keys(
    q: Tensor, k: Tensor, v: Tensor, levels: Sequence[LevelPlan], params: HyperAttentionParams, *, is_causal: bool
) -> list[MeanKeys]:
    """Those of the levels of a plan that have samples; inputs are q (B, H, Nq, D), k (B, Hkv, Nk, D), v likewise.

    With other sampling there are none.
    """
    if params.sampling != "truncated":
        return []
    shapes = level_shapes(plan_shape(q, k), params, is_causal=is_causal)
    group = q.shape[1] // k.shape[1]
    # Where every key is sampled, or one block holds all, nothing is lacking.
    return [
        _level_mean_keys(shape, level, k, v, params.block_size, group)
        for shape, level in zip(shapes, levels, strict=True)
        if 0 < level.sample_index.shape[3] < level.node_len
    ]


def _level_mean_keys(
    shape: LevelShape, level: LevelPlan, k: Tensor, v: Tensor, block_size: int, group: int
) -> MeanKeys:
    dtype = lse_dtype(k)
    is_certain = level.sample_weight == 1.0
    count = shape.node_len - is_certain.sum(3).double()
    lack = (count - level.sample_weight.masked_fill(is_certain, 0.0).sum(3)).clamp(min=0.0)
    log_weight = (lack * max(0.0, 1.0 - block_size / shape.node_len)).log().to(dtype)
    share = (1.0 / count).unsqueeze(3)
    shares = share.to(dtype).expand(*count.shape, shape.node_len).contiguous()
    sampled = level.key_order.gather(3, level.sample_index.long()).long() % shape.node_len
    shares.scatter_(3, sampled, torch.where(is_certain, 0.0, share).to(dtype))
    sums = (torch.matmul(shares.unsqueeze(3), _rows(x, shape).to(dtype)).squeeze(3) for x in (k, v))
    # What lacks nothing keeps a NaN to itself.
    means = (x.masked_fill(log_weight.isneginf().unsqueeze(3), 0.0) for x in sums)
    per_head = (x.repeat_interleave(group, dim=1) for x in (log_weight, *means))
    return MeanKeys(shape, shares, *per_head)


def _rows(x: Tensor, level: LevelShape) -> Tensor:
    """The rows of the keys of each node of x (B, Hkv, Nk, ...): a view (B, Hkv, G, S, ...)."""
    return node_rows(x, level.key_starts, level.node_len)


def merge_mean_keys(q: Tensor, attended: Attended, means: Sequence[MeanKeys], scale: float) -> Attended:
    """out (B, H, Nq, Dv) and lse (B, H, Nq) with the mean keys among what a query meets; they may be overwritten."""
    if not means:
        return attended
    out, lse = attended[0].to(lse_dtype(q)), attended[1]
    for level in means:
        for log_weight, key, value, q_rows, out_rows, lse_rows in level.parts(q, out, lse):
            logits = _products(q_rows, key * scale) + log_weight.unsqueeze(3)
            merge_into(out_rows, lse_rows, value.unsqueeze(3), logits)
    return out.to(q.dtype), lse


def add_mean_key_gradients(
    inputs: BackwardInputs, grads: Gradients, means: Sequence[MeanKeys], scale: float
) -> Gradients:
    """Add the gradients through the mean keys to dq, dk and dv, which may be overwritten, from the final out and lse.

    As for every key, p = w exp(s - lse) and ds = p (grad_out.v - delta); an uncertain key has 1 / U of the mean's.
    """
    if not means:
        return grads
    dtype, delta = lse_dtype(inputs.q), _delta(inputs)
    dq, dk, dv = (grad.to(dtype) for grad in grads)
    for level in means:
        of_keys: list[tuple[Tensor, Tensor]] = []
        for log_weight, key, value, *rows in level.parts(inputs.q, inputs.grad_out, inputs.lse, delta, dq):
            q_rows, grad_rows, lse_rows, delta_rows, dq_rows = rows
            logits = _products(q_rows, key * scale) + log_weight.unsqueeze(3)
            p = (logits - lse_rows).exp().to(dtype)
            ds = p * (_products(grad_rows, value) - delta_rows) * scale
            dq_rows.addcmul_(ds.unsqueeze(4), key.unsqueeze(3))
            of_keys.append((_sums(ds, q_rows), _sums(p, grad_rows)))
        for grad, parts in zip((dk, dv), zip(*of_keys, strict=True), strict=True):
            of_mean = torch.cat(parts, dim=2).unflatten(1, (grad.shape[1], -1)).sum(2)
            _rows(grad, level.level).addcmul_(level.shares.unsqueeze(4), of_mean.unsqueeze(3))
    q, k, v = inputs.q, inputs.k, inputs.v
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _delta(inputs: BackwardInputs) -> Tensor:
    """inputs.delta(), in slices: no product as large as the output is held."""
    slices = (slice(i, i + _DELTA_ROWS) for i in range(0, inputs.q.shape[2], _DELTA_ROWS))
    parts = (inputs.map(operator.itemgetter((slice(None), slice(None), rows))) for rows in slices)
    return torch.cat([part.delta() for part in parts], dim=2)


def _products(rows: Tensor, x: Tensor) -> Tensor:
    """The inner products (B, H, G, Sq) of rows (B, H, G, Sq, D) with x (B, H, G, D)."""
    return torch.matmul(rows.to(x.dtype), x.unsqueeze(4)).squeeze(4)


def _sums(weights: Tensor, rows: Tensor) -> Tensor:
    """Sums (B, H, G, D) of rows (B, H, G, Sq, D) with weights (B, H, G, Sq)."""
    return torch.matmul(weights.unsqueeze(3), rows.to(weights.dtype)).squeeze(3)
