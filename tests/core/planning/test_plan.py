"""The plan: permutations, tiles, pairing, samples, and that a seed alone decides what is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, LevelPlan, make_plan
from hyperattn_core.oracle import weight_matrix
from hyperattn_core.planning import draws
from hyperattn_core.planning.levels import causal_levels
from hyperattn_core.planning.lsh import codes_above, gray_rank, hash_ranks
from hyperattn_core.planning.pairing import cut_tiles
from tests.helpers.core_inputs import CHOICES, PAIRINGS, Case, all_params, cases, normal, qkv, small_params

LENGTHS = (1, 7, 8, 9, 31, 64, 97, 130)


def tensors(plan: AttentionPlan) -> list[Tensor]:
    """All tensors of a plan, in order."""
    values = [getattr(level, field.name) for level in plan.levels for field in fields(LevelPlan)]
    return [x for x in values if isinstance(x, Tensor)]


def same(a: AttentionPlan, b: AttentionPlan) -> bool:
    """True if two plans hold the same numbers."""
    pairs = zip(tensors(a), tensors(b), strict=True)
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def rows(level: LevelPlan) -> Iterator[tuple[tuple[int, int, int], tuple[int, int, int]]]:
    """Index of every (batch, head, node) with that of its keys."""
    batch, heads, nodes, _ = level.query_order.shape
    group = heads // level.key_order.shape[1]
    for b in range(batch):
        for h in range(heads):
            for g in range(nodes):
                yield (b, h, g), (b, h // group, g)


def tiles(level: LevelPlan, row: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(first, count, block) of a row's tiles, each of which meets one block."""
    columns = (level.tile_first[row], level.tile_count[row], level.tile_block[row].squeeze(1))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def node_spans(plan: AttentionPlan, level_index: int, node: int) -> tuple[range, range]:
    """The positions of a node's queries and keys, as the recursion says."""
    _, _, _, num_queries, num_keys = plan.shape
    if not plan.is_causal:
        return range(num_queries), range(num_keys)
    assert plan.leaf_len is not None
    size = plan.leaf_len * 2**level_index
    start = 2 * size * node
    return range(start + size, min(start + 2 * size, num_queries)), range(start, start + size)


@settings(max_examples=60)
@given(cases(pairings=PAIRINGS))
def test_every_row_appears_once_and_every_tile_fits(case: Case) -> None:
    plan = case.plan()
    for index, level in enumerate(plan.levels):
        for row, key_row in rows(level):
            queries, keys = node_spans(plan, index, row[2])
            assert sorted(level.key_order[key_row].tolist()) == list(keys)
            covered: list[int] = []
            for first, count, block in tiles(level, row):
                assert 0 <= count <= level.tile_size == case.tile_size
                assert 0 <= block < level.num_blocks
                covered += level.query_order[row][first : first + count].tolist()
            assert sorted(covered) == list(queries)
            used = [tile for tile in tiles(level, row) if tile[1]]
            assert [block for _, _, block in used] == sorted(block for _, _, block in used)
            bound = -(-level.query_order.shape[3] // level.tile_size) + level.num_blocks - 1
            assert level.tile_count.shape[3] <= bound


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=5), min_size=1, max_size=3),
    st.integers(1, 20),
)
def test_the_bound_on_tiles_holds_for_every_distribution(runs: list[list[int]], tile_size: int) -> None:
    total = max(sum(run) for run in runs)
    runs = [[*run, total - sum(run)] for run in runs]
    block_first = torch.nn.functional.pad(torch.tensor(runs).cumsum(1), (1, 0)).to(torch.int32)
    num_blocks = block_first.shape[1] - 1
    first, count, block = cut_tiles(block_first, tile_size, -(-total // tile_size) + num_blocks - 1)
    for row, run in enumerate(runs):
        met: list[int] = []
        for f, c, i in zip(first[row].tolist(), count[row].tolist(), block[row].tolist(), strict=True):
            assert c <= tile_size
            assert f == len(met) or c == 0
            met += [i] * c
        assert met == [i for i, length in enumerate(run) for _ in range(length)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("crowd", ["queries", "keys", "both", "opposite"])
def test_crowds_in_one_bucket_are_tiled_too(crowd: str, pairing: str, is_causal: bool) -> None:
    q, k, _ = qkv(queries=203, dim=4, heads=2)
    if crowd != "keys":
        q = q[:, :, :1].expand_as(q)
    if crowd != "queries":
        k = (-q if crowd == "opposite" else q)[:, :, :1].expand_as(k)
    plan = make_plan(q, k, small_params("iid", pairing), is_causal=is_causal, tile_size=4)
    for index, level in enumerate(plan.levels):
        for row, _key_row in rows(level):
            queries, _ = node_spans(plan, index, row[2])
            order = level.query_order[row].tolist()
            covered = [x for first, count, _ in tiles(level, row) for x in order[first : first + count]]
            assert covered == list(queries) if crowd != "keys" else sorted(covered) == list(queries)
            assert max(count for _, count, _ in tiles(level, row)) <= 4


@settings(max_examples=40)
@given(cases(pairings=PAIRINGS))
def test_keys_and_queries_are_sorted_by_rank_and_equal_ranks_keep_their_order(case: Case) -> None:
    plan = case.plan()
    if plan.is_exact:
        return
    projections = drawn_projections(plan, case.q.shape[3])
    for index, level in enumerate(plan.levels):
        for row, key_row in rows(level):
            queries, keys = node_spans(plan, index, row[2])
            projected_q, projected_k = case.q[row[:2]] @ projections, case.k[key_row[:2]] @ projections
            of_queries = of_keys = torch.zeros(1)
            if case.params.hashing == "centred":
                of_keys = projected_k[list(keys)].mean(0)
                of_queries = projected_q[list(keys) if case.is_causal else list(queries)].mean(0)
            unsure = [((x - t).abs() < 1e-9).any() for x, t in ((projected_q, of_queries), (projected_k, of_keys))]
            assume(not any(unsure))
            rank = gray_rank(codes_above(projected_k, of_keys), projected_k.shape[1]).tolist()
            assert level.key_order[key_row].tolist() == sorted(keys, key=lambda j: rank[j])
            rank = gray_rank(codes_above(projected_q, of_queries), projected_q.shape[1]).tolist()
            assert level.query_order[row].tolist()[: len(queries)] == sorted(queries, key=lambda i: rank[i])


def drawn_projections(plan: AttentionPlan, dim: int) -> Tensor:
    """The directions that a plan's seed stands for."""
    return draws.projections(plan.seed, dim, plan.params.num_projections, "cpu")


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (97, 97), (50, 131), (131, 50), (3, 40)])
def test_rank_pairing_meets_slices_of_sorted_queries_with_blocks_of_sorted_keys(
    queries: int, keys: int, is_causal: bool
) -> None:
    if is_causal and queries != keys:
        keys = queries
    q, k, _ = qkv(queries=queries, keys=keys, heads=2, kv_heads=1)
    plan = make_plan(q, k, small_params("iid", "rank"), is_causal=is_causal, tile_size=3)
    for index, level in enumerate(plan.levels):
        for row, key_row in rows(level):
            count, size = len(node_spans(plan, index, row[2])[0]), level.key_order[key_row].numel()
            for first, length, block in tiles(level, row):
                for place in range(first, first + length):
                    assert block == place * size // count // level.block_size


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (97, 97), (50, 131), (131, 50), (3, 40)])
def test_bucket_pairing_sends_a_query_to_the_middle_of_the_keys_of_its_rank(
    queries: int, keys: int, is_causal: bool
) -> None:
    if is_causal and queries != keys:
        keys = queries
    q, k, _ = qkv(queries=queries, keys=keys, heads=2, kv_heads=1)
    plan = make_plan(q, k, small_params("iid", "bucket"), is_causal=is_causal, tile_size=3)
    projections = drawn_projections(plan, q.shape[3])
    query_ranks, key_ranks = hash_ranks(q, projections), hash_ranks(k, projections)
    for level in plan.levels:
        for row, key_row in rows(level):
            sorted_ranks = [int(key_ranks[key_row[:2]][j]) for j in level.key_order[key_row].tolist()]
            for first, length, block in tiles(level, row):
                for query in level.query_order[row][first : first + length].tolist():
                    own = int(query_ranks[row[:2]][query])
                    below, upto = sum(r < own for r in sorted_ranks), sum(r <= own for r in sorted_ranks)
                    assert block == min((below + upto) // 2 // level.block_size, level.num_blocks - 1)


@pytest.mark.parametrize("num_keys", [2, 7, 8, 9, 64, 97, 200])
@pytest.mark.parametrize("sampling", ["iid", "stratified"])
def test_samples_are_drawn_as_the_sampling_says(sampling: str, num_keys: int) -> None:
    q, k, _ = qkv(queries=num_keys, batch=2, heads=4, kv_heads=2)
    size = 6
    params = HyperAttentionParams(
        block_size=1, sample_size=size, min_seq_len=1, sampling=sampling, pairing="rank"  # type: ignore[arg-type]
    )  # fmt: skip
    plan = make_plan(q, k, params)
    if sampling == "stratified" and num_keys <= size:
        assert plan.is_exact
        return
    (level,) = plan.levels
    assert level.sample_index.shape == (2, 2, 1, size)
    assert int(level.sample_index.min()) >= 0
    assert int(level.sample_index.max()) < num_keys
    if sampling == "iid":
        assert torch.equal(level.sample_weight, torch.full((2, 2, 1, size), num_keys / size, dtype=torch.float64))
        return
    edges = [i * num_keys // size for i in range(size + 1)]
    lengths = [high - low for low, high in pairwise(edges)]
    assert max(lengths) - min(lengths) <= 1
    assert level.sample_weight[1, 1, 0].tolist() == lengths
    for drawn in level.sample_index.view(-1, size).tolist():
        assert all(low <= x < high for low, x, high in zip(edges, drawn, edges[1:], strict=False))


def test_every_position_of_a_slice_is_drawn() -> None:
    q, k, _ = qkv(queries=10, heads=300)
    params = HyperAttentionParams(block_size=2, sample_size=3, min_seq_len=1, sampling="stratified", pairing="rank")
    (level,) = make_plan(q, k, params).levels
    for place, (low, high) in enumerate([(0, 3), (3, 6), (6, 10)]):
        assert set(level.sample_index[0, :, 0, place].tolist()) == set(range(low, high))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
class TestSeeds:
    """Choices that a seed decides, and those that it does not."""

    def test_the_same_seed_gives_the_same_plan(self, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, _ = qkv(queries=300, heads=4, kv_heads=2)
        params = small_params(sampling, pairing)
        first = make_plan(q, k, params, 5, is_causal=is_causal)
        torch.manual_seed(1234)
        draws.projections.cache_clear()
        assert same(first, make_plan(q.clone(), k.clone(), params, 5, is_causal=is_causal))

    @pytest.mark.usefixtures("two_threads")
    def test_the_number_of_threads_does_not_matter(self, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, _ = qkv(queries=8_000 if pairing == "routed" else 40_000, dtype=torch.float32)
        params = small_params(sampling, pairing, block_size=64, sample_size=64, num_projections=7, min_seq_len=512)
        wide = make_plan(q, k, params, is_causal=is_causal)
        torch.set_num_threads(1)
        assert same(wide, make_plan(q, k, params, is_causal=is_causal))

    def test_the_global_generator_is_left_alone(self, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, _ = qkv(queries=60)
        torch.manual_seed(7)
        before = torch.get_rng_state()
        make_plan(q, k, small_params(sampling, pairing), 5, is_causal=is_causal)
        assert torch.equal(before, torch.get_rng_state())

    def test_another_seed_gives_other_samples_and_directions(
        self, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        q, k, _ = qkv(queries=100)
        params = small_params(sampling, pairing, min_seq_len=20)
        plans = [make_plan(q, k, params, seed, is_causal=is_causal) for seed in (0, 1, -1, 2**70)]
        for i, a in enumerate(plans):
            for b in plans[:i]:
                pairs = zip(a.levels, b.levels, strict=True)
                drew_alike = [torch.equal(mine.sample_index, other.sample_index) for mine, other in pairs]
                # Systematic samples of a short node are few.
                assert not (all(drew_alike) if params.uses_probes else any(drew_alike))
                if pairing != "routed":
                    assert not torch.equal(a.levels[-1].key_order, b.levels[-1].key_order)
                assert not torch.equal(drawn_projections(a, 8), drawn_projections(b, 8))

    def test_uniform_samples_follow_the_seed_and_the_sizes_alone(
        self, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        if sampling == "probed":
            pytest.skip("probed samples follow q and k")
        params = small_params(sampling, pairing)
        plans = [
            make_plan(*qkv(queries=90, dim=dim, seed=seed, dtype=dtype)[:2], params, 3, is_causal=is_causal)
            for seed, dim, dtype in ((0, 8, torch.float64), (1, 3, torch.bfloat16))
        ]
        for a, b in zip(plans[0].levels, plans[1].levels, strict=True):
            assert torch.equal(a.sample_index, b.sample_index)

    def test_heads_nodes_and_levels_have_samples_of_their_own(
        self, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        q, k, _ = qkv(queries=320, heads=2, batch=2)
        plan = make_plan(q, k, small_params(sampling, pairing, min_seq_len=40), is_causal=is_causal)
        drawn = [tuple(row) for level in plan.levels for row in level.sample_index.view(-1, 6).tolist()]
        assert len(set(drawn)) == len(drawn)

    def test_levels_do_not_stretch_the_same_draws(self, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, _ = qkv(queries=1280 if is_causal else 320, heads=8)
        params = small_params(sampling, pairing, min_seq_len=319)
        levels = make_plan(q, k, params, is_causal=is_causal).levels
        places = [level.sample_index[:, :, 0].double() / level.node_len for level in levels]
        for i, place in enumerate(places):
            for other in places[:i]:
                # As far apart as two independent draws from a slice (a third of its length), not as rounding.
                assert float((place - other).abs().mean()) > 0.2 / params.sample_size

    def test_tiles_are_a_matter_of_speed_only(self, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, _ = qkv(queries=75, heads=2, kv_heads=1)
        params = small_params(sampling, pairing)
        weights = [
            weight_matrix(make_plan(q, k, params, 2, is_causal=is_causal, tile_size=size)) for size in (1, 7, 64, 500)
        ]
        assert all(torch.equal(weights[0], other) for other in weights[1:])


@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@settings(max_examples=15)
@given(length=st.integers(2, 150), leaf_len=st.integers(1, 40))
def test_every_allowed_pair_is_in_exactly_one_node(sampling: str, pairing: str, length: int, leaf_len: int) -> None:
    q, k, _ = qkv(queries=length, dim=3)
    plan = make_plan(q, k, small_params(sampling, pairing, min_seq_len=leaf_len), is_causal=True)
    seen = torch.zeros(length, length, dtype=torch.int64)
    for level in plan.levels:
        for row, key_row in rows(level):
            for first, count, _ in tiles(level, row):
                for query in level.query_order[row][first : first + count].tolist():
                    seen[query, level.key_order[key_row].long()] += 1
    leaf = torch.arange(length) // (plan.leaf_len or length)
    seen += (leaf.unsqueeze(0) == leaf.unsqueeze(1)).long().tril()
    assert torch.equal(seen, torch.ones_like(seen).tril())


@given(st.integers(1, 3000), st.integers(1, 100))
def test_the_causal_recursion_halves_down_to_its_leaves(length: int, leaf_len: int) -> None:
    levels = list(causal_levels(length, leaf_len))
    assert [size for size, _ in levels] == [leaf_len * 2**i for i in range(len(levels))]
    assert leaf_len * 2 ** len(levels) >= length
    if levels:
        assert levels[-1][0] < length
        assert levels[-1][1] == 1
    for size, nodes in levels:
        starts = [start for start in range(0, length, 2 * size) if start + size < length]
        assert nodes == len(starts)


@settings(max_examples=60)
@given(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS), all_params(), st.booleans())
@example(64, 31, HyperAttentionParams(31, 3, 4, 5, "iid", "rank"), False)
@example(64, 31, HyperAttentionParams(30, 3, 4, 5, "iid", "rank"), False)
@example(64, 31, HyperAttentionParams(8, 31, 4, 5, "stratified", "rank"), False)
@example(64, 31, HyperAttentionParams(8, 31, 4, 5, "iid", "rank"), False)
def test_a_plan_is_exact_where_the_estimator_is(
    queries: int, keys: int, params: HyperAttentionParams, is_causal: bool
) -> None:
    queries = keys if is_causal else queries
    q, k, _ = qkv(queries=queries, keys=keys, dim=2)
    plan = make_plan(q, k, params, is_causal=is_causal)
    short = keys <= params.min_seq_len
    one_block = params.block_size >= keys and params.pairing != "routed"
    complete = one_block or (params.sampling != "iid" and params.sample_size >= keys)
    assert plan.is_exact == (short or (complete and not is_causal))
    assert plan.shape == (1, 1, 1, queries, keys)
    assert (plan.leaf_len == params.min_seq_len) == (is_causal and not plan.is_exact)


def test_a_plan_holds_no_graph() -> None:
    q, k = (normal(1, 1, 60, 4, seed=i).requires_grad_() for i in range(2))
    assert not any(x.requires_grad for x in tensors(make_plan(q, k, small_params("iid", "bucket"))))


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_a_seed_that_is_no_integer_is_refused(seed: object) -> None:
    q, k, _ = qkv(queries=20)
    with pytest.raises(ValueError, match=r"^seed must be an integer, got "):
        make_plan(q, k, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("tile_size", [0, -3, 2.5, True, "64"])
def test_a_tile_size_out_of_range_is_refused(tile_size: object) -> None:
    q, k, _ = qkv(queries=20)
    with pytest.raises(ValueError, match=r"^tile_size must be an integer of at least 1, got "):
        make_plan(q, k, tile_size=tile_size)  # type: ignore[arg-type]


def test_params_as_plain_data_are_refused_with_the_way_to_make_them() -> None:
    q, k, _ = qkv(queries=20)
    with pytest.raises(ValueError, match=r"^params must be HyperAttentionParams or None, got dict; .*from_dict"):
        make_plan(q, k, {"block_size": 8})  # type: ignore[arg-type]
