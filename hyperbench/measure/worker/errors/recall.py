"""Softmax mass that the blocks and the sample of a plan catch, against random blocks and the best keys there are.

All masses are shares of a query's whole row of D^-1 A, so that they add up; each is a mean over queries and heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan
from hyperattn_core.planning.membership import Membership, membership
from hyperbench.measure.worker.errors.reference import Reference, chunks, each_head, softmax_rows
from hyperbench.measure.worker.errors.rows import Estimate

#: mass_leaf, of the exact part on the diagonal, is there under a causal mask alone.
LEAF, BLOCKS, SAMPLE = "mass_leaf", "mass_blocks", "mass_sample"
RANDOM, BEST = "mass_random_blocks", "mass_best"


def caught_masses(q: Tensor, k: Tensor, plan: AttentionPlan, reference: Reference) -> dict[str, Estimate]:
    """Masses that a plan for q (B, H, N, D) and k (B, Hkv, N, D) catches, at the reference's rows.

    `mass_blocks`: the keys of a query's blocks. `mass_sample`: its sampled keys outside them. `mass_random_blocks`: the
    expectation for as many random keys (of each node) as its blocks have. `mass_best`: the best keys, as many as its
    blocks and its sample have together. Under a causal mask they are of keys before the query's leaf, and `mass_leaf`
    is that of the leaf itself. Where the plan is exact attention, everything is one block, or one leaf.
    """
    rows, names = reference.rows, [*([LEAF] if plan.is_causal else []), BLOCKS, SAMPLE, RANDOM, BEST]
    if plan.is_exact:
        whole = (LEAF,) if plan.is_causal else (BLOCKS, RANDOM, BEST)
        return {name: Estimate(float(name in whole)) for name in names}
    q, k = (x.to(reference.out.dtype) for x in (q, k))
    totals = {name: torch.zeros(len(rows), dtype=torch.float64, device=q.device) for name in names}
    for batch, head, kv_head in each_head(q, k):
        members = [membership(plan, level, batch, head) for level in plan.levels]
        for part in chunks(len(rows), k.shape[2]):
            picked = rows.positions[part]
            probs, _ = softmax_rows(q[batch, head, picked], k[batch, kv_head], picked, plan.is_causal)
            for name, mass in _masses(probs, picked, members, plan.leaf_len).items():
                totals[name][part] += mass
    return {name: rows.mean(total / (q.shape[0] * q.shape[1])) for name, total in totals.items()}


def _masses(probs: Tensor, picked: Tensor, members: Sequence[Membership], leaf_len: int | None) -> dict[str, Tensor]:
    """The masses (R,) of rows of D^-1 A (R, N), of the queries at these positions."""
    found = {name: probs.new_zeros(len(picked)) for name in (BLOCKS, SAMPLE, RANDOM)}
    count = torch.zeros_like(picked)
    for member in members:
        in_block, in_node, in_sample = member.met(picked)
        found[BLOCKS] += (probs * in_block).sum(1)
        found[SAMPLE] += (probs * in_sample).sum(1)
        num_block, num_node = in_block.sum(1), in_node.sum(1).clamp(min=1)
        found[RANDOM] += num_block.to(probs.dtype) / num_node * (probs * in_node).sum(1)
        count += num_block + in_sample.sum(1)
    if leaf_len is not None:
        positions = torch.arange(probs.shape[1], device=probs.device)
        in_leaf = picked.unsqueeze(1) // leaf_len == positions // leaf_len
        found[LEAF] = (probs * in_leaf).sum(1)
        probs = probs.masked_fill(in_leaf, 0.0)
    found[BEST] = _largest_sum(probs, count)
    return found


def _largest_sum(probs: Tensor, count: Tensor) -> Tensor:
    """The sum of the `count` (R,) largest entries of each row of probs (R, N)."""
    most = int(count.max())
    if most == 0:
        return probs.new_zeros(len(count))
    sums = probs.topk(most, dim=1).values.cumsum(1).gather(1, (count - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(count > 0, sums, 0.0)
