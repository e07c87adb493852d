"""AttentionPlan: every random or data-dependent choice of one call, made before any attention is computed.

A plan holds, for each batched non-causal problem ("level"), the sorted keys, the tiles of sorted queries with the key
block each of them meets, and the sampled keys with their weights. The estimator at a plan is a deterministic function.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hyperattn_core.checks import check_inputs
from hyperattn_core.lsh import hash_ranks, sort_by_rank
from hyperattn_core.pairing import block_of_rank, cut_tiles, row_arange
from hyperattn_core.params import HyperAttentionParams, Sampling, check_int

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
    tile_size: int = DEFAULT_TILE_SIZE,
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
        tile_size: most queries in a tile; a matter of speed only.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or seed or tile_size is out of range.
    """
    params = params if params is not None else HyperAttentionParams()
    if not isinstance(params, HyperAttentionParams):
        raise ValueError(
            f"params must be HyperAttentionParams or None, got {type(params).__name__}; "
            "HyperAttentionParams.from_dict makes them from plain data"
        )
    check_inputs(q, k, is_causal=is_causal, enable_gqa=True)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    check_int("tile_size", tile_size, low=1)
    batch, heads, num_queries, _ = q.shape
    kv_heads, num_keys = k.shape[1], k.shape[2]
    shape = (batch, heads, kv_heads, num_queries, num_keys)
    if num_keys <= params.min_seq_len or num_queries == 0 or (not is_causal and _covers_all_keys(params, num_keys)):
        return AttentionPlan(params, seed, is_causal, shape, (), None)
    q, k = q.detach(), k.detach()
    projections = _projections(seed, q.shape[-1], params.num_projections, str(q.device))
    num_ranks = 2**params.num_projections
    query_ranks, key_ranks = hash_ranks(q, projections), hash_ranks(k, projections)
    if not is_causal:
        level = _plan_level(
            query_ranks.unsqueeze(2), key_ranks.unsqueeze(2), [0], [0], [num_queries], params, seed, 0, tile_size
        )
        return AttentionPlan(params, seed, False, shape, (level,), None)
    levels = []
    padded_len = _padded_len(num_keys, params.min_seq_len)
    query_ranks = _pad_last(query_ranks, padded_len, num_ranks)
    key_ranks = _pad_last(key_ranks, padded_len, num_ranks)
    for index, (node_len, num_nodes) in enumerate(causal_levels(num_keys, params.min_seq_len)):
        span = num_nodes * 2 * node_len
        halves = (batch, -1, num_nodes, 2, node_len)
        key_starts = [2 * node_len * g for g in range(num_nodes)]
        query_starts = [s + node_len for s in key_starts]
        counts = [min(node_len, num_keys - s) for s in query_starts]
        levels.append(
            _plan_level(
                query_ranks[..., :span].reshape(halves)[..., 1, :],
                key_ranks[..., :span].reshape(halves)[..., 0, :],
                query_starts,
                key_starts,
                counts,
                params,
                seed,
                index,
                tile_size,
            )
        )
    return AttentionPlan(params, seed, True, shape, tuple(levels), params.min_seq_len)


def causal_levels(seq_len: int, leaf_len: int) -> Iterator[tuple[int, int]]:
    """Levels of the causal recursion (Algorithm 4): (keys per node, nodes) from the shortest nodes to the longest.

    Node g of a level with S keys pairs keys [2gS, 2gS + S) with the queries of [2gS + S, 2gS + 2S) below seq_len.
    """
    node_len = leaf_len
    while node_len < seq_len:
        yield node_len, -(-(seq_len - node_len) // (2 * node_len))
        node_len *= 2


def _covers_all_keys(params: HyperAttentionParams, num_keys: int) -> bool:
    """Whether the estimator is exact attention: one block holds every key, or every key is sampled once."""
    return params.block_size >= num_keys or (params.sampling == "stratified" and params.sample_size >= num_keys)


def _padded_len(seq_len: int, leaf_len: int) -> int:
    length = leaf_len
    while length < seq_len:
        length *= 2
    return length


def _pad_last(ranks: Tensor, length: int, value: int) -> Tensor:
    return torch.nn.functional.pad(ranks, (0, length - ranks.shape[-1]), value=value)


def _plan_level(
    query_ranks: Tensor,
    key_ranks: Tensor,
    query_starts: list[int],
    key_starts: list[int],
    query_counts: list[int],
    params: HyperAttentionParams,
    seed: int,
    level_index: int,
    tile_size: int,
) -> LevelPlan:
    """Sort and pair the nodes of one level; ranks are (B, H or Hkv, G, S), starts and counts are per node."""
    batch, heads, num_nodes, query_len = query_ranks.shape
    kv_heads, node_len = key_ranks.shape[1], key_ranks.shape[3]
    device = key_ranks.device
    num_ranks = 2**params.num_projections
    block_size = min(params.block_size, node_len)
    num_blocks = -(-node_len // block_size)

    key_order, key_rank_starts = sort_by_rank(key_ranks.reshape(-1, node_len), num_ranks)
    query_order, query_rank_starts = sort_by_rank(query_ranks.reshape(-1, query_len), num_ranks)
    if params.pairing == "bucket":
        target = block_of_rank(key_rank_starts, block_size, num_blocks).view(batch, kv_heads, num_nodes, num_ranks)
        target = target.repeat_interleave(heads // kv_heads, dim=1).view(-1, num_ranks)
        first_rank = torch.searchsorted(target, row_arange(target.shape[0], num_blocks + 1, device))
        block_first = query_rank_starts.gather(1, first_rank)
    else:
        counts = torch.tensor(query_counts, device=device, dtype=torch.int64).view(1, 1, -1, 1)
        edges = torch.arange(num_blocks + 1, device=device, dtype=torch.int64) * block_size
        # Sorted query p meets the block of sorted key floor(p * S / count): the i-th slice with the i-th block.
        block_first = -(-(edges.clamp(max=node_len) * counts) // node_len)
        block_first = block_first.expand(batch, heads, -1, -1).reshape(-1, num_blocks + 1).to(torch.int32)
    tile_first, tile_count, tile_block = cut_tiles(block_first, tile_size, -(-query_len // tile_size) + num_blocks - 1)

    sample_index, sample_weight = _samples(
        seed,
        level_index,
        (batch, kv_heads, num_nodes),
        node_len,
        params.sample_size,
        params.sampling,
        num_blocks,
        str(device),
    )
    rows = (batch, heads, num_nodes, -1)
    return LevelPlan(
        block_size=block_size,
        tile_size=tile_size,
        key_order=_to_positions(key_order.view(batch, kv_heads, num_nodes, -1), key_starts),
        query_order=_to_positions(query_order.view(rows), query_starts),
        tile_first=tile_first.view(rows),
        tile_count=tile_count.view(rows),
        tile_block=tile_block.view(rows),
        sample_index=sample_index,
        sample_weight=sample_weight,
    )


def _to_positions(order: Tensor, starts: list[int]) -> Tensor:
    """Indices within nodes (B, H, G, S) to positions in the sequence."""
    if len(starts) == 1 and starts[0] == 0:
        return order
    return order + torch.tensor(starts, device=order.device, dtype=order.dtype).view(1, 1, -1, 1)


def _generator(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for one purpose; streams of the same seed are independent of each other."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{stream}").getrandbits(63))


@lru_cache(maxsize=64)
def _projections(seed: int, head_dim: int, num_projections: int, device: str) -> Tensor:
    """Gaussian directions (D, r), float64, shared by all heads; small, so that device copies are kept."""
    drawn = torch.randn(head_dim, num_projections, generator=_generator(seed, "projections"), dtype=torch.float64)
    return drawn.to(device)


def _samples(
    seed: int,
    level_index: int,
    rows: tuple[int, int, int],
    node_len: int,
    sample_size: int,
    sampling: Sampling,
    num_blocks: int,
    device: str,
) -> tuple[Tensor, Tensor]:
    """Sampled indices into the sorted keys, int32 (*rows, m), and their weights, float64 (m,)."""
    if num_blocks == 1:
        sample_size = 0  # every sample would lie in the one block, with weight zero
    draw = _draw_samples if device == "cpu" else _cached_samples
    return draw(seed, level_index, rows, node_len, sample_size, sampling, device)


def _draw_samples(
    seed: int,
    level_index: int,
    rows: tuple[int, int, int],
    node_len: int,
    sample_size: int,
    sampling: Sampling,
    device: str,
) -> tuple[Tensor, Tensor]:
    generator = _generator(seed, f"samples/{level_index}")
    if sampling == "stratified":
        sample_size = min(sample_size, node_len)
        edges = torch.arange(sample_size + 1, dtype=torch.int64) * node_len // max(sample_size, 1)
        low, length = edges[:-1], edges[1:] - edges[:-1]
        weight = length.to(torch.float64)
    else:
        low = torch.zeros(sample_size, dtype=torch.int64)
        length = torch.full((sample_size,), node_len, dtype=torch.int64)
        weight = torch.full((sample_size,), node_len / max(sample_size, 1), dtype=torch.float64)
    uniform = torch.rand(*rows, sample_size, generator=generator, dtype=torch.float64)
    index = low + (uniform * length).to(torch.int64).clamp(max=length - 1)
    return index.to(device=device, dtype=torch.int32), weight.to(device)


_cached_samples = lru_cache(maxsize=64)(_draw_samples)
