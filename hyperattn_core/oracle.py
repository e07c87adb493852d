"""The estimator written as the formula says, dense and in float64: slow, obvious, the judge of every backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperattn_core.exact import default_scale
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan


def weight_matrix(plan: AttentionPlan) -> Tensor:
    """The weight of every key in every query's sums at a plan: float64 (B, H, Nq, Nk), on the CPU.

    1 for a key of the block that the query meets (and for keys 0..t of the query's own leaf), the inverse sampling rate
    for each time another key is sampled, 0 for a key that is not met. Its expectation over seeds is 1 for every key
    that the mask allows, which is what makes both sums unbiased.
    """
    batch, heads, kv_heads, num_queries, num_keys = plan.shape
    weights = torch.zeros(batch, heads, num_queries, num_keys, dtype=torch.float64, device="cpu")
    if plan.is_exact:
        weights += 1.0
        return weights.tril() if plan.is_causal else weights
    for level in plan.levels:
        for b in range(batch):
            for h in range(heads):
                for node in range(level.key_order.shape[2]):
                    _add_node(weights[b, h], level, (b, h, node), (b, h // (heads // kv_heads), node))
    if plan.leaf_len is not None:
        for start in range(0, num_queries, plan.leaf_len):
            leaf = slice(start, min(start + plan.leaf_len, num_queries))
            weights[..., leaf, leaf] += torch.ones_like(weights[0, 0, leaf, leaf]).tril()
    return weights


def _add_node(
    weights: Tensor, level: LevelPlan, query_row: tuple[int, int, int], key_row: tuple[int, int, int]
) -> None:
    """Add one node's blocks and samples to weights (Nq, Nk)."""
    key_order = level.key_order[key_row].long().cpu()
    query_order = level.query_order[query_row].long().cpu()
    samples = level.sample_index[key_row].long().cpu()
    sample_weight = level.sample_weight[key_row].cpu()
    per_query = level.blocks_per_tile / level.tile_size
    tiles = zip(level.tile_first[query_row], level.tile_count[query_row], level.tile_block[query_row], strict=True)
    for first, count, entries in ((int(f), int(c), i.tolist()) for f, c, i in tiles):
        for number, query in enumerate(query_order[first : first + count].tolist()):
            blocks = [block for block in entries[: max(1, int((number + 1) * per_query))] if block >= 0]
            for block in blocks:
                weights[query, key_order[block * level.block_size : (block + 1) * level.block_size]] += 1.0
            outside = ~torch.isin(samples // level.block_size, torch.tensor(blocks, device="cpu"))
            weights[query].index_add_(0, key_order[samples[outside]], sample_weight[outside])


def oracle_attention(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """The estimator at a plan: num = W exp(s q.k) v, den = W exp(s q.k), out = num / den, lse = log(den).

    Args:
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D).
        v: values (B, Hkv, Nk, Dv).
        plan: which keys each query meets, and with which weight.
        scale: factor of the logits, 1 / sqrt(D) if None.

    Returns:
        out (B, H, Nq, Dv) and lse (B, H, Nq), float64, differentiable by autograd; memory grows with Nq * Nk. A NaN in
        v reaches every row here, as 0 * NaN; weight_matrix says which rows meet it.
    """
    weights = weight_matrix(plan).to(q.device)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1).double(), v.repeat_interleave(group, dim=1).double()
    logits = default_scale(q, scale) * (q.double() @ k.transpose(2, 3))
    logits = torch.where(weights > 0, logits + weights.clamp(min=1e-300).log(), -math.inf)
    return logits.softmax(dim=-1) @ v, logits.logsumexp(dim=-1)
