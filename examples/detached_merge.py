"""HyperAttention at a causal plan, part by part and dense, with or without the gradient of the log-sum-exps.

For comparison only, and no part of the library. One published code merges the partial attentions (the exact leaf, and
for each level the block and the sampled keys) by log-sum-exps through which no gradient passes. Its output is right and
its gradient is not: how much a part counts depends on q and k too. Here both gradients come from autograd, over the
same weights as in `hyperattn_core.oracle`, so that nothing else differs between the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, LevelPlan

# Logit of a key that is not met: finite, so that a part without any key has a gradient of 0, not NaN.
_ABSENT = -1e9


@dataclass(frozen=True)
class Part:
    """Weights of the keys that the queries of each node meet in one part.

    Attributes:
        node_len: S; node g has the keys [2gS, 2gS + S) and the queries that follow them, a leaf both in [gS, gS + S).
        is_leaf: whether this is the exact part on the diagonal.
        weights: (B or 1, H or 1, G or 1, S, S), 0 for a key that is not met; (B, H, G, 1, 1) for a mean key.
        shares: (B, H, G, 1, S), those of the keys in the mean key, None for another part.
    """

    node_len: int
    is_leaf: bool
    weights: Tensor
    shares: Tensor | None = None


def check_lengths(seq_len: int, min_seq_len: int) -> None:
    """Raise ValueError unless all nodes of the plan are full, which is all that is written down here."""
    leaves, rest = divmod(seq_len, min_seq_len)
    if rest or leaves < 2 or leaves & (leaves - 1):
        raise ValueError(
            f"the context must be min_seq_len={min_seq_len} times 2, 4, 8 or another power of two, got {seq_len}"
        )


def merged_parts(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, detach: bool, scale: float | None = None
) -> Tensor:
    """Softmax attention within each part of a causal plan, and the mean of the parts by their log-sum-exps.

    Args:
        q: queries (B, H, N, D).
        k: keys (B, H, N, D).
        v: values (B, H, N, Dv).
        plan: a causal plan for them.
        detach: let no gradient pass through the log-sum-exps; without, the gradient is that of the estimator.
        scale: factor of the logits, 1 / sqrt(D) if None.

    Returns:
        out (B, H, N, Dv), differentiable by autograd, with memory that grows with N squared.
    """
    scale = q.shape[3] ** -0.5 if scale is None else scale
    attended = [_attend(part, q, k, v, scale, detach) for part in parts_of(plan, q.dtype)]
    shares = torch.stack([lse for _, lse in attended]).softmax(dim=0)
    return (shares.unsqueeze(-1) * torch.stack([out for out, _ in attended])).sum(dim=0)


def parts_of(plan: AttentionPlan, dtype: torch.dtype = torch.float64) -> list[Part]:
    """The leaves, and for each level block, samples and, with "truncated" sampling, mean key: no key is in two parts of
    a query but through the mean."""
    if plan.leaf_len is None:
        raise ValueError("plan must be causal and longer than min_seq_len: there is nothing to merge in another one")
    check_lengths(plan.shape[3], plan.leaf_len)
    if plan.params.pairing == "routed":
        raise ValueError("plan must have one block for each query, and those of pairing='routed' have several")
    device = plan.levels[0].key_order.device
    leaf = torch.ones(plan.leaf_len, plan.leaf_len, dtype=dtype, device=device).tril()
    parts = [Part(plan.leaf_len, True, leaf.expand(1, 1, 1, -1, -1))]
    for level in plan.levels:
        same_block, sampled = _level_weights(level, dtype)
        parts += [Part(level.node_len, False, weights) for weights in (same_block, sampled * (1 - same_block))]
        if plan.params.sampling == "truncated":
            parts.append(_mean_key(level, sampled, plan.params.block_size))
    return parts


def _mean_key(level: LevelPlan, sampled: Tensor, block_size: int) -> Part:
    """The part of a level's mean keys, from the weights of its samples (B, H, G, 1, S)."""
    is_certain = sampled == 1.0
    count = level.node_len - is_certain.sum(4, keepdim=True)
    lack = count - sampled.masked_fill(is_certain, 0.0).sum(4, keepdim=True)
    weights = lack.clamp(min=0.0) * max(0.0, 1.0 - block_size / level.node_len)
    return Part(level.node_len, False, weights, (~is_certain).to(sampled.dtype) / count.clamp(min=1))


def _level_weights(level: LevelPlan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """True where a query meets a key in its block (B, H, G, S, S), and the weights of the samples (B, H, G, 1, S)."""
    length = level.node_len
    slots = torch.arange(length, device=level.key_order.device)
    first, count = level.tile_first.unsqueeze(-1), level.tile_count.unsqueeze(-1)
    in_tile = (slots >= first) & (slots < first + count)
    block_of_slot = (in_tile * level.tile_block).sum(dim=3)
    query_block = torch.zeros_like(block_of_slot).scatter(3, level.query_order.long() % length, block_of_slot)
    keys = level.key_order.long() % length
    key_block = torch.zeros_like(keys).scatter(3, keys, (slots // level.block_size).expand_as(keys))
    sampled = torch.zeros(keys.shape, dtype=torch.float64, device=keys.device)
    weight = level.sample_weight.expand(level.sample_index.shape)
    sampled = sampled.scatter_add(3, keys.gather(3, level.sample_index.long()), weight)
    return (query_block.unsqueeze(4) == key_block.unsqueeze(3)).to(dtype), sampled.unsqueeze(3).to(dtype)


def _attend(part: Part, q: Tensor, k: Tensor, v: Tensor, scale: float, detach: bool) -> tuple[Tensor, Tensor]:
    """Attention of all N queries over the keys of one part; a query outside of it gets a log-sum-exp of almost -inf."""
    if part.is_leaf:
        q, k, v = (x.unflatten(2, (-1, part.node_len)) for x in (q, k, v))
    else:
        halves = [x.unflatten(2, (-1, 2, part.node_len)) for x in (q, k, v)]
        q, k, v = halves[0][:, :, :, 1], halves[1][:, :, :, 0], halves[2][:, :, :, 0]
    if part.shares is not None:
        k, v = part.shares @ k, part.shares @ v
    logits = (scale * q) @ k.transpose(3, 4) + part.weights.log().clamp_(min=_ABSENT)
    out = logits.softmax(dim=4) @ v
    lse = (logits.detach() if detach else logits).logsumexp(dim=4)
    if not part.is_leaf:
        out = torch.stack([torch.zeros_like(out), out], dim=3).flatten(3, 4)
        lse = torch.stack([torch.full_like(lse, _ABSENT), lse], dim=3).flatten(3, 4)
    return out.flatten(2, 3), lse.flatten(2, 3)
