"""Membership of one head's queries and keys in the nodes and blocks of a level: a plan read by position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.planning.plan import AttentionPlan, LevelPlan


@dataclass(frozen=True, eq=False)
class Membership:
    """Block of every query and key of a head at a level, by position; blocks are numbered over all nodes.

    Attributes:
        query_blocks: int64 (Nq, R), the key blocks that a query meets; -1 in places without one, and everywhere where
            it is in no node.
        key_block: int64 (Nk,), the block that holds a key, -1 where it is in no node.
        num_blocks: blocks of a node: block // num_blocks is the node.
        is_sampled: bool (Nk,), True for a key that is among the samples of its node.
    """

    query_blocks: Tensor
    key_block: Tensor
    num_blocks: int
    is_sampled: Tensor

    def met(self, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Masks (R, Nk) of the keys in the blocks of R queries, in their nodes, and sampled outside their blocks."""
        blocks = self.query_blocks[queries]
        # The last column is for -1, of queries and of keys.
        is_met = torch.zeros(len(blocks), int(self.key_block.max()) + 2, dtype=torch.bool, device=blocks.device)
        is_met.scatter_(1, torch.where(blocks < 0, is_met.shape[1] - 1, blocks), True)
        is_met[:, -1] = False
        in_block, node = is_met[:, self.key_block], _floor(blocks.amax(1, keepdim=True), self.num_blocks)
        in_node = (node == _floor(self.key_block, self.num_blocks)) & (node >= 0)
        return in_block, in_node, in_node & self.is_sampled & ~in_block


def membership(plan: AttentionPlan, level: LevelPlan, batch: int, head: int) -> Membership:
    """The membership of query head `head` of an entry of the batch at one of the plan's levels."""
    _, heads, kv_heads, num_queries, num_keys = plan.shape
    kv_head = head // (heads // kv_heads)
    key_order = level.key_order[batch, kv_head].long()
    device, (num_nodes, node_len) = key_order.device, key_order.shape
    nodes = torch.arange(num_nodes, device=device)
    key_block = torch.full((num_keys,), -1, device=device)
    within = torch.arange(node_len, device=device) // level.block_size
    key_block[key_order] = nodes.unsqueeze(1) * level.num_blocks + within
    is_sampled = torch.zeros(num_keys, dtype=torch.bool, device=device)
    is_sampled[key_order.gather(1, level.sample_index[batch, kv_head].long())] = True
    # Each query of a tile stands at the tile's first place in the order plus its number within the tile.
    count = level.tile_count[batch, head].long().flatten()
    tile = torch.repeat_interleave(torch.arange(len(count), device=device), count)
    number = torch.arange(len(tile), device=device) - (count.cumsum(0) - count)[tile]
    node = tile // level.tile_count.shape[-1]
    place = level.tile_first[batch, head].long().flatten()[tile] + number
    blocks = level.tile_block[batch, head].long().flatten(0, 1)[tile]
    upto = ((number + 1) * level.blocks_per_tile // level.tile_size).clamp(min=1)
    is_met = (torch.arange(level.blocks_per_tile, device=device) < upto.unsqueeze(1)) & (blocks >= 0)
    query_blocks = torch.full((num_queries, level.blocks_per_tile), -1, device=device)
    position = level.query_order[batch, head].long()[node, place]
    query_blocks[position] = torch.where(is_met, node.unsqueeze(1) * level.num_blocks + blocks, -1)
    return Membership(query_blocks, key_block, level.num_blocks, is_sampled)


def _floor(blocks: Tensor, num_blocks: int) -> Tensor:
    return blocks.div(num_blocks, rounding_mode="floor")
