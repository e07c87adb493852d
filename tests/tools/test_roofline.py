"""The byte and operation model of the kernels against counts made independently for the paper's setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyperattn_core import HyperAttentionParams
from hyperattn_core.params import Sampling
from hyperbench.flops import hyper_pairs
from tools.roofline import model
from tools.roofline.call_sizes import CallSizes
from tools.roofline.launches import HASH_TERMS, LaunchCost, backward_costs, floor_seconds, forward_costs, total_cost

# 12 heads, d = 64, b = m = 256, bfloat16, batch 1; hashing counted with one product over 16 padded columns.
NON_CAUSAL_GFLOP = {4096: 6.6, 16384: 26.6, 65536: 106.0, 131072: 213.0}
CAUSAL_GFLOP = {4096: 1347.0, 2048: 1037.0, 1024: 934.0}  # by leaf length, at n = 131,072
# Five products a pair; our launches make seven outside the leaves.
BACKWARD_GFLOP = {None: 515.0, 2048: 2577.0}
MADE, NEEDED = 7, 5
HEADS, HEAD_DIM = 12, 64
A100 = {"flops_per_s": 312e12, "bytes_per_s": 1.555e12}
H100 = {"flops_per_s": 800e12, "bytes_per_s": 3.0e12}


def costs_of(
    seq_len: int,
    *,
    leaf: int | None = None,
    costs: Callable[..., tuple[LaunchCost, ...]] = forward_costs,
    sampling: Sampling = "stratified",
) -> tuple[LaunchCost, ...]:
    """The launches at the paper's sizes; causal where a leaf length is given."""
    params = HyperAttentionParams(min_seq_len=leaf or 1024, sampling=sampling)
    shape = (1, HEADS, HEADS, seq_len, seq_len)
    return costs(CallSizes(shape, HEAD_DIM, is_causal=leaf is not None, params=params))


def counted_gflop(costs: tuple[LaunchCost, ...]) -> float:
    """Operations with the hash's product counted once, however many terms it is made of."""
    return sum(c.flops / (HASH_TERMS if c.name == "hash" else 1) for c in costs) / 1e9


@pytest.mark.parametrize("seq_len", NON_CAUSAL_GFLOP)
def test_non_causal_operations(seq_len: int) -> None:
    assert counted_gflop(costs_of(seq_len)) == pytest.approx(NON_CAUSAL_GFLOP[seq_len], rel=0.01)


@pytest.mark.parametrize("leaf", CAUSAL_GFLOP)
def test_causal_operations(leaf: int) -> None:
    assert counted_gflop(costs_of(131072, leaf=leaf)) == pytest.approx(CAUSAL_GFLOP[leaf], rel=0.001)


@pytest.mark.parametrize(
    ("seq_len", "card", "floor_us"),
    [
        (16384, A100, 100), (65536, A100, 402), (131072, A100, 803),
        (16384, H100, 52), (65536, H100, 208), (131072, H100, 416),
    ],
)  # fmt: skip
def test_non_causal_floor_of_the_hardware(seq_len: int, card: dict[str, float], floor_us: float) -> None:
    """Bound by memory; a few bytes a token more than the independent count, for tables of the sort and of biases."""
    assert floor_seconds(costs_of(seq_len), **card) * 1e6 == pytest.approx(floor_us, rel=0.05)


@pytest.mark.parametrize(
    ("leaf", "card", "floor_ms"),
    [
        (4096, A100, 4.32), (2048, A100, 3.32), (1024, A100, 3.10),
        (4096, H100, 1.68), (2048, H100, 1.44), (1024, H100, 1.61),
    ],
)  # fmt: skip
def test_causal_floor_of_the_hardware(leaf: int, card: dict[str, float], floor_ms: float) -> None:
    """Within 15 %: one merge reads every part once and writes once more than merging in place would."""
    assert floor_seconds(costs_of(131072, leaf=leaf), **card) * 1e3 == pytest.approx(floor_ms, rel=0.15)


def test_necessary_bytes_of_a_non_causal_forward_pass() -> None:
    """q and k twice (hash, attend), v and out once, 805 to 1,250 MB in all; ten times less than 10.6 GB."""
    total = sum(c.bytes for c in costs_of(131072))
    rows = 131072 * HEADS * HEAD_DIM * 2
    assert 6 * rows < total < 6.5 * rows
    assert total < 1.3e9


@pytest.mark.parametrize(("seq_len", "leaf"), [(5000, 512), (4097, 1024), (4096, 700), (3000, None)])
def test_pairs_are_those_that_the_harness_counts(seq_len: int, leaf: int | None) -> None:
    costs = costs_of(seq_len, leaf=leaf)
    flops = sum(c.flops for c in costs if c.name in ("attend", "leaves"))
    pairs = hyper_pairs(seq_len, 256, 256, leaf or 1024, is_causal=leaf is not None)
    assert flops == pytest.approx(4 * HEADS * HEAD_DIM * pairs, rel=1e-9)


@pytest.mark.parametrize("leaf", BACKWARD_GFLOP)
def test_backward_operations(leaf: int | None) -> None:
    costs = costs_of(131072, leaf=leaf, costs=backward_costs)
    needed = sum(c.flops * (1 if c.name == "leaves" else NEEDED / MADE) for c in costs) / 1e9
    assert needed == pytest.approx(BACKWARD_GFLOP[leaf], rel=0.002)


@pytest.mark.parametrize(("seq_len", "leaf"), [(5000, 512), (4096, 700), (3000, None)])
def test_backward_pairs_are_those_of_the_forward_pass(seq_len: int, leaf: int | None) -> None:
    """Samples, queries and keys: each pair's exponential twice, the leaves' once."""
    forward = sum(c.exponentials for c in costs_of(seq_len, leaf=leaf) if c.name in ("attend", "leaves"))
    backward = costs_of(seq_len, leaf=leaf, costs=backward_costs)
    assert forward == sum(c.exponentials / (1 if c.name == "leaves" else 2) for c in backward)


def test_a_backward_pass_without_a_mask_is_bound_by_products_and_moves_few_bytes() -> None:
    """Three launches read q, grad_out, k and v, of which samples reads few keys; three gradients are written."""
    costs = costs_of(131072, costs=backward_costs)
    rows = 131072 * HEADS * HEAD_DIM * 2
    assert 15 * rows < total_cost(costs).bytes < 18 * rows
    assert floor_seconds(costs, **A100) == pytest.approx(total_cost(costs).flops / A100["flops_per_s"])


def test_launches_in_order() -> None:
    names = [c.name for c in costs_of(131072)]
    assert names == ["hash", "scan", "scatter", "pair", "attend"]
    assert [c.name for c in costs_of(131072, leaf=2048)] == [*names, "leaves", "merge"]
    backward = [c.name for c in costs_of(131072, costs=backward_costs)]
    assert backward == ["lse2", "delta", "samples", "reduce", "queries", "keys"]
    causal = [c.name for c in costs_of(131072, leaf=2048, costs=backward_costs)]
    assert causal == ["lse2", "delta", "samples", "reduce", "leaves", "queries", "keys", "rounding"]


PROBING = ("probe", "norm", "score", "design", "sum", "draw")


def test_probed_samples_take_six_launches_more() -> None:
    names = [c.name for c in costs_of(131072, sampling="probed")]
    assert names == ["hash", "probe", "norm", "score", "scan", "scatter", "design", "sum", "draw", "pair", "attend"]


def test_probes_cost_one_more_reading_of_the_keys() -> None:
    """Without a mask and in bytes; every other table is small."""
    plain, probed = (total_cost(costs_of(131072, sampling=sampling)).bytes for sampling in ("stratified", "probed"))
    keys = 131072 * HEADS * HEAD_DIM * 2
    assert keys < probed - plain < 1.2 * keys


MEANS = ("tiles", "means")


def test_mean_keys_take_two_launches_more_and_one_in_the_backward_pass() -> None:
    probed, truncated = ([c.name for c in costs_of(131072, sampling=s)] for s in ("probed", "truncated"))
    assert truncated == [*probed[:-1], *MEANS, "attend"]
    backward = [c.name for c in costs_of(131072, costs=backward_costs, sampling="truncated")]
    assert backward == ["lse2", "delta", *MEANS, "samples", "reduce", "queries", "spread", "keys"]


@pytest.mark.parametrize("leaf", [None, 2048])
@pytest.mark.parametrize("costs", [forward_costs, backward_costs])
def test_mean_keys_cost_one_reading_of_keys_and_values(costs: Callable[..., Any], leaf: int | None) -> None:
    """Their sums, and the parts of their gradients, are small besides."""
    probed, truncated = (
        total_cost(costs_of(131072, leaf=leaf, costs=costs, sampling=s)).bytes for s in ("probed", "truncated")
    )
    keys_and_values = 2 * 131072 * HEADS * HEAD_DIM * 2
    assert keys_and_values < truncated - probed < 1.4 * keys_and_values


@pytest.mark.parametrize("leaf", [1024, 2048, 4096])
@pytest.mark.parametrize("card", [A100, H100])
def test_a_causal_plan_takes_about_15_percent_of_a_forward_pass_at_most(leaf: int, card: dict[str, float]) -> None:
    costs = costs_of(131072, leaf=leaf, sampling="probed")
    planning = [c for c in costs if c.name not in ("attend", "leaves", "merge")]
    alone, whole = (sum(floor_seconds([c], **card) for c in some) for some in (planning, costs))
    assert alone <= 0.155 * whole


@pytest.mark.parametrize("costs", [forward_costs, backward_costs])
def test_exact_calls_have_no_launches(costs: Callable[..., tuple[LaunchCost, ...]]) -> None:
    with pytest.raises(ValueError, match="exact"):
        costs_of(1000, costs=costs)


def test_no_samples_no_launch_for_them() -> None:
    """One block holds every key of a node."""
    params = HyperAttentionParams(block_size=64, min_seq_len=64, sampling="probed")
    costs = backward_costs(CallSizes((1, 1, 1, 128, 128), 64, is_causal=True, params=params))
    assert [c.name for c in costs] == ["lse2", "delta", "leaves", "queries", "keys", "rounding"]


def test_the_table_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(["--seq-len", "8192", "--causal"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table if line] == [
        "forward", "hash", *PROBING[:3], "scan", "scatter", *PROBING[3:], "pair", *MEANS, "attend", "leaves", "merge",
        "all", "backward", "lse2", "delta", *MEANS, "samples", "reduce", "leaves", "queries", "spread", "keys",
        "rounding", "all",
        "peak", "hyper", "flash2",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [["--seq-len", "100"], ["--block-size", "0"]])
def test_the_table_refuses_what_the_kernels_do_not_run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        model.main(arguments)
    assert stop.value.code == 2
