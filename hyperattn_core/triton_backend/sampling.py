"""Samples by the kernels: uniform ones, probed ones by the scores of keys, and the mean keys of truncated ones."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hyperattn_core.planning.draws import SAMPLES, kept_on_device, probe_positions, sample_offsets, stream_key
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.samples import NUM_CLASSES, unit
from hyperattn_core.triton_backend.device_tables import level_table
from hyperattn_core.triton_backend.geometry import DRAW_TILE, SORT_TILE, Geometry, block_dim, dim_constants
from hyperattn_core.triton_backend.kernels import draw, mean_keys, probe, systematic

_DRAWS = 256
NORM_TILES = 64
DESIGN_TILES = 32
SUM_TILES = 128
_MEAN_ELEMENTS = 2048


@kept_on_device(maxsize=64)
def drawn_samples(where: Geometry, seed: int, device: str) -> Tensor:
    """The uniformly drawn indices of all levels, int32 flat, in the order of their weights."""
    rows = where.sides[1].rows
    index = torch.empty(where.drawn_size, dtype=torch.int32, device=device)
    most = max(level.num_nodes * level.num_samples for level in where.levels) * rows
    draw.uniform_kernel[(triton.cdiv(most, _DRAWS), len(where.levels))](
        index, level_table(where, device), stream_key(seed, SAMPLES), rows,
        **uniform_constants(where.settings.params.sampling), num_warps=4,
    )  # fmt: skip
    if where.settings.params.sampling == "iid":
        # The kernels find the samples of some keys by their order.
        for level in where.levels:
            rows_of_level = index[level.samples_drawn :][: level.num_nodes * level.num_samples * rows]
            rows_of_level.copy_(rows_of_level.view(-1, max(level.num_samples, 1)).sort(-1).values.view(-1))
    return index


class Probing:
    """The buffers of the draw of a call, and its two steps: score before the sort, draw after it."""

    def __init__(self, q: Tensor, k: Tensor, seed: int, where: Geometry, scale: float) -> None:
        self.q, self.k, self.where, self.scale = q, k, where, scale
        self.seed, self.device = seed, str(q.device)
        self.table = level_table(where, self.device)
        self.classes = torch.empty(where.classes_size, dtype=torch.uint8, device=q.device)
        self.class_counts = torch.empty(where.class_tiles * NUM_CLASSES, dtype=torch.uint8, device=q.device)

    def score(self, directions: Tensor, ranks: Tensor, histograms: Tensor, hashed: dict[str, int]) -> None:
        """The class of every key's score in every level, and how many keys of a tile are of each class.

        And what the hash kernel makes of queries: ranks and histograms of the keys, by its directions and constants.
        """
        q, k, where = self.q, self.k, self.where
        queries, keys = where.sides
        parts = torch.empty(2, where.probe_parts_size, dtype=torch.float32, device=q.device)
        norms = torch.empty(where.probe_norms_size, dtype=torch.float32, device=q.device)
        positions = _positions(where, self.seed, self.device)
        constants, options = probe_constants(q.shape[3], q.dtype, where), probe_options(q.shape[3], q.dtype)
        strides = (q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2))
        sizes = (
            k.shape[1], q.shape[1] // k.shape[1], keys.length, keys.chunk_len, keys.num_tiles, len(where.levels),
            self.scale,
        )  # fmt: skip
        grid = (keys.rows * keys.num_tiles,)
        probe.probe_kernel[grid](
            q, k, positions, self.table, parts[0], parts[1], directions, ranks, histograms, *strides, *sizes,
            queries.rows, queries.length, queries.num_tiles,
            **constants, **hashed, **options,
        )  # fmt: skip
        probe.norm_kernel[(queries.rows * where.max_nodes, len(where.levels))](
            parts[0], parts[1], self.table, norms, queries.rows, **norm_constants(constants["BLOCK_P"]), num_warps=4
        )  # fmt: skip
        probe.score_kernel[grid](
            q, k, positions, self.table, norms, self.classes, self.class_counts, *strides, *sizes,
            **constants, **options,
        )  # fmt: skip

    def draw(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of all levels from a sorted plan's data: places among the sorted keys, int32 flat, and the base-2
        logarithms of their weights, float32 flat."""
        where, device, rows = self.where, data.device, self.where.sides[1].rows
        slopes = torch.empty(2, where.num_key_nodes, dtype=torch.float64, device=device)
        first_certain = torch.empty(where.num_key_nodes, dtype=torch.int32, device=device)
        sums = torch.empty(where.draw_tiles, dtype=torch.int64, device=device)
        index = torch.empty(where.drawn_size, dtype=torch.int32, device=device)
        weight = torch.empty(where.drawn_size, dtype=torch.float32, device=device)
        levels = len(where.levels)
        systematic.design_kernel[(rows * where.max_nodes, levels)](
            self.class_counts, self.table, slopes[0], slopes[1], first_certain, rows, AT_ONCE=DESIGN_TILES, num_warps=4
        )
        grid = (rows * max(level.num_nodes * level.draw_tiles for level in where.levels), levels)
        constants = systematic_constants(where.settings.is_causal)
        systematic.sum_kernel[grid](data, self.classes, self.table, first_certain, sums, rows, **constants, num_warps=4)
        systematic.draw_kernel[grid](
            data, self.classes, self.table, slopes[0], slopes[1], first_certain, sums,
            _points(where, self.seed, self.device), index, weight, rows, **constants, AT_ONCE=SUM_TILES, num_warps=4,
        )  # fmt: skip
        return index, weight


class MeanKeys:
    """The mean keys of all levels of a plan, by their nodes.

    Attributes:
        exist: False where sampling is not "truncated": nothing is done then, and the kernels read nothing.
        dims: D and Dv.
        rows: of each node the mean key, its value and two numbers, float32.
    """

    def __init__(self, k: Tensor, v: Tensor, packed: Packed, where: Geometry) -> None:
        self.k, self.v, self.packed, self.where = k, v, packed, where
        self.exist, self.dims = has_means(packed.settings), (k.shape[3], v.shape[3])
        self.rows = self.floats(where.num_key_nodes, mean_keys.ENTRIES.value)

    def make(self) -> None:
        """Sums of tiles, then the means."""
        if not self.exist:
            return
        k, v, keys = self.k, self.v, self.where.sides[1]
        tiles = self.floats(keys.rows * keys.num_tiles)
        strides = [x.stride(dim) for x in (k, v) for dim in range(3)]
        mean_keys.tile_kernel[(keys.rows * keys.num_tiles,)](
            k, v, tiles, *strides, k.shape[1], keys.length, keys.chunk_len, keys.num_tiles,
            **tile_mean_constants(*self.dims), num_warps=4,
        )  # fmt: skip
        mean_keys.mean_kernel[(keys.rows * self.where.max_nodes, len(self.where.levels))](
            k, v, self.packed.data, self.packed.weights, level_table(self.where, str(k.device)), tiles, self.rows,
            *strides, k.shape[1], keys.rows, keys.chunk_len, keys.num_tiles, **mean_constants(*self.dims), num_warps=4,
        )  # fmt: skip

    def add_up(self, level: int, parts: Tensor, grads: Tensor, split: int, block_m: int) -> None:
        """The gradients of each key through the mean key of its node, for one level, from the parts of its queries."""
        if not self.exist:
            return
        queries, keys = self.where.sides
        mean_keys.mean_grad_kernel[(keys.rows * self.where.levels[level].num_nodes,)](
            self.packed.data, level_table(self.where, str(parts.device)), self.rows, parts, grads,
            level, queries.rows // keys.rows, **mean_grad_constants(*self.dims, split, block_m), num_warps=4,
        )  # fmt: skip

    def floats(self, rows: int, entries: int = 0) -> Tensor:
        """Room for rows of a key and a value, float32, where there are mean keys."""
        count = rows * (sum(self.dims) + entries) if self.exist else 1
        return torch.empty(count, dtype=torch.float32, device=self.k.device)


def probe_constants(head_dim: int, dtype: torch.dtype, where: Geometry) -> dict[str, int]:
    """The compile-time values of the probe and score kernels."""
    settings, keys = where.settings, where.sides[1]
    block_p = 16 if settings.params.num_probes <= 16 or dtype == torch.float32 else 32
    # Keys of a node are whole chunks.
    is_full = keys.chunk_len % SORT_TILE == 0 and all(level.num_probes % block_p == 0 for level in where.levels)
    sizes = {"D": head_dim, "BLOCK_D": block_dim(head_dim), "TILE": SORT_TILE, "BLOCK_P": block_p}
    return {"IS_CAUSAL": settings.is_causal, "FULL": is_full, **sizes}


def probe_options(head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Warps and stages of the probe and score kernels, with which none spills at usual sizes: more warps for long rows
    and for products without tensor cores."""
    if dtype == torch.float32:
        return {"num_warps": 8, "num_stages": 2}
    is_long = block_dim(head_dim) * dtype.itemsize > 256
    return {"num_warps": 8, "num_stages": 1} if is_long else {"num_warps": 4, "num_stages": 2}


def norm_constants(block_p: int) -> dict[str, int]:
    """The compile-time values of the norm kernel."""
    return {"BLOCK_P": block_p, "AT_ONCE": NORM_TILES}


def systematic_constants(is_causal: bool) -> dict[str, int]:
    """The compile-time values that the sum and draw kernels share."""
    return {"IS_CAUSAL": is_causal, "TILE": DRAW_TILE}


def has_means(settings: Settings) -> bool:
    """True if nodes have mean keys."""
    return settings.params.sampling == "truncated"


def tile_mean_constants(head_dim: int, value_dim: int) -> dict[str, int]:
    """The compile-time values of the kernel that sums up tiles of keys."""
    return {"TILE": SORT_TILE, **dim_constants(head_dim, value_dim)}


def mean_constants(head_dim: int, value_dim: int) -> dict[str, int]:
    """The compile-time values of the kernel that makes mean keys."""
    return {**tile_mean_constants(head_dim, value_dim), "AT_ONCE": _at_once(head_dim, value_dim)}


def mean_grad_constants(head_dim: int, value_dim: int, split: int, block_m: int) -> dict[str, int]:
    """The compile-time values of the kernel that sums up the gradients of mean keys, by those of the query kernel."""
    pieces = {"SPLIT": split, "BLOCK_M": block_m, "AT_ONCE": _at_once(head_dim, value_dim)}
    return {**pieces, **dim_constants(head_dim, value_dim)}


def _at_once(head_dim: int, value_dim: int) -> int:
    """Rows that a program adds up at once, few enough for no spills."""
    return min(32, _MEAN_ELEMENTS // block_dim(max(head_dim, value_dim)))


def uniform_constants(sampling: str) -> dict[str, int]:
    """The compile-time values of the uniform draw."""
    return {"STRATIFIED": sampling == "stratified", "BLOCK": _DRAWS}


@kept_on_device(maxsize=64)
def _positions(where: Geometry, seed: int, device: str) -> Tensor:
    """Positions of the probes of a call without a mask, int32; under a mask they follow from the level."""
    if where.settings.is_causal:
        return torch.zeros(1, dtype=torch.int32, device=device)
    return probe_positions(where.shape[3], where.settings.params.num_probes, seed, device).to(torch.int32)


@kept_on_device(maxsize=64)
def _points(where: Geometry, seed: int, device: str) -> Tensor:
    """The first point of every node of every level, in units, int64 flat."""
    parts = [
        (sample_offsets(level, where.shape, seed, device) * unit(level.num_samples)).floor().to(torch.int64).view(-1)
        for level in where.levels
    ]
    return torch.cat(parts)
