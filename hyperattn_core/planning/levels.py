"""Number and positions of the nodes of a call's levels: they follow from the lengths alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams

#: (B, H, Hkv, Nq, Nk): batch, query heads, kv heads, queries and keys of a call.
CallShape = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class LevelShape:
    """Positions of the nodes of one level: they follow from the lengths alone.

    Attributes:
        index: 0 for the shortest nodes.
        node_len: S, keys per node.
        query_len: query slots per node; node g may fill fewer of them.
        key_starts: first key of each of the G nodes.
        query_starts: first query of each node.
        query_counts: queries of each node.
    """

    index: int
    node_len: int
    query_len: int
    key_starts: tuple[int, ...]
    query_starts: tuple[int, ...]
    query_counts: tuple[int, ...]

    @property
    def num_nodes(self) -> int:
        """G."""
        return len(self.key_starts)

    def query_rows(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Views of the rows of the queries (B, H, G, Sq, ...) of tensors (B, H, N, ...).

        They are those of the full nodes, then those of the last one if it has fewer queries.
        """
        full = sum(count == self.query_len for count in self.query_counts)
        parts = [(self.query_starts[:full], self.query_len)] if full else []
        parts += [((i,), count) for i, count in zip(self.query_starts[full:], self.query_counts[full:], strict=True)]
        return [tuple(node_rows(x, starts, length) for x in tensors) for starts, length in parts]

    def padded(self, x: Tensor) -> Tensor:
        """Rows of queries x (B, H, Nq, ...) with rows of zeros behind them, up to the last query slot."""
        missing = max(0, self.query_starts[-1] + self.query_len - x.shape[2])
        return torch.nn.functional.pad(x, (*(0, 0) * (x.dim() - 3), 0, missing)) if missing else x


def level_shapes(shape: CallShape, params: HyperAttentionParams, *, is_causal: bool) -> tuple[LevelShape, ...]:
    """The levels of a call with inputs of shape (B, H, Hkv, Nq, Nk); none where attention is exact."""
    num_queries, num_keys = shape[3], shape[4]
    if num_keys <= params.min_seq_len or num_queries == 0 or (not is_causal and _covers_all_keys(params, num_keys)):
        return ()
    if not is_causal:
        return (LevelShape(0, num_keys, num_queries, (0,), (0,), (num_queries,)),)
    levels = []
    for index, (node_len, num_nodes) in enumerate(causal_levels(num_keys, params.min_seq_len)):
        key_starts = tuple(2 * node_len * g for g in range(num_nodes))
        query_starts = tuple(s + node_len for s in key_starts)
        counts = tuple(min(node_len, num_keys - s) for s in query_starts)
        levels.append(LevelShape(index, node_len, node_len, key_starts, query_starts, counts))
    return tuple(levels)


def causal_levels(seq_len: int, leaf_len: int) -> Iterator[tuple[int, int]]:
    """Levels of the causal recursion (Algorithm 4): (keys per node, nodes) from the shortest nodes to the longest.

    Node g of a level with S keys pairs keys [2gS, 2gS + S) with the queries of [2gS + S, 2gS + 2S) below seq_len.
    """
    node_len = leaf_len
    while node_len < seq_len:
        yield node_len, -(-(seq_len - node_len) // (2 * node_len))
        node_len *= 2


def node_rows(x: Tensor, starts: tuple[int, ...], length: int) -> Tensor:
    """Rows [start, start + length) of x (B, H, N, ...) for each start, all equally far apart: a view (B, H, G, S, ...).

    Every node must lie within N.
    """
    step = starts[1] - starts[0] if len(starts) > 1 else 0
    sizes = (*x.shape[:2], len(starts), length, *x.shape[3:])
    strides = (*x.stride()[:2], step * x.stride(2), *x.stride()[2:])
    return x.as_strided(sizes, strides, x.storage_offset() + starts[0] * x.stride(2))


def _covers_all_keys(params: HyperAttentionParams, num_keys: int) -> bool:
    """True if the estimator is exact attention: one block holds every key, or every key is sampled once."""
    return params.one_block_holds(num_keys) or (params.sampling != "iid" and params.sample_size >= num_keys)
