"""Making a plan with the kernels, and plans as flat buffers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning.draws import level_samples, projections
from hyperattn_core.planning.levels import level_shapes
from hyperattn_core.planning.plan import AttentionPlan, LevelPlan, plan_shape
from hyperattn_core.triton_backend.device_tables import block_tiles, drawn_samples, level_table, rank_tiles
from hyperattn_core.triton_backend.geometry import SORT_TILE, Geometry, Settings, geometry
from hyperattn_core.triton_backend.kernels import pair
from hyperattn_core.triton_backend.kernels import plan as plan_kernels
from hyperattn_core.triton_backend.tuning.configure import default_tile_size

_COLUMNS = 16
_HASH_TILES = 4
_SCAN_RANKS = 16
_SCAN_TILES = 128
_PAIR_ELEMENTS = 8192
_PAIR_SAMPLES = 256
_INDEX_LIMIT = 2**31


@dataclass(frozen=True)
class PackedPlan(AttentionPlan):
    """A plan whose levels are views of flat buffers, as the kernels read them.

    Attributes:
        data: int32, all indices; geometry says where.
        weights: float32, the base-2 logarithms of the samples' weights.
        settings: what it was made with.
    """

    data: Tensor
    weights: Tensor
    settings: Settings


def make_plan(
    q: Tensor, k: Tensor, params: HyperAttentionParams, seed: int, *, is_causal: bool, tile_size: int | None
) -> AttentionPlan:
    """The plan of hyperattn_core.make_plan, made by the kernels; arguments are checked by the caller."""
    tile_size = tile_size or default_tile_size(q.device, q.dtype, q.shape[3])
    shape = plan_shape(q, k)
    if not level_shapes(shape, params, is_causal=is_causal):
        return AttentionPlan(params, seed, is_causal, shape, (), None)
    settings = Settings.of(params, is_causal=is_causal, tile_size=tile_size)
    with torch.cuda.device_of(q):
        data, weights = plan_buffers(q.detach(), k.detach(), seed, settings)
    where = geometry(shape, settings)
    levels = tuple(
        replace(level, sample_weight=level_samples(part.shape, shape, params, seed, str(q.device))[1])
        for level, part in zip(unpack(data, weights, where), where.levels, strict=True)
    )
    leaf = params.min_seq_len if is_causal else None
    return PackedPlan(params, seed, is_causal, shape, levels, leaf, data, weights, settings)


def plan_buffers(q: Tensor, k: Tensor, seed: int, settings: Settings) -> tuple[Tensor, Tensor]:
    """Hash, sort, pair and sample in four launches: the int32 and float32 buffers of the plan."""
    work = PlanWork(q, k, seed, settings)
    work.hash()
    work.sort()
    work.pair()
    return work.data, work.weights


class PlanWork:
    """The buffers of a plan in the making, and its steps, each of which may be run again."""

    def __init__(self, q: Tensor, k: Tensor, seed: int, settings: Settings) -> None:
        self.seed = seed
        self.q, self.k = dense_rows(q), dense_rows(k)
        device = q.device
        self.where = where = geometry(plan_shape(q, k), settings)
        queries, keys = where.sides
        tiles = queries.rows * queries.num_tiles + keys.rows * keys.num_tiles
        ranks = where.num_ranks
        rank_dtype = torch.uint8 if settings.num_projections <= 8 else torch.int16
        self.ranks = torch.empty(
            queries.rows * queries.length + keys.rows * keys.length, dtype=rank_dtype, device=device
        )
        self.histograms = torch.empty(tiles * ranks, dtype=torch.uint8, device=device)
        self.bases = torch.empty(len(where.levels) * tiles * ranks, dtype=torch.int32, device=device)
        self.totals = torch.empty(where.totals_rows * ranks, dtype=torch.int32, device=device)
        self.data = torch.empty(where.data_size, dtype=torch.int32, device=device)
        self.weights = torch.empty(where.weight_size, dtype=torch.float32, device=device)
        self.table = level_table(where, str(device))

    def hash(self) -> None:
        """Ranks of all queries and keys, and their histograms (Algorithm 1)."""
        q, k, where = self.q, self.k, self.where
        queries, keys = where.sides
        directions = split_projections(self.seed, q.shape[3], where.settings.num_projections, q.dtype, str(q.device))
        grid = (triton.cdiv(max(queries.num_tiles, keys.num_tiles), _HASH_TILES) * (queries.rows + keys.rows),)
        plan_kernels.hash_kernel[grid](
            q, k, directions, self.ranks, self.histograms,
            q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
            q.shape[1], k.shape[1], queries.rows, queries.length, keys.length,
            queries.chunk_len, keys.chunk_len, queries.num_tiles, keys.num_tiles,
            **hash_constants(q.shape[3], directions.shape[0], where.settings.num_projections),
            **hash_options(q.shape[3], q.dtype),
        )  # fmt: skip

    def sort(self) -> None:
        """Stable counting sort of every node of every level."""
        where = self.where
        queries, keys = where.sides
        rows = queries.rows + keys.rows
        causal = where.settings.is_causal
        grid = (rows * where.max_nodes, len(where.levels), where.num_ranks // _SCAN_RANKS)
        plan_kernels.scan_kernel[grid](
            self.histograms, self.bases, self.totals, self.table, queries.rows, keys.rows,
            queries.num_chunks, keys.num_chunks, queries.tiles_per_chunk, keys.tiles_per_chunk,
            **scan_constants(causal, where.num_ranks), num_warps=4,
        )  # fmt: skip
        plan_kernels.scatter_kernel[(max(queries.num_tiles, keys.num_tiles) * rows,)](
            self.ranks, self.bases, self.totals, self.data, self.table, len(where.levels), queries.rows, keys.rows,
            queries.length, keys.length, queries.chunk_len, keys.chunk_len, queries.num_tiles, keys.num_tiles,
            IS_CAUSAL=causal, RANKS=where.num_ranks, TILE=SORT_TILE, num_warps=4,
        )  # fmt: skip

    def pair(self) -> None:
        """Tiles of queries with the block that each meets, and the samples."""
        where = self.where
        queries, keys = where.sides
        device = str(self.data.device)
        index, weight = drawn_samples(where, self.seed, device)
        constants = pair_constants(where.settings.is_causal, where.settings.bucket, where.num_ranks)
        tile_programs = triton.cdiv(where.max_node_tiles, constants["TILES"])
        grid = ((tile_programs + 1) * queries.rows * where.max_nodes, len(where.levels))
        pair.pair_kernel[grid](
            self.data, self.weights, self.totals, self.table, index, weight, rank_tiles(where, device),
            queries.rows, keys.rows, queries.length, queries.rows // keys.rows, where.settings.tile_size, tile_programs,
            **constants, num_warps=4,
        )  # fmt: skip


def hash_constants(head_dim: int, terms: int, num_projections: int) -> dict[str, int]:
    """The compile-time values of the hash kernel."""
    return {
        "D": head_dim,
        "BLOCK_D": block_dim(head_dim),
        "TERMS": terms,
        "PROJECTIONS": num_projections,
        "COLUMNS": _COLUMNS,
        "RANKS": max(16, 2**num_projections),
        "TILE": SORT_TILE,
        "TILES_PER_PROGRAM": _HASH_TILES,
    }


def hash_options(head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Warps and stages of the hash kernel: longer rows take more of the one and fewer of the other."""
    row_bytes = block_dim(head_dim) * dtype.itemsize
    if row_bytes <= 256:
        return {"num_warps": 4, "num_stages": 3}
    return {"num_warps": 4, "num_stages": 2} if row_bytes <= 512 else {"num_warps": 8, "num_stages": 1}


def scan_constants(is_causal: bool, num_ranks: int) -> dict[str, int]:
    """The compile-time values of the scan kernel."""
    return {"IS_CAUSAL": is_causal, "RANKS": num_ranks, "GROUP": _SCAN_RANKS, "AT_ONCE": _SCAN_TILES}


def pair_constants(is_causal: bool, bucket: bool, num_ranks: int) -> dict[str, int]:
    """The compile-time values of the pair kernel."""
    tiles = max(16, min(64, _PAIR_ELEMENTS // num_ranks))
    return {"IS_CAUSAL": is_causal, "BUCKET": bucket, "RANKS": num_ranks, "TILES": tiles, "SAMPLES": _PAIR_SAMPLES}


def dense_rows(x: Tensor) -> Tensor:
    """x (..., N, D) with rows that are one run of memory, all within reach of 32-bit indices: itself, or a copy."""
    return x if x.stride(-1) == 1 and x.shape[-2] * x.stride(-2) < _INDEX_LIMIT else x.contiguous()


def block_dim(head_dim: int) -> int:
    """The head size in registers: the next power of two, at least 16."""
    return max(16, triton.next_power_of_2(head_dim))


@lru_cache(maxsize=4096)
def split_projections(seed: int, head_dim: int, num_projections: int, dtype: torch.dtype, device: str) -> Tensor:
    """The projections in the dtype of the inputs, as a sum of terms: (terms, D in registers, 16), kept on the device.

    A half-precision number times a half-precision number is exact in float32; three such terms hold a float32 number,
    so that tensor cores project in float32 accumulation.
    """
    exact = projections(seed, head_dim, num_projections, "cpu").to(torch.float32)
    terms = []
    left = exact.double()
    for _ in range(1 if dtype == torch.float32 else 3):
        term = left.to(dtype)
        terms.append(term)
        left = left - term.double()
    split = torch.zeros(len(terms), block_dim(head_dim), _COLUMNS, dtype=dtype, device="cpu")
    split[:, :head_dim, :num_projections] = torch.stack(terms)
    return split.to(device)


def unpack(data: Tensor, weights: Tensor, where: Geometry) -> tuple[LevelPlan, ...]:
    """The levels of a packed plan, as views."""
    batch, heads, kv_heads, _, _ = where.shape
    levels = []
    for level in where.levels:
        nodes, tiles = level.shape.num_nodes, level.num_tiles

        def view(offset: int, row_heads: int, length: int, nodes: int = nodes) -> Tensor:
            size = batch * row_heads * nodes * length
            return data[offset : offset + size].view(batch, row_heads, nodes, length)

        levels.append(
            LevelPlan(
                block_size=level.block_size,
                tile_size=where.settings.tile_size,
                key_order=view(level.key_order, kv_heads, level.shape.node_len),
                query_order=view(level.query_order, heads, level.shape.query_len),
                tile_first=view(level.tile_first, heads, tiles),
                tile_count=view(level.tile_count, heads, tiles),
                tile_block=view(level.tile_block, heads, tiles),
                sample_index=view(level.sample_index, kv_heads, level.num_samples),
                sample_weight=weights[level.weight : level.weight + level.num_samples].double().exp2(),
            )
        )
    return tuple(levels)


def pack(plan: AttentionPlan) -> tuple[Tensor, Tensor, Settings]:
    """The flat buffers of any plan that has levels: those of a packed plan, else a copy.

    Raises:
        ValueError: the levels are not those of the plan's shape and parameters.
    """
    if isinstance(plan, PackedPlan):
        return plan.data, plan.weights, plan.settings
    tile_size = plan.levels[0].tile_size
    settings = Settings.of(plan.params, is_causal=plan.is_causal, tile_size=tile_size)
    where = geometry(plan.shape, settings)
    data, weights = [], []
    for level in plan.levels:
        position = level.key_order.gather(3, level.sample_index.long())
        data += [
            level.query_order, level.key_order, level.sample_index, position,
            level.tile_first, level.tile_count, level.tile_block,
            block_tiles(level.tile_count, level.tile_block, level.num_blocks),
        ]  # fmt: skip
        weights.append(level.sample_weight.log2())
    flat = torch.cat([x.reshape(-1).to(torch.int32) for x in data])
    log_weights = torch.cat(weights).to(torch.float32)
    if flat.numel() != where.data_size or log_weights.numel() != where.weight_size:
        raise ValueError(f"the plan's levels are not those of its shape {plan.shape} and parameters {plan.params}")
    return flat, log_weights, settings
