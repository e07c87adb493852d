"""Plans as two flat tensors, which is how custom operators take them; each backend has a layout of its own."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

from torch import Tensor

from hyperattn_core.params import ROUTED_KEYS, ROUTED_QUERIES, Hashing, HyperAttentionParams, Pairing, Sampling
from hyperattn_core.planning.levels import LevelShape
from hyperattn_core.planning.pairing import max_tiles
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan

_SIZES = ("block_size", "sample_size", "num_projections", "min_seq_len", "num_probes")
_WORDS = {"sampling": get_args(Sampling), "pairing": get_args(Pairing), "hashing": get_args(Hashing)}


class TileSizes(NamedTuple):
    """Keys of a block, blocks of a node, tiles of a node, and blocks that a tile meets (R)."""

    block_size: int
    num_blocks: int
    num_tiles: int
    blocks_per_tile: int


@dataclass(frozen=True)
class Settings:
    """Settings of a plan; as a list of integers they are an argument of custom operators.

    With "routed" pairing tiles are of the queries that share their blocks, whatever tile_size is asked for.
    """

    params: HyperAttentionParams
    is_causal: bool
    tile_size: int

    def __post_init__(self) -> None:
        if self.params.pairing == "routed":
            object.__setattr__(self, "tile_size", ROUTED_QUERIES)

    def tiles(self, level: LevelShape) -> TileSizes:
        """The sizes of the blocks and tiles of a level's nodes."""
        if self.params.pairing == "routed":
            blocks = -(-level.node_len // ROUTED_KEYS)
            per_tile = self.params.block_size // ROUTED_KEYS
            return TileSizes(ROUTED_KEYS, blocks, -(-level.query_len // self.tile_size), per_tile)
        block_size = min(self.params.block_size, level.node_len)
        blocks = -(-level.node_len // block_size)
        return TileSizes(block_size, blocks, max_tiles(level.query_len, self.tile_size, blocks), 1)

    def to_list(self) -> list[int]:
        """As integers: words by their place among those there are, a share by its bits."""
        p = self.params
        words = [allowed.index(getattr(p, name)) for name, allowed in _WORDS.items()]
        (floor,) = struct.unpack("<q", struct.pack("<d", p.probe_floor))
        sizes = [getattr(p, name) for name in _SIZES]
        return [*sizes, *words, floor, int(self.is_causal), self.tile_size]

    @classmethod
    def from_list(cls, values: list[int]) -> Settings:
        """The inverse of to_list."""
        *numbers, floor, is_causal, tile_size = values
        sizes, words = numbers[: len(_SIZES)], numbers[len(_SIZES) :]
        given: dict[str, Any] = dict(zip(_SIZES, sizes, strict=True))
        given |= {name: allowed[word] for (name, allowed), word in zip(_WORDS.items(), words, strict=True)}
        (given["probe_floor"],) = struct.unpack("<d", struct.pack("<q", floor))
        return cls(HyperAttentionParams(**given), bool(is_causal), tile_size)


@dataclass(frozen=True)
class Packed:
    """A plan as flat tensors in the layout of a backend; both are empty where the call is exact attention.

    Attributes:
        data: int32, all indices.
        weights: of the samples, as the backend has them.
        settings: what the layout follows from, together with the sizes of a call.
    """

    data: Tensor
    weights: Tensor
    settings: Settings


@dataclass(frozen=True, eq=False)
class PackedPlan(AttentionPlan):
    """A plan whose levels are views of flat tensors, in the layout of the backend that made it."""

    packed: Packed
    backend: str
    packed_levels: tuple[LevelPlan, ...]

    def layout(self, backend: str) -> Packed | None:
        """The flat tensors in the layout of a backend; None if they are another's, or dataclasses.replace left them."""
        settings, pairs = self.packed.settings, zip(self.levels, self.packed_levels, strict=False)
        kept = (
            (self.backend, self.params, self.is_causal) == (backend, settings.params, settings.is_causal)
            and len(self.levels) == len(self.packed_levels)
            and all(mine is theirs for mine, theirs in pairs)
        )
        return self.packed if kept else None
