"""Numerator and denominator are unbiased: over many draws their means reach the exact sums as standard errors say.

Heads with the same q, k and v share the hash but each has samples of its own, so a call with many heads is many
draws, and the mean of every weight is 1 given the hash too. A test is a z-score against a bound that thousands of
normal scores would not pass once in a million runs; the seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, hyper_attention, make_plan
from hyperattn_core.oracle import weight_matrix
from tests.helpers.core_inputs import CHOICES, PAIRINGS, assert_close, normal, qkv, small_params
from tests.helpers.slow import slow

BOUND = 6.5
SCALE = 0.7
LENGTH = 44
SEEDS = range(3)
SIZES = {"block_size": 9, "sample_size": 7, "min_seq_len": 8}

Change = Callable[[AttentionPlan], AttentionPlan]


def worst_z(draws: Tensor, expected: Tensor) -> float:
    """Largest |mean - expected| in standard errors of the mean; draws (K, ...) against expected (...)."""
    error = (draws.mean(0) - expected).abs()
    standard_error = draws.std(0) / math.sqrt(draws.shape[0])
    rounding = 1e-12 * expected.abs().clamp(min=1.0)
    return float((error / (standard_error + rounding)).max())


def one_problem(heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with the same numbers in every head."""
    q, k, v = (normal(1, 1, LENGTH, dim, seed=seed).expand(-1, heads, -1, -1) for seed, dim in enumerate((4, 4, 3)))
    return q, k, v


def allowed(is_causal: bool) -> Tensor:
    """1 where a query may see a key."""
    ones = torch.ones(LENGTH, LENGTH, dtype=torch.float64)
    return ones.tril() if is_causal else ones


def unchanged(plan: AttentionPlan) -> AttentionPlan:
    """The plan as it is."""
    return plan


def weight_draws(sampling: str, pairing: str, is_causal: bool, seed: int, change: Change = unchanged) -> Tensor:
    """Weights (draws, queries, keys), all with the hash of one seed."""
    q, k, _ = one_problem(150)
    plan = make_plan(q, k, small_params(sampling, pairing, **SIZES), seed, is_causal=is_causal)
    return weight_matrix(change(plan))[0]


@cache
def sum_draws(
    sampling: str, pairing: str, is_causal: bool, change: Change = unchanged, seeds: Iterable[int] = SEEDS
) -> Tensor:
    """Numerators and denominators that the backend's out and lse stand for: (draws, queries, Dv + 1)."""
    q, k, v = one_problem(500)
    params = small_params(sampling, pairing, **SIZES)
    draws = []
    for seed in seeds:
        plan = change(make_plan(q, k, params, seed, is_causal=is_causal))
        out, lse = hyper_attention(q, k, v, plan=plan, is_causal=is_causal, scale=SCALE, return_lse=True)
        den = lse[0].exp().unsqueeze(2)
        draws.append(torch.cat([out[0] * den, den], dim=2))
    return torch.cat(draws)


def exact_sums(is_causal: bool) -> Tensor:
    """The sums over all allowed keys: (queries, Dv + 1)."""
    q, k, v = (x[0, 0] for x in one_problem(1))
    weights = (SCALE * q @ k.T).exp() * allowed(is_causal)
    return torch.cat([weights @ v, weights.sum(1, keepdim=True)], dim=1)


def with_sample_weights(factor: float) -> Change:
    """Make plans with wrong weights of samples."""

    def change(plan: AttentionPlan) -> AttentionPlan:
        levels = [replace(x, sample_weight=factor * x.sample_weight) for x in plan.levels]
        return replace(plan, levels=tuple(levels))

    return change


def outside_blocks_only(plan: AttentionPlan) -> AttentionPlan:
    """The tempting mistake w = (S - b) / m: as if the samples came from outside the block alone."""
    levels = [replace(x, sample_weight=x.sample_weight * (1 - x.block_size / x.node_len)) for x in plan.levels]
    return replace(plan, levels=tuple(levels))


def one_key_off(plan: AttentionPlan) -> AttentionPlan:
    """Samples one place too far: the first key is never drawn, the last one too often."""
    levels = [replace(x, sample_index=(x.sample_index + 1).clamp(max=x.node_len - 1)) for x in plan.levels]
    return replace(plan, levels=tuple(levels))


@pytest.mark.parametrize("is_causal", [*slow(False), True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
class TestUnbiased:
    """Both samplings and pairings, with and without a mask."""

    def test_the_mean_weight_of_every_key_is_one(self, sampling: str, pairing: str, is_causal: bool) -> None:
        expected = allowed(is_causal)
        for seed in SEEDS:
            draws = weight_draws(sampling, pairing, is_causal, seed)
            assert torch.equal((draws > 0).any(0), expected > 0)
            assert worst_z(draws, expected) < BOUND
            assert worst_z(draws.sum(2), expected.sum(1)) < BOUND

    def test_the_mean_sums_are_the_exact_ones(self, sampling: str, pairing: str, is_causal: bool) -> None:
        assert worst_z(sum_draws(sampling, pairing, is_causal), exact_sums(is_causal)) < BOUND

    def test_the_error_of_the_mean_shrinks_with_the_root_of_the_draws(
        self, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        errors = sum_draws(sampling, pairing, is_causal) - exact_sums(is_causal)
        sizes = (1, 5, 15, 50)
        assert len(errors) % sizes[-1] == 0
        # Heads of one seed share a hash: mixed, so that a group of any size has the same share of every seed.
        shuffled = errors[torch.randperm(len(errors), generator=torch.Generator().manual_seed(0))]
        rms = [float(shuffled.view(-1, size, *errors.shape[1:]).mean(1).square().mean().sqrt()) for size in sizes]
        # The sums of routed plans have their error in few draws: those that miss a key which weighs much.
        width = 0.4 if pairing == "routed" else 0.3
        for size, value in zip(sizes, rms, strict=True):
            assert value * math.sqrt(size) == pytest.approx(rms[0], rel=width)

    @pytest.mark.parametrize(
        "mistake",
        [
            with_sample_weights(0.9),
            pytest.param(with_sample_weights(1.1), marks=pytest.mark.slow),
            pytest.param(outside_blocks_only, marks=pytest.mark.slow),
        ],
    )
    def test_a_wrong_weight_would_not_pass(self, mistake: Change, sampling: str, pairing: str, is_causal: bool) -> None:
        draws = sum_draws(sampling, pairing, is_causal, mistake, SEEDS[:2])
        assert worst_z(draws, exact_sums(is_causal)) > BOUND

    def test_wrong_samples_would_not_pass(self, sampling: str, pairing: str, is_causal: bool) -> None:
        draws = weight_draws(sampling, pairing, is_causal, 0, one_key_off)
        assert worst_z(draws, allowed(is_causal)) > BOUND


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pairing", PAIRINGS)
def test_stratified_samples_vary_less(pairing: str, is_causal: bool) -> None:
    iid, stratified = (
        sum_draws(sampling, pairing, is_causal)[..., -1].var(0).mean() for sampling in ("iid", "stratified")
    )
    assert stratified < iid


@pytest.mark.parametrize("is_causal", [False, True])
def test_probed_samples_vary_far_less_where_some_keys_draw_every_query(is_causal: bool) -> None:
    variances = []
    for sampling in ("stratified", "probed"):
        q, k, _ = qkv(queries=200, heads=100, dim=4, dtype=torch.float32)
        q[..., 0] = 4.0
        k[:, :, ::40, 0] = 4.0
        q, k = (x[:, :1].expand(-1, 100, -1, -1) for x in (q, k))
        params = small_params(sampling, "bucket", sample_size=20, min_seq_len=50)
        _, lse = hyper_attention(q, k, k, params=params, is_causal=is_causal, return_lse=True)
        variances.append(lse[0, :, 50:].exp().var(0).mean())
    assert variances[1] < 0.1 * variances[0]


class TestZeroQueries:
    """With q = 0 every logit is 0: den counts keys, so it must be their number, not block_size + sample_size."""

    @pytest.mark.parametrize("pairing", ["bucket", *slow("rank")])
    @pytest.mark.parametrize(
        ("num_keys", "block_size", "sample_size"), [(97, 13, 8), pytest.param(61, 16, 30, marks=pytest.mark.slow)]
    )
    def test_iid_lse_is_log_of_the_number_of_keys_up_to_a_binomial(
        self, num_keys: int, block_size: int, sample_size: int, pairing: str
    ) -> None:
        params = small_params("iid", pairing, block_size=block_size, sample_size=sample_size)
        q, k = torch.zeros(1, 3000, 5, 4).double(), normal(1, 1, num_keys, 4).expand(-1, 3000, -1, -1)
        plan = make_plan(q, k, params)
        _, lse = hyper_attention(q, k, k, plan=plan, return_lse=True)
        den = lse[0].exp()
        in_block = (weight_matrix(make_plan(q[:, :1], k[:, :1], replace(params, sample_size=1)))[0, 0] == 1).sum(1)
        # den = b + (N / m) X, X of the m samples outside the block of b keys: binomial (m, 1 - b / N), mean den = N.
        outside = (den - in_block) * sample_size / num_keys
        assert_close(outside, outside.round(), 1e-9)
        rate = 1 - in_block / num_keys
        variance = num_keys**2 / sample_size * rate * (1 - rate)
        z = (den.mean(0) - num_keys) / (variance / den.shape[0]).sqrt()
        assert float(z.abs().max()) < BOUND
        assert float((den.var(0) / variance - 1).abs().max()) < 0.2

    @pytest.mark.parametrize("pairing", PAIRINGS)
    @pytest.mark.parametrize("is_causal", [False, True])
    def test_stratified_lse_is_exact_where_slices_end_with_blocks(self, is_causal: bool, pairing: str) -> None:
        # Nodes of 32, 64 and 128 keys, blocks of 16 and 8 samples: no slice lies across the end of a block.
        params = small_params("stratified", pairing, block_size=16, sample_size=8, min_seq_len=32)
        length = 256 if is_causal else 128
        q, k = torch.zeros(1, 2, length, 4).double(), normal(1, 2, length, 4)
        _, lse = hyper_attention(q, k, k, params=params, is_causal=is_causal, return_lse=True)
        count = torch.arange(1, 257).double() if is_causal else torch.full((128,), 128.0).double()
        assert_close(lse, count.log().expand_as(lse), 1e-12)

    @pytest.mark.parametrize("pairing", PAIRINGS)
    @pytest.mark.parametrize(("num_keys", "block_size", "sample_size"), [(100, 17, 9), (97, 13, 8), (61, 16, 30)])
    def test_stratified_den_errs_by_less_than_the_two_slices_at_the_ends_of_the_block(
        self, num_keys: int, block_size: int, sample_size: int, pairing: str
    ) -> None:
        params = small_params("stratified", pairing, block_size=block_size, sample_size=sample_size)
        q, k = torch.zeros(1, 200, 5, 4).double(), normal(1, 1, num_keys, 4).expand(-1, 200, -1, -1)
        _, lse = hyper_attention(q, k, k, params=params, return_lse=True)
        den = lse.exp()
        assert float((den - num_keys).abs().max()) < 2 * math.ceil(num_keys / sample_size)
        assert worst_z(den[0], torch.full((5,), float(num_keys)).double()) < BOUND

    @pytest.mark.parametrize("pairing", PAIRINGS)
    def test_causal_lse_counts_the_keys_so_far(self, pairing: str) -> None:
        params = small_params("iid", pairing, block_size=9, sample_size=7, min_seq_len=8)
        q, k = torch.zeros(1, 2000, 45, 4).double(), normal(1, 1, 45, 4).expand(-1, 2000, -1, -1)
        _, lse = hyper_attention(q, k, k, params=params, is_causal=True, return_lse=True)
        count = torch.arange(1, 46).double()
        assert_close(lse[0, :, :8], count[:8].log().expand(2000, 8), 1e-12)
        assert worst_z(lse[0].exp(), count) < BOUND
