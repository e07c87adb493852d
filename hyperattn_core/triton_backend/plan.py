"""Making a plan with the kernels: hash, sort, pair and sample."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.planning import draws
from hyperattn_core.planning.nodes import Planner
from hyperattn_core.planning.packed import Packed, Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.device_tables import level_table, rank_tiles, uniform_weights
from hyperattn_core.triton_backend.geometry import SORT_TILE, block_dim, geometry, num_ranks, pair_tiles
from hyperattn_core.triton_backend.kernels import draw, pair
from hyperattn_core.triton_backend.kernels import plan as plan_kernels
from hyperattn_core.triton_backend.packing import dense_rows, pack_levels
from hyperattn_core.triton_backend.sampling import Probing, drawn_samples

_COLUMNS = 16
HASH_TILES = 4
_SCAN_RANKS = 16
SCAN_TILES = 32
_PAIR_SAMPLES = 256
_DRAWN_ROWS = 64


def packed_plan(q: Tensor, k: Tensor, seed: int, settings: Settings, scale: float) -> Packed:
    """Hash, sort, pair and sample, in four launches and six for probes."""
    work = plan_work(q, k, seed, settings, scale)
    work.hash()
    work.probe()
    work.sort()
    work.pair()
    return work.packed


def plan_work(q: Tensor, k: Tensor, seed: int, settings: Settings, scale: float) -> PlanWork:
    """The steps of a plan; scale is the factor of the logits that probes see."""
    params = settings.params
    if params.pairing == "routed":
        return RoutedWork(q, k, seed, settings, scale)
    return (PlanWork if params.hashing == "angular" else SortedInPyTorch)(q, k, seed, settings, scale)


class PlanWork:
    """The buffers of a plan in the making, and its steps, each of which may be run again."""

    def __init__(self, q: Tensor, k: Tensor, seed: int, settings: Settings, scale: float) -> None:
        self.seed = seed
        self.q, self.k = dense_rows(q), dense_rows(k)
        device = q.device
        self.where = where = geometry(plan_shape(q, k), settings)
        queries, keys = where.sides
        tiles = queries.rows * queries.num_tiles + keys.rows * keys.num_tiles
        ranks = where.num_ranks
        rank_dtype = torch.uint8 if settings.params.num_projections <= 8 else torch.int16
        self.ranks = torch.empty(
            queries.rows * queries.length + keys.rows * keys.length, dtype=rank_dtype, device=device
        )
        self.histograms = torch.empty(tiles * ranks, dtype=torch.uint8, device=device)
        self.bases = torch.empty(len(where.levels) * tiles * ranks, dtype=torch.int32, device=device)
        self.totals = torch.empty(where.totals_rows * ranks, dtype=torch.int32, device=device)
        self.packed = Packed(
            torch.empty(where.data_size, dtype=torch.int32, device=device),
            torch.empty(where.drawn_size, dtype=torch.float32, device=device),
            settings,
        )
        self.table = level_table(where, str(device))
        self.probing = Probing(self.q, self.k, seed, where, scale)

    def hash(self) -> None:
        """Ranks of all queries and keys, and their histograms (Algorithm 1); keys that are probed come later."""
        q, k, where = self.q, self.k, self.where
        queries, keys = where.sides
        rows = queries.rows + (0 if where.draws_probed else keys.rows)
        directions = self._directions()
        grid = (triton.cdiv(max(queries.num_tiles, keys.num_tiles), HASH_TILES) * rows,)
        plan_kernels.hash_kernel[grid](
            q, k, directions, self.ranks, self.histograms,
            q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
            q.shape[1], k.shape[1], queries.rows, queries.length, keys.length,
            queries.chunk_len, keys.chunk_len, queries.num_tiles, keys.num_tiles,
            **self._hash_terms(directions), **hash_constants(q.shape[3]), **hash_options(q.shape[3], q.dtype),
        )  # fmt: skip

    def probe(self) -> None:
        """Ranks, histograms and scores of the keys of all levels, if probes are used."""
        if self.where.draws_probed:
            directions = self._directions()
            self.probing.score(directions, self.ranks, self.histograms, self._hash_terms(directions))

    def _directions(self) -> Tensor:
        projections = self.where.settings.params.num_projections
        return split_projections(self.seed, self.q.shape[3], projections, self.q.dtype, str(self.q.device))

    def _hash_terms(self, directions: Tensor) -> dict[str, int]:
        return hash_terms(directions.shape[0], self.where.settings.params)

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
            self.ranks, self.histograms, self.bases, self.totals, self.packed.data, self.table, len(where.levels),
            queries.rows, keys.rows, queries.length, keys.length, queries.chunk_len, keys.chunk_len, queries.num_tiles,
            keys.num_tiles,
            IS_CAUSAL=causal, RANKS=where.num_ranks, TILE=SORT_TILE, num_warps=4,
        )  # fmt: skip

    def pair(self) -> None:
        """Tiles of queries with the block that each meets, and the samples."""
        where = self.where
        queries, keys = where.sides
        device = str(self.packed.data.device)
        index, weight = self._samples(device)
        pair.pair_kernel[(where.pair_programs,)](
            self.packed.data, self.packed.weights, self.totals, self.table, index, weight, rank_tiles(where, device),
            len(where.levels), queries.rows, keys.rows, queries.length, queries.rows // keys.rows,
            where.settings.tile_size, **pair_constants(where.settings), num_warps=4,
        )  # fmt: skip

    def _samples(self, device: str) -> tuple[Tensor, Tensor]:
        """The samples of all levels, int32 flat, and the base-2 logarithms of their weights, float32 flat."""
        if self.where.draws_probed:
            return self.probing.draw(self.packed.data)
        return drawn_samples(self.where, self.seed, device), uniform_weights(self.where, device)


class SortedInPyTorch(PlanWork):
    """The steps in PyTorch, where hashes are not what the kernels make: centred ones differ from level to level."""

    def __init__(self, q: Tensor, k: Tensor, seed: int, settings: Settings, scale: float) -> None:
        super().__init__(q, k, seed, settings, scale)
        self.planner = Planner(self.q, self.k, seed, settings, scale)
        self.scores: list[Tensor | None] = [None] * len(self.where.levels)

    def hash(self) -> None:
        """Ranks or projections of all queries and keys."""
        self.hashes = self.planner.hash()

    def probe(self) -> None:
        """Scores of the keys of all levels, if probes are used."""
        self.scores = [self.planner.probe(level) for level in self.where.levels]

    def sort(self) -> None:
        """Order and pairing."""
        self.sorted = [self.planner.sort(level, self.hashes) for level in self.where.levels]

    def pair(self) -> None:
        """The samples, and all of the plan as the kernels read it."""
        parts = zip(self.where.levels, self.sorted, self.scores, strict=True)
        made = pack_levels([self.planner.sample(*part) for part in parts], self.where)
        self.packed.data.copy_(made.data)
        self.packed.weights.copy_(made.weights)


class RoutedWork(SortedInPyTorch):
    """The steps in PyTorch with "routed" pairing: nothing is hashed, and nothing sorted."""

    def hash(self) -> None:
        """Nothing."""

    def sort(self) -> None:
        """The blocks that queries choose."""
        self.sorted = [self.planner.route(level) for level in self.where.levels]


def hash_terms(terms: int, params: HyperAttentionParams) -> dict[str, int]:
    """The compile-time values of a tile's hash."""
    sizes = {"PROJECTIONS": params.num_projections, "COLUMNS": _COLUMNS, "RANKS": num_ranks(params)}
    return {"TERMS": terms, **sizes}


def hash_constants(head_dim: int) -> dict[str, int]:
    """The compile-time values of the hash kernel besides."""
    return {"D": head_dim, "BLOCK_D": block_dim(head_dim), "TILE": SORT_TILE, "TILES_PER_PROGRAM": HASH_TILES}


def hash_options(head_dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Warps and stages of the hash kernel: longer rows take more of the one and fewer of the other."""
    row_bytes = block_dim(head_dim) * dtype.itemsize
    if row_bytes <= 256:
        return {"num_warps": 4, "num_stages": 3}
    return {"num_warps": 4, "num_stages": 2} if row_bytes <= 512 else {"num_warps": 8, "num_stages": 1}


def scan_constants(is_causal: bool, num_ranks: int) -> dict[str, int]:
    """The compile-time values of the scan kernel."""
    return {"IS_CAUSAL": is_causal, "RANKS": num_ranks, "GROUP": _SCAN_RANKS, "AT_ONCE": SCAN_TILES}


def pair_constants(settings: Settings) -> dict[str, int]:
    """The compile-time values of the pair kernel."""
    params = settings.params
    words = {"IS_CAUSAL": settings.is_causal, "BUCKET": params.pairing == "bucket"}
    return {**words, "RANKS": num_ranks(params), "TILES": pair_tiles(params), "SAMPLES": _PAIR_SAMPLES}


@draws.kept_on_device(maxsize=4096)
def split_projections(seed: int, head_dim: int, num_projections: int, dtype: torch.dtype, device: str) -> Tensor:
    """The projections in the dtype of the inputs, as a sum of terms: (terms, D in registers, 16), kept on the device.

    A half-precision number times a half-precision number is exact in float32; three such terms hold a float32 number,
    so that tensor cores project in float32 accumulation.
    """
    terms = 1 if dtype == torch.float32 else 3
    split = torch.empty(terms, block_dim(head_dim), _COLUMNS, dtype=dtype, device=device)
    constants = projection_constants(head_dim, terms, num_projections)
    draw.projection_kernel[(constants["BLOCK_D"] // constants["ROWS"],)](
        split, draws.stream_key(seed, draws.PROJECTIONS), **constants, num_warps=4, enable_fp_fusion=False
    )
    return split


def projection_constants(head_dim: int, terms: int, num_projections: int) -> dict[str, int]:
    """The compile-time values of the projection kernel."""
    sizes = {"D": head_dim, "PROJECTIONS": num_projections, "BLOCK_D": block_dim(head_dim)}
    return {**sizes, "COLUMNS": _COLUMNS, "ROWS": min(_DRAWN_ROWS, sizes["BLOCK_D"]), "TERMS": terms}
