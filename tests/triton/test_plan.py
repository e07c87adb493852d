"""The kernels' plan is the PyTorch backend's, element for element."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, LevelPlan, make_plan
from hyperattn_core.params import Pairing
from hyperattn_core.planning import draws
from hyperattn_core.planning.lsh import hash_ranks
from hyperattn_core.planning.packed import Packed, PackedPlan, Settings
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.device_tables import level_table, rank_tiles, uniform_weights
from hyperattn_core.triton_backend.geometry import bias_row, geometry, pair_tiles
from hyperattn_core.triton_backend.kernels import pair
from hyperattn_core.triton_backend.packing import pack, unpack
from hyperattn_core.triton_backend.plan import PlanWork, split_projections
from hyperattn_core.triton_backend.sampling import drawn_samples
from tests.helpers.slow import slow_in
from tests.helpers.triton_inputs import CALLS, SLOW, Call, normal


def covered(level: LevelPlan) -> Tensor:
    """True for the entries of query_order (B, H, G, Sq) that tiles cover."""
    count = level.tile_count.sum(-1, keepdim=True)
    return torch.arange(level.query_order.shape[-1]) < count


def assert_same_plan(plan: AttentionPlan, expected: AttentionPlan) -> None:
    """Every field of every level; the order of queries where tiles cover it."""
    assert plan.shape == expected.shape
    assert plan.leaf_len == expected.leaf_len
    assert len(plan.levels) == len(expected.levels) > 0
    for level, other in zip(plan.levels, expected.levels, strict=True):
        for field in dataclasses.fields(LevelPlan):
            mine, theirs = getattr(level, field.name), getattr(other, field.name)
            if field.name == "query_order":
                mine, theirs = mine[covered(level)], theirs[covered(other)]
            if field.name == "sample_weight" and plan.params.uses_probes:
                # The kernels have weights as logarithms in float32, and probed ones follow from nothing else.
                torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
                continue
            same = torch.equal(mine, theirs) if isinstance(theirs, Tensor) else mine == theirs
            assert same, field.name


@pytest.mark.parametrize("name", slow_in(CALLS, SLOW))
def test_the_plan_is_that_of_pytorch(name: str) -> None:
    plan = CALLS[name].plan("triton")
    assert isinstance(plan, PackedPlan)
    assert_same_plan(plan, CALLS[name].plan("torch"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several sort tiles", "causal, prime length"])
def test_the_sort_is_that_of_triton(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the quicker one that takes its place in the other tests."""
    monkeypatch.setattr(tl, "sort", triton.language.standard.sort)
    assert_same_plan(CALLS[name].plan("triton"), CALLS[name].plan("torch"))


@pytest.mark.parametrize(
    "name", ["several sort tiles", "causal, prime length", "paper's choices", "truncated, causal", "centred"]
)
def test_packing_a_plan_gives_what_the_kernels_make(name: str) -> None:
    """So the kernels read the same from a plan made by PyTorch; queries that no tile covers aside."""
    made, other = CALLS[name].plan("triton"), CALLS[name].plan("torch")
    packed, mine = pack(other), pack(made)
    assert packed.settings == mine.settings
    # Probed weights are logarithms of what the kernels hold in float32.
    tolerance = 1e-6 if made.params.uses_probes else 0.0
    torch.testing.assert_close(packed.weights, mine.weights, rtol=tolerance, atol=tolerance)
    where = geometry(made.shape, packed.settings)
    assert packed.data.numel() == mine.data.numel() == where.data_size
    biases = slice(where.levels[0].query_order)
    found, wanted = (x.data[biases].view(torch.float32) for x in (mine, packed))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    for level in where.levels:
        rest = slice(level.key_order, level.block_tile)
        assert torch.equal(packed.data[rest], mine.data[rest])


def test_the_first_tile_of_every_block() -> None:
    plan = CALLS["several sort tiles"].plan("triton")
    packed = pack(plan)
    where = geometry(plan.shape, packed.settings).levels[0]
    firsts = packed.data[where.block_tile : where.block_tile + where.num_blocks + 1].tolist()
    level = plan.levels[0]
    used = level.tile_block[0, 0, 0, level.tile_count[0, 0, 0] > 0, 0].tolist()
    assert firsts == [sum(b < block for b in used) for block in range(where.num_blocks + 1)]


def test_two_plans_are_equal_to_the_last_entry() -> None:
    """Also entries that mean nothing: a graph that is traced must see the same numbers."""
    first, second = (pack(CALLS["causal, prime length"].plan("triton")) for _ in range(2))
    assert torch.equal(first.data, second.data)


def test_unpacking_gives_back_the_levels() -> None:
    plan = CALLS["causal"].plan("torch")
    packed = pack(plan)
    levels = []
    for level, original in zip(unpack(packed, geometry(plan.shape, packed.settings)), plan.levels, strict=True):
        # Weights are kept as logarithms in float32.
        torch.testing.assert_close(level.sample_weight, original.sample_weight, rtol=1e-6, atol=0)
        levels.append(dataclasses.replace(level, sample_weight=original.sample_weight))
    assert_same_plan(dataclasses.replace(plan, levels=tuple(levels)), plan)


def test_samples_of_a_plan_made_by_hand_are_packed_in_ascending_order() -> None:
    """As the kernels look for them; the plan is the same estimator."""
    plan = CALLS["probed, causal"].plan()
    turned = [
        dataclasses.replace(x, sample_index=x.sample_index.flip(3), sample_weight=x.sample_weight.flip(3))
        for x in plan.levels
    ]
    other = pack(dataclasses.replace(plan, levels=tuple(turned)))
    assert torch.equal(other.data, pack(plan).data)
    assert torch.equal(other.weights, pack(plan).weights)


def test_levels_of_another_call_are_refused() -> None:
    plan, other = CALLS["plain"].plan(), Call(queries=160).plan()
    with pytest.raises(ValueError, match="levels are not those of its shape"):
        pack(dataclasses.replace(plan, levels=other.levels))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ranks_differ_only_where_a_projection_is_within_rounding_of_zero(dtype: torch.dtype) -> None:
    q, k = (normal(1, 1, 10000, 64, seed=i, dtype=dtype) for i in range(2))
    params = HyperAttentionParams()
    settings = Settings(params, False, 64)
    work = PlanWork(q, k, 7, settings, 0.125)
    work.hash()
    work.probe()
    directions = draws.projections(7, 64, params.num_projections, "cpu")
    rows = torch.cat([q[0, 0], k[0, 0]])
    differ = work.ranks.to(torch.int32) != hash_ranks(rows, directions)
    nearest = (rows.double() @ directions.to(torch.float32).double()).abs().amin(1)
    assert (nearest[differ] < 1e-5).all()
    assert differ.sum() <= 1


@pytest.mark.parametrize("pairing", ["bucket", "rank"])
def test_the_pair_kernel_launches_as_many_programs_as_there_is_work(pairing: Pairing) -> None:
    """Under a causal mask too, where nodes of one level are longer than those of another: each takes its own number."""
    settings = Settings(HyperAttentionParams(min_seq_len=1024, pairing=pairing), True, 128)
    for length in (2**15, 2**17, 2**19, 2**21):
        where = geometry((1, 2, 1, length, length), settings)
        needed = sum(
            level.num_nodes * (1 + -(-max(level.num_tiles, level.num_blocks + 1) // pair_tiles(settings.params)))
            for level in where.levels
        )
        assert where.pair_programs == 2 * needed
        # A level has a tile for so many queries, and one more for each block.
        assert where.pair_programs < 2 * length * len(where.levels) / 1000


def test_the_pair_kernel_is_launched_with_those(monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALLS["causal"]
    kernel, grids = pair.pair_kernel, []

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(pair, "pair_kernel", Recorder())
    packed = pack(call.plan("triton"))
    assert grids == [(geometry(call.plan().shape, packed.settings).pair_programs,)]


def test_an_exact_call_has_no_levels() -> None:
    assert Call(queries=30).plan("triton").is_exact
    assert not isinstance(Call(queries=30).plan("triton"), PackedPlan)


def test_settings_survive_as_integers() -> None:
    settings = Settings(CALLS["paper's choices"].parameters(), True, 48)
    assert Settings.from_list(settings.to_list()) == settings
    assert settings.params == CALLS["paper's choices"].parameters()


@pytest.mark.parametrize("name", ["several sort tiles", "causal, grouped heads, batch", "paper's choices"])
def test_biases_are_the_logarithms_of_the_weights_but_for_keys_of_the_block(name: str) -> None:
    plan = CALLS[name].plan("triton")
    packed = pack(plan)
    for where, level in zip(geometry(plan.shape, packed.settings).levels, plan.levels, strict=True):
        rows = level.sample_index.shape[:3]
        (count,) = level.sample_index.shape[3:]
        width, first = bias_row(count), where.bias + 2 * bias_row(level.block_size)
        size = math.prod(rows) * level.num_blocks * width
        biases = packed.data[first : first + size].view(torch.float32).view(*rows, level.num_blocks, width)
        assert (biases[..., count:] == -torch.inf).all()
        for block in range(level.num_blocks):
            is_own = level.sample_index // level.block_size == block
            expected = level.sample_weight.log2().masked_fill(is_own, -torch.inf)
            torch.testing.assert_close(biases[..., block, :count].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "causal, grouped heads, batch"])
def test_offsets_do_not_overlap(name: str) -> None:
    q, k, _ = CALLS[name].inputs()
    settings = Settings(CALLS[name].parameters(), CALLS[name].is_causal, 16)
    where = geometry(plan_shape(q, k), settings)
    packed = Packed(torch.arange(where.data_size, dtype=torch.int32), torch.zeros(where.drawn_size), settings)
    levels = unpack(packed, where)
    fields = ("query_order", "key_order", "sample_index", "tile_first", "tile_count", "tile_block")
    seen = torch.cat([getattr(level, field).reshape(-1) for level in levels for field in fields])
    assert seen.unique().numel() == seen.numel()
    assert seen.max() < where.data_size


@pytest.mark.parametrize("name", ["paper's choices", "causal", "probed, routed, causal"])
def test_a_plan_does_not_depend_on_the_default_device(name: str) -> None:
    call = CALLS[name]
    q, k, _ = call.inputs()
    options = {"is_causal": call.is_causal, "tile_size": call.tile_size, "backend": "triton"}
    # A seed that no other test draws with, and tables that no other test made: nothing is found in a cache.
    for cached in (level_table, rank_tiles, drawn_samples, uniform_weights, split_projections):
        cached.cache_clear()
    with torch.device("meta"):
        plan = make_plan(q, k, call.parameters(), 12345, **options)
    assert_same_plan(plan, make_plan(q, k, call.parameters(), 12345, **(options | {"backend": "torch"})))
