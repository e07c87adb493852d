"""AttentionPlan: every random or data-dependent choice of one call, made before any attention is computed.

A plan holds, for each batched non-causal problem ("level"), the sorted keys, the tiles of sorted queries with the key
block each of them meets, and the sampled keys with their weights. The estimator at a plan is a deterministic function.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.levels import CallShape


@dataclass(frozen=True, eq=False)
class LevelPlan:
    """One batched non-causal problem: G nodes of S keys each, with their queries, per head.

    Two are equal if all their numbers are, on the same device.

    Positions are those of the whole sequence. Shapes have G nodes, S keys per node, nb = ceil(S / block_size) blocks,
    T tiles of at most tile_size queries, m samples; R blocks met by a tile: one, or with "routed" pairing the same
    number for each query of a full tile.

    Attributes:
        block_size: keys of a block, b or those of a routed one; the last block is shorter where it does not divide S.
        tile_size: queries per tile; no tile has more.
        key_order: int32 (B, Hkv, G, S), key positions of each node, in order of hash rank unless routed.
        query_order: int32 (B, H, G, Sq), query positions of each node, likewise; entries that no tile covers have no
            meaning.
        tile_first: int32 (B, H, G, T), index into query_order of the tile's first query.
        tile_count: int32 (B, H, G, T), queries of the tile, 0 for an unused tile.
        tile_block: int32 (B, H, G, T, R), the key blocks that the tile's queries meet: query i of the tile those of
            entries 0 to (i + 1) R / tile_size - 1, which it and the ones before it chose; -1 for a block that is in an
            earlier entry, or where nobody chooses. A single one (R = 1) is met by all of them, and ascends in a node.
        sample_index: int32 (B, Hkv, G, m), sampled indices into key_order, ascending.
        sample_weight: float64 (B, Hkv, G, m), the inverse of the sampling rate: S / m, the slice's length if
            stratified, the inverse of the key's probability if probed, 4 at most if truncated.
    """

    block_size: int
    tile_size: int
    key_order: Tensor
    query_order: Tensor
    tile_first: Tensor
    tile_count: Tensor
    tile_block: Tensor
    sample_index: Tensor
    sample_weight: Tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LevelPlan):
            return NotImplemented
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(LevelPlan)]
        return all(_same(mine, theirs) for mine, theirs in pairs)

    def __hash__(self) -> int:
        return hash((self.block_size, self.tile_size, self.key_order.shape, self.query_order.shape))

    @property
    def node_len(self) -> int:
        """S, the keys of a node."""
        return self.key_order.shape[-1]

    @property
    def blocks_per_tile(self) -> int:
        """R, entries of tile_block."""
        return self.tile_block.shape[-1]

    @property
    def num_blocks(self) -> int:
        """Key blocks of a node."""
        return -(-self.node_len // self.block_size)


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Everything one call of hyper_attention computes with, apart from q, k and v.

    Two are equal if they make the same choices, to the last number, on the same device, whichever backend made them.

    Attributes:
        params: the parameters it was made with.
        seed: the seed of its draws.
        is_causal: row t sees keys 0..t only.
        shape: (B, H, Hkv, Nq, Nk) of the inputs it was made for.
        levels: the non-causal problems; none when attention is exact.
        leaf_len: length of the exact causal leaves on the diagonal, None when not causal or when attention is exact.
    """

    params: HyperAttentionParams
    seed: int
    is_causal: bool
    shape: CallShape
    levels: tuple[LevelPlan, ...]
    leaf_len: int | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttentionPlan):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(AttentionPlan))

    def __hash__(self) -> int:
        return hash((self.params, self.seed, self.is_causal, self.shape))

    @property
    def is_exact(self) -> bool:
        """True if the call is exact attention: too short for the estimator, or the estimator is exact there."""
        return len(self.levels) == 0


def _same(mine: object, theirs: object) -> bool:
    if isinstance(mine, Tensor) and isinstance(theirs, Tensor):
        return mine.device == theirs.device and torch.equal(mine, theirs)
    return bool(mine == theirs)


def plan_shape(q: Tensor, k: Tensor) -> CallShape:
    """(B, H, Hkv, Nq, Nk) of q (B, H, Nq, D) and k (B, Hkv, Nk, D)."""
    return (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2])
