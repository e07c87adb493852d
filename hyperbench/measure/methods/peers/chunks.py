"""Exact attention within chunks of sorted queries and keys, the part that hashing methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def order_of(hashes: Tensor) -> Tensor:
    """Positions (B, H, N) in order of their hash, those of one bucket in order of position."""
    return hashes.sort(dim=2, stable=True).indices


def attend_in_chunks(
    inputs: tuple[Tensor, Tensor, Tensor],
    orders: tuple[Tensor, Tensor],
    size: int,
    *,
    is_causal: bool = False,
    look_back: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention of each chunk of sorted queries to the chunk of sorted keys of the same number.

    Args:
        inputs: queries (B, H, N, D), already scaled, keys (B, H, N, D) and values (B, H, N, Dv).
        orders: positions of queries and of keys (B, H, N), sorted.
        size: positions of a chunk, at most N; the last chunk is shorter where it does not divide N.
        is_causal: queries meet their own key, and of the others those at earlier positions.
        look_back: queries meet the chunk before as well, those of the first chunk the last.

    Returns:
        Output (B, H, N, Dv) and log-sum-exp (B, H, N).
    """
    queries, keys, values = inputs
    query_order, key_order = orders
    seq_len = queries.shape[2]

    def met(x: Tensor) -> Tensor:
        return torch.cat([x, x.roll(1, dims=2)], dim=3) if look_back and x.shape[2] > 1 else x

    # What fills the last chunk up is at position N, later than all.
    query_at, key_at = (_cut(order, size, filler=seq_len) for order in orders)
    own_queries = _cut(rows_at(queries, query_order), size)
    met_keys, met_values = (met(_cut(rows_at(x, key_order), size)) for x in (keys, values))
    logits = own_queries @ met_keys.transpose(3, 4)
    bound = query_at.unsqueeze(4) if is_causal else seq_len
    logits = logits.masked_fill(met(key_at).unsqueeze(3) >= bound, -torch.inf)
    if is_causal:
        own_keys, own_values = (_cut(rows_at(x, query_order), size) for x in (keys, values))
        logits = torch.cat([logits, (own_queries * own_keys).sum(dim=4, keepdim=True)], dim=4)
    lse = logits.logsumexp(dim=4, keepdim=True)
    weights = (logits - lse).exp()
    out = weights[..., : met_keys.shape[3]] @ met_values
    if is_causal:
        out = out + weights[..., -1:] * own_values
    back = query_order.argsort(dim=2)
    out, lse = (rows_at(x.flatten(2, 3)[:, :, :seq_len], back) for x in (out, lse))
    return out, lse.squeeze(3)


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Rows (B, H, M, D) of x (B, H, N, D) at positions (B, H, M)."""
    return x.gather(2, index.unsqueeze(3).expand(-1, -1, -1, x.shape[3]))


def _cut(x: Tensor, size: int, filler: int = 0) -> Tensor:
    """x (B, H, N, ...) cut into chunks (B, H, C, size, ...), the last one filled up."""
    after = [0] * (2 * (x.dim() - 3)) + [0, -x.shape[2] % size]
    return pad(x, after, value=filler).unflatten(2, (-1, size))
