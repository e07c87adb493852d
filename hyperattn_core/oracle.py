"""The estimator written as the formula says, dense and in float64: slow, obvious, the judge of every backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyperattn_core.exact import default_scale
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan


def weight_matrix(plan: AttentionPlan) -> Tensor:
    """The weight of every key in every query's sums at a plan: float64 (B, H, Nq, Nk), on the CPU; no mean keys.

    1 for a key of the block that the query meets (and for keys 0..t of the query's own leaf), the inverse sampling rate
    for each time another key is sampled, 0 for a key that is not met. Its expectation over seeds is 1 for every key
    that the mask allows, which is what makes both sums unbiased, but with "truncated" sampling.
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


def mean_key_matrices(plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """The mean keys of "truncated" sampling, one of each of the M nodes of all levels: float64, on the CPU.

    Returns:
        averages (B, H, M, Nk), whose products with keys and values are the mean ones, and weights (B, H, Nq, M): for
        the queries of a node, what its samples lack of the number of its uncertain keys (those that are no sample of
        weight one), times the part of the keys that is not in the query's block.
    """
    batch, heads, kv_heads, num_queries, num_keys = plan.shape
    count = sum(level.key_order.shape[2] for level in plan.levels) if plan.params.sampling == "truncated" else 0
    averages = torch.zeros(batch, heads, count, num_keys, dtype=torch.float64, device="cpu")
    weights = torch.zeros(batch, heads, num_queries, count, dtype=torch.float64, device="cpu")
    nodes = [(level, node) for level in plan.levels for node in range(level.key_order.shape[2])][:count]
    for column, (level, node) in enumerate(nodes):
        for b in range(batch):
            for h in range(heads):
                key_row = (b, h // (heads // kv_heads), node)
                order, drawn = level.key_order[key_row].long().cpu(), level.sample_weight[key_row].cpu()
                samples = order[level.sample_index[key_row].long().cpu()]
                uncertain = order[~torch.isin(order, samples[drawn == 1.0])]
                part = 1.0 - plan.params.block_size / level.node_len
                if len(uncertain) and part > 0:
                    averages[b, h, column, uncertain] = 1.0 / len(uncertain)
                    lack = max(0.0, len(uncertain) - float(drawn[drawn != 1.0].sum()))
                    tiles = (x[b, h, node].tolist() for x in (level.tile_first, level.tile_count))
                    for first, length in zip(*tiles, strict=True):
                        queries = level.query_order[b, h, node, first : first + length].long().cpu()
                        weights[b, h, queries, column] = lack * part
    return averages, weights


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
    averages, of_means = (x.to(q.device) for x in mean_key_matrices(plan))
    weights = torch.cat([weight_matrix(plan).to(q.device), of_means], dim=3)
    group = q.shape[1] // k.shape[1]
    heads = (x.repeat_interleave(group, dim=1).double() for x in (k, v))
    k, v = (torch.cat([x, averages @ x], dim=2) for x in heads)
    logits = default_scale(q, scale) * (q.double() @ k.transpose(2, 3))
    logits = torch.where(weights > 0, logits + weights.clamp(min=1e-300).log(), -math.inf)
    return logits.softmax(dim=-1) @ v, logits.logsumexp(dim=-1)
