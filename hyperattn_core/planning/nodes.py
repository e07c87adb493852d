"""The steps of a plan in PyTorch, for any device, level by level: hash, probe, sort and pair or route, sample."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.planning.draws import projections
from hyperattn_core.planning.levels import LevelShape, node_rows
from hyperattn_core.planning.lsh import codes_above, gray_rank, hash_ranks, project, sort_by_rank
from hyperattn_core.planning.packed import Settings
from hyperattn_core.planning.pairing import block_of_rank, cut_tiles, rank_pairing, row_arange
from hyperattn_core.planning.plan import LevelPlan, plan_shape
from hyperattn_core.planning.probes import probe_scores
from hyperattn_core.planning.routing import routed_blocks
from hyperattn_core.planning.samples import samples_of

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Planner:
    """The steps of the plan of one call.

    Attributes:
        q: queries (B, H, Nq, D), without a gradient.
        k: keys (B, Hkv, Nk, D), without a gradient.
        seed: of the projections, probes and samples.
        settings: parameters, mask and tile size.
        scale: factor of the logits, as probes and routing see them.
    """

    q: Tensor
    k: Tensor
    seed: int
    settings: Settings
    scale: float

    def hash(self) -> Pair:
        """Ranks or projections of queries and keys, made once for all levels: what their hashes follow from.

        With "angular" hashing these are the ranks (B, H, Nq) and (B, Hkv, Nk), int32; with "centred", where each node
        has thresholds of its own, the projections (B, H, Nq, r) and (B, Hkv, Nk, r).
        """
        params = self.settings.params
        directions = projections(self.seed, self.q.shape[-1], params.num_projections, str(self.q.device))
        hashed = hash_ranks if params.hashing == "angular" else project
        return hashed(self.q, directions), hashed(self.k, directions)

    def probe(self, level: LevelShape) -> Tensor | None:
        """The scores of a level's keys (B, Hkv, G, S) where probes are used, else None."""
        params = self.settings.params
        if not params.uses_probes:
            return None
        return probe_scores(
            level, self.q, self.k, params.num_probes, self.seed, self.scale, is_causal=self.settings.is_causal
        )

    def sort(self, level: LevelShape, hashes: Pair) -> LevelPlan:
        """Sort and pair the nodes of a level, without samples; hashes are those of `hash`."""
        (batch, heads), kv_heads, device = self.q.shape[:2], self.k.shape[1], self.k.device
        params, sizes, nodes = self.settings.params, self.settings.tiles(level), level.num_nodes
        num_ranks = 2**params.num_projections
        query_ranks, key_ranks = self._node_ranks(level, hashes)
        key_order, key_starts = sort_by_rank(key_ranks.reshape(-1, level.node_len), num_ranks)
        query_order, query_starts = sort_by_rank(query_ranks.reshape(-1, level.query_len), num_ranks)
        if params.pairing == "bucket":
            target = block_of_rank(key_starts, sizes.block_size, sizes.num_blocks).view(batch, kv_heads, -1, num_ranks)
            target = target.repeat_interleave(heads // kv_heads, dim=1).view(-1, num_ranks)
            first_rank = torch.searchsorted(target, row_arange(target.shape[0], sizes.num_blocks + 1, device))
            block_first = query_starts.gather(1, first_rank)
        else:
            block_first = rank_pairing(level, sizes.block_size, device).expand(batch, heads, -1, -1).flatten(0, 2)
        tiles = cut_tiles(block_first, self.settings.tile_size, sizes.num_tiles)
        first, count, block = (x.view(batch, heads, nodes, -1) for x in tiles)
        orders = (key_order.view(batch, kv_heads, nodes, -1), query_order.view(batch, heads, nodes, -1))
        return self._planned(level, orders, first, count, block.unsqueeze(-1))

    def route(self, level: LevelShape) -> LevelPlan:
        """Choose the blocks of a level with "routed" pairing, without samples: queries and keys stay where they are."""
        (batch, heads), kv_heads, device = self.q.shape[:2], self.k.shape[1], self.k.device
        sizes, tile_size, nodes = self.settings.tiles(level), self.settings.tile_size, level.num_nodes
        longest = torch.arange(max(level.node_len, level.query_len), dtype=torch.int32, device=device)
        key_order = longest[: level.node_len].expand(batch, kv_heads, nodes, -1)
        query_order = longest[: level.query_len].expand(batch, heads, nodes, -1)
        first = torch.arange(0, sizes.num_tiles * tile_size, tile_size, dtype=torch.int32, device=device)
        counts = torch.tensor(level.query_counts, dtype=torch.int32, device=device).unsqueeze(1)
        count = (counts - first).clamp(min=0, max=tile_size).expand(batch, heads, -1, -1)
        first = torch.where(count > 0, first, 0)
        blocks = routed_blocks(level, self.q, self.k, sizes.blocks_per_tile, self.scale)
        return self._planned(level, (key_order, query_order), first, count, blocks)

    def _planned(self, level: LevelShape, orders: Pair, first: Tensor, count: Tensor, block: Tensor) -> LevelPlan:
        """A level without samples, from the orders of keys and queries within its nodes, and its tiles."""
        key_order, query_order = orders
        shape, device = (*key_order.shape[:3], 0), key_order.device
        return LevelPlan(
            block_size=self.settings.tiles(level).block_size,
            tile_size=self.settings.tile_size,
            key_order=_to_positions(key_order, level.key_starts).contiguous(),
            query_order=_to_positions(query_order, level.query_starts).contiguous(),
            tile_first=first.contiguous(),
            tile_count=count.contiguous(),
            tile_block=block,
            sample_index=torch.empty(shape, dtype=torch.int32, device=device),
            sample_weight=torch.empty(shape, dtype=torch.float64, device=device),
        )

    def sample(self, level: LevelShape, planned: LevelPlan, scores: Tensor | None) -> LevelPlan:
        """A sorted level with its samples; scores are those of `probe`."""
        shape, params = plan_shape(self.q, self.k), self.settings.params
        index, weight = samples_of(level, shape, params, self.seed, planned.key_order, scores)
        return dataclasses.replace(planned, sample_index=index, sample_weight=weight)

    def _node_ranks(self, level: LevelShape, hashes: Pair) -> Pair:
        """Ranks of the queries (B, H, G, Sq) and keys (B, Hkv, G, S) of every node; 2**r stands for "no row"."""
        of_queries, of_keys = hashes
        queries = node_rows(level.padded(of_queries), level.query_starts, level.query_len)
        keys = node_rows(of_keys, level.key_starts, level.node_len)
        if self.settings.params.hashing == "centred":
            # Under a mask later queries must not move the thresholds of earlier ones: those at the keys make them.
            is_causal = self.settings.is_causal
            before = node_rows(of_queries, level.key_starts, level.node_len) if is_causal else queries
            queries, keys = _ranks_above(queries, _means(before)), _ranks_above(keys, _means(keys))
        counts = torch.tensor(level.query_counts, device=queries.device).unsqueeze(1)
        is_there = torch.arange(level.query_len, device=queries.device) < counts
        return torch.where(is_there, queries, 2**self.settings.params.num_projections), keys


def _means(projected: Tensor) -> Tensor:
    """The mean projections of each node (B, H, G, 1, r); what is not finite counts as zero."""
    return projected.nan_to_num(0.0, 0.0, 0.0).mean(-2, keepdim=True)


def _ranks_above(projected: Tensor, thresholds: Tensor) -> Tensor:
    return gray_rank(codes_above(projected, thresholds), projected.shape[-1])


def _to_positions(order: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Indices within nodes (B, H, G, S) to positions in the sequence."""
    if len(starts) == 1 and starts[0] == 0:
        return order
    return order + torch.tensor(starts, device=order.device, dtype=order.dtype).view(1, 1, -1, 1)
