"""The forward pass at a packed plan: mean keys, attend, and under a causal mask the exact leaves and the merge."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hyperattn_core.exact import leaf_slices
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.device_tables import level_table
from hyperattn_core.triton_backend.geometry import block_dim, blocks_per_tile, dim_constants, geometry
from hyperattn_core.triton_backend.kernels import attend as kernels
from hyperattn_core.triton_backend.leaves import Leaves, leaf_forward
from hyperattn_core.triton_backend.packing import dense_rows
from hyperattn_core.triton_backend.sampling import MeanKeys, has_means
from hyperattn_core.triton_backend.tuning.configs import AttendConfig

_MERGE_ELEMENTS = 4096


def forward(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, config: AttendConfig
) -> tuple[Tensor, Tensor]:
    """Output (B, H, Nq, Dv) in the dtype of q and log-sum-exp (B, H, Nq) in float64, at a packed plan."""
    work = ForwardWork(q, k, v, packed, scale, config)
    work.mean_keys()
    work.attend()
    if packed.settings.is_causal:
        work.leaves()
        work.merge()
    return work.out, work.lse


class ForwardWork:
    """The buffers of one forward pass, and its steps, each of which may be run again."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, config: AttendConfig) -> None:
        self.q, self.k, self.v = dense_rows(q), dense_rows(k), dense_rows(v)
        self.packed, self.scale, self.config = packed, scale, config
        self.where = geometry(plan_shape(q, k), packed.settings)
        self.table = level_table(self.where, str(q.device))
        self.means = MeanKeys(self.k, self.v, packed, self.where)

        def results(*shape: int) -> tuple[Tensor, Tensor]:
            out = torch.empty(*shape, v.shape[3], dtype=q.dtype, device=q.device)
            return out, torch.empty(shape, dtype=torch.float64, device=q.device)

        self.out, self.lse = results(*q.shape[:3])
        self.target = results(self.where.partial_rows) if packed.settings.is_causal else (self.out, self.lse)

    def mean_keys(self) -> None:
        """The mean keys of truncated samples, which attend meets."""
        self.means.make()

    def attend(self) -> None:
        """Every tile of every level, in one launch."""
        q, k, v, where = self.q, self.k, self.v, self.where
        kernels.attend_kernel[(where.max_attend_tiles, len(where.levels))](
            q, k, v, self.packed.data, self.packed.weights, self.table, self.means.rows, *self.target,
            q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            q.shape[1], q.shape[1] // k.shape[1], where.sides[0].rows, q.shape[2], self.scale,
            **attend_constants(q.shape[3], v.shape[3], where.settings, self.config),
            num_warps=self.config.num_warps, num_stages=self.config.num_stages, maxnreg=self.config.max_registers,
        )  # fmt: skip

    def leaves(self) -> None:
        """Exact causal attention of every leaf with itself."""
        leaf = self.where.settings.params.min_seq_len
        self.leaf_results: list[Leaves] = [
            leaf_forward(self.q, self.k, self.v, part, leaf, self.scale) for part in leaf_slices(self.q.shape[2], leaf)
        ]

    def merge(self) -> None:
        """Leaves and levels into the result."""
        queries, leaf_len = self.q.shape[2], self.where.settings.params.min_seq_len
        constants = merge_constants(self.v.shape[3])
        for leaf in self.leaf_results:
            blocks = triton.cdiv(leaf.part.stop - leaf.part.start, constants["BLOCK_M"])
            grid = (blocks * self.where.sides[0].rows,)
            kernels.merge_kernel[grid](
                self.out, self.lse, leaf.out, leaf.lse, *self.target, self.table,
                leaf.out.stride(0), leaf.out.stride(1), leaf.out.stride(2), leaf.lse.stride(0), leaf.lse.stride(1),
                leaf.part.start, leaf.part.stop, leaf_len, len(self.where.levels), queries,
                **constants, num_warps=4,
            )  # fmt: skip


def attend_constants(head_dim: int, value_dim: int, settings: Settings, config: AttendConfig) -> dict[str, int | bool]:
    """The compile-time values of the attend kernel."""
    tile = max(16, triton.next_power_of_2(settings.tile_size))
    sizes = dim_constants(head_dim, value_dim)
    blocks = {"PER_TILE": blocks_per_tile(settings), "BLOCK_M": tile, "BLOCK_N": config.block_n}
    return {"IS_CAUSAL": settings.is_causal, "HAS_MEANS": has_means(settings), **blocks, **sizes}


def merge_constants(value_dim: int) -> dict[str, int]:
    """The compile-time values of the merge kernel."""
    columns = block_dim(value_dim)
    return {"DV": value_dim, "BLOCK_DV": columns, "BLOCK_M": min(64, _MERGE_ELEMENTS // columns)}
