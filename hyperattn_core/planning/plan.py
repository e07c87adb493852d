"""AttentionPlan: every random or data-dependent choice of one call, made before any attention is computed.

A plan holds, for each batched non-causal problem ("level"), the sorted keys, the tiles of sorted queries with the key
block each of them meets, and the sampled keys with their weights. The estimator at a plan is a deterministic function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core.backends import PLAN_BACKENDS, chosen_backend
from hyperattn_core.checks import check_inputs
from hyperattn_core.params import HyperAttentionParams, check_int
from hyperattn_core.planning.draws import level_samples, projections
from hyperattn_core.planning.levels import LevelShape, level_shapes
from hyperattn_core.planning.lsh import hash_ranks, sort_by_rank
from hyperattn_core.planning.pairing import block_of_rank, cut_tiles, max_tiles, rank_pairing, row_arange

DEFAULT_TILE_SIZE = 64


@dataclass(frozen=True)
class LevelPlan:
    """One batched non-causal problem: G nodes of S keys each, with their queries, per head.

    Positions are those of the whole sequence. Shapes have G nodes, S keys per node, nb = ceil(S / block_size) blocks,
    T tiles of at most tile_size queries, m samples.

    Attributes:
        block_size: b; the last block is shorter where b does not divide S.
        tile_size: queries per tile; no tile has more.
        key_order: int32 (B, Hkv, G, S), key positions of each node in order of hash rank.
        query_order: int32 (B, H, G, Sq), query positions of each node in order of hash rank; entries that no tile
            covers have no meaning.
        tile_first: int32 (B, H, G, T), index into query_order of the tile's first query.
        tile_count: int32 (B, H, G, T), queries of the tile, 0 for an unused tile.
        tile_block: int32 (B, H, G, T), the key block that the tile's queries meet; ascending within a node.
        sample_index: int32 (B, Hkv, G, m), sampled indices into key_order.
        sample_weight: float64 (m,), the inverse of the sampling rate: S / m, or the slice's length if stratified.
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

    @property
    def node_len(self) -> int:
        """S, the keys of a node."""
        return self.key_order.shape[-1]

    @property
    def num_blocks(self) -> int:
        """Key blocks of a node."""
        return -(-self.node_len // self.block_size)


@dataclass(frozen=True)
class AttentionPlan:
    """What one call of hyper_attention is going to compute.

    Attributes:
        params: the parameters it was made with.
        seed: the seed of its draws.
        is_causal: whether row t sees keys 0..t only.
        shape: (B, H, Hkv, Nq, Nk) of the inputs it was made for.
        levels: the non-causal problems; none when attention is exact.
        leaf_len: length of the exact causal leaves on the diagonal, None when not causal or when attention is exact.
    """

    params: HyperAttentionParams
    seed: int
    is_causal: bool
    shape: tuple[int, int, int, int, int]
    levels: tuple[LevelPlan, ...]
    leaf_len: int | None

    @property
    def is_exact(self) -> bool:
        """Whether the call is exact attention: too short for the estimator, or the estimator is exact there."""
        return not self.levels


def make_plan(
    q: Tensor,
    k: Tensor,
    params: HyperAttentionParams | None = None,
    seed: int = 0,
    *,
    is_causal: bool = False,
    tile_size: int | None = None,
    backend: str = "auto",
) -> AttentionPlan:
    """Hash, sort, pair and sample: the plan of one call (Algorithm 1; Algorithm 4 for the causal nodes).

    Under a causal mask the sequence is cut into leaves of min_seq_len positions, and level j pairs nodes of
    min_seq_len * 2**j keys with the equally many queries after them, so the cut depends on positions alone.

    Args:
        q: queries (B, H, Nq, D).
        k: keys (B, Hkv, Nk, D), Hkv dividing H.
        params: the estimator's parameters, the library's defaults if None.
        seed: seed of the projections and samples; the same seed gives the same plan on every device, but for
            projections within rounding of zero.
        is_causal: plan causal attention (Nq == Nk).
        tile_size: most queries in a tile, a matter of speed only; the backend's own choice if None.
        backend: "torch", "triton" or "auto", as for hyper_attention; both make the same plan.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, seed or tile_size is out of range, or the backend is
            unknown or cannot make the plan.
        RuntimeError: backend="triton" and Triton does not import.
    """
    params = check_plan_request(q, k, params, seed, is_causal=is_causal)
    if tile_size is not None:
        check_int("tile_size", tile_size, low=1)
    if chosen_backend(q, q.shape[3], params, backend, PLAN_BACKENDS, tile_size) == "triton":
        from hyperattn_core.triton_backend import plan as kernels

        return kernels.make_plan(q, k, params, seed, is_causal=is_causal, tile_size=tile_size)
    tile_size = tile_size or DEFAULT_TILE_SIZE
    shape = plan_shape(q, k)
    shapes = level_shapes(shape, params, is_causal=is_causal)
    if not shapes:
        return AttentionPlan(params, seed, is_causal, shape, (), None)
    query_ranks, key_ranks = hash_inputs(q, k, params, seed)
    levels = tuple(
        plan_level(
            query_ranks, key_ranks, level, params, level_samples(level, shape, params, seed, str(q.device)), tile_size
        )
        for level in shapes
    )
    return AttentionPlan(params, seed, is_causal, shape, levels, params.min_seq_len if is_causal else None)


def check_plan_request(
    q: Tensor,
    k: Tensor,
    params: HyperAttentionParams | None,
    seed: int,
    *,
    is_causal: bool,
) -> HyperAttentionParams:
    """Check the arguments of make_plan, whichever backend makes the plan; the parameters, or the defaults for None."""
    params = params if params is not None else HyperAttentionParams()
    if not isinstance(params, HyperAttentionParams):
        raise ValueError(
            f"params must be HyperAttentionParams or None, got {type(params).__name__}; "
            "HyperAttentionParams.from_dict makes them from plain data"
        )
    check_inputs(q, k, is_causal=is_causal, enable_gqa=True)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    return params


def plan_shape(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int]:
    """(B, H, Hkv, Nq, Nk) of q (B, H, Nq, D) and k (B, Hkv, Nk, D)."""
    return (q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2])


def hash_inputs(q: Tensor, k: Tensor, params: HyperAttentionParams, seed: int) -> tuple[Tensor, Tensor]:
    """Hash ranks of every query (B, H, Nq) and key (B, Hkv, Nk), int32: made once, used by all levels."""
    directions = projections(seed, q.shape[-1], params.num_projections, str(q.device))
    return hash_ranks(q.detach(), directions), hash_ranks(k.detach(), directions)


def plan_level(
    query_ranks: Tensor,
    key_ranks: Tensor,
    level: LevelShape,
    params: HyperAttentionParams,
    samples: tuple[Tensor, Tensor],
    tile_size: int,
) -> LevelPlan:
    """Sort and pair the nodes of one level; ranks are those of the whole sequence, (B, H, Nq) and (B, Hkv, Nk)."""
    (batch, heads, _), kv_heads, device = query_ranks.shape, key_ranks.shape[1], key_ranks.device
    num_ranks, node_len = 2**params.num_projections, level.node_len
    block_size = min(params.block_size, node_len)
    num_blocks = -(-node_len // block_size)

    node_keys = _nodes(key_ranks, level.key_starts, node_len, num_ranks)
    node_queries = _nodes(query_ranks, level.query_starts, level.query_len, num_ranks)
    key_order, key_rank_starts = sort_by_rank(node_keys.reshape(-1, node_len), num_ranks)
    query_order, query_rank_starts = sort_by_rank(node_queries.reshape(-1, level.query_len), num_ranks)
    if params.pairing == "bucket":
        target = block_of_rank(key_rank_starts, block_size, num_blocks).view(batch, kv_heads, -1, num_ranks)
        target = target.repeat_interleave(heads // kv_heads, dim=1).view(-1, num_ranks)
        first_rank = torch.searchsorted(target, row_arange(target.shape[0], num_blocks + 1, device))
        block_first = query_rank_starts.gather(1, first_rank)
    else:
        block_first = rank_pairing(level, block_size, device).expand(batch, heads, -1, -1).flatten(0, 2)
    tile_first, tile_count, tile_block = cut_tiles(
        block_first, tile_size, max_tiles(level.query_len, tile_size, num_blocks)
    )
    rows = (batch, heads, level.num_nodes, -1)
    return LevelPlan(
        block_size=block_size,
        tile_size=tile_size,
        key_order=_to_positions(key_order.view(batch, kv_heads, level.num_nodes, -1), level.key_starts),
        query_order=_to_positions(query_order.view(rows), level.query_starts),
        tile_first=tile_first.view(rows),
        tile_count=tile_count.view(rows),
        tile_block=tile_block.view(rows),
        sample_index=samples[0],
        sample_weight=samples[1],
    )


def _nodes(ranks: Tensor, starts: tuple[int, ...], length: int, no_row: int) -> Tensor:
    """Ranks (B, H, N) as nodes (B, H, G, length) that begin at starts, which are equally far apart."""
    if len(starts) == 1:
        node = ranks[..., starts[0] : starts[0] + length].unsqueeze(2)
    else:
        step = starts[1] - starts[0]
        ranks = ranks[..., starts[0] :]
        ranks = torch.nn.functional.pad(ranks, (0, len(starts) * step - ranks.shape[-1]), value=no_row)
        node = ranks.unflatten(2, (len(starts), step))[..., :length]
    return torch.nn.functional.pad(node, (0, length - node.shape[-1]), value=no_row)


def _to_positions(order: Tensor, starts: tuple[int, ...]) -> Tensor:
    """Indices within nodes (B, H, G, S) to positions in the sequence."""
    if len(starts) == 1 and starts[0] == 0:
        return order
    return order + torch.tensor(starts, device=order.device, dtype=order.dtype).view(1, 1, -1, 1)
