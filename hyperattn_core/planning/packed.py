"""Plans as two flat tensors, which is how custom operators take them; each backend has a layout of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan


@dataclass(frozen=True)
class Settings:
    """Settings of a plan; as a list of integers they are an argument of custom operators."""

    params: HyperAttentionParams
    is_causal: bool
    tile_size: int

    def to_list(self) -> list[int]:
        """As integers."""
        p = self.params
        return [
            p.block_size, p.sample_size, p.num_projections, p.min_seq_len, int(p.sampling == "stratified"),
            int(p.pairing == "bucket"), int(self.is_causal), self.tile_size,
        ]  # fmt: skip

    @classmethod
    def from_list(cls, values: list[int]) -> Settings:
        """The inverse of to_list."""
        *sizes, stratified, bucket, is_causal, tile_size = values
        sampling, pairing = "stratified" if stratified else "iid", "bucket" if bucket else "rank"
        params = HyperAttentionParams(*sizes, sampling=sampling, pairing=pairing)  # type: ignore[arg-type,misc]
        return cls(params, bool(is_causal), tile_size)


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
