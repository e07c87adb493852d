"""The method of the theorem: exact where nothing is left to chance, unbiased by the parts, bounded as it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyperattn_core import make_plan
from hyperattn_core.planning.membership import Membership, membership
from hyperbench.measure.methods import theory
from hyperbench.measure.methods.theory import Settings, approx_d, hyper_theory, sample_rows
from tests.helpers.brute_force import attention, drawn, probabilities

N, D = 48, 8
#: No cap and no floor.
FREE = {"epsilon": 1e6, "kappa_bound": 1e12}
SMALL: dict[str, Any] = {"block_size": 8, "sample_size": 16, "num_projections": 3}


def one_head(seed: int = 0) -> tuple[Tensor, Tensor, Membership]:
    """A query with its scale, keys, and the blocks of Algorithm 1."""
    q, k, _, _ = drawn(1, 1, 1, N, D, seed)
    plan = make_plan(q, k, theory._params(Settings(**SMALL)), 0)
    return q[0, 0] / D**0.5, k[0, 0], membership(plan, plan.levels[0], 0, 0)


def generator(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def test_row_sums_are_exact_where_every_key_is_sampled_once() -> None:
    q, k, member = one_head()
    lse = approx_d(q, k, member, torch.arange(N), Settings(**SMALL, **FREE), generator())
    assert torch.allclose(lse, (q @ k.T).logsumexp(1), rtol=1e-12)


def test_row_sums_are_unbiased_without_caps() -> None:
    q, k, member = one_head()
    truth = (q @ k.T).exp().sum(1)
    settings = Settings(**SMALL, **FREE)
    draws = [torch.randint(N, (16,), generator=generator(seed)) for seed in range(100)]
    mean = torch.stack([approx_d(q, k, member, drawn, settings, generator()).exp() for drawn in draws]).mean(0)
    assert float(((mean - truth) / truth).abs().max()) < 0.2


def test_row_sums_are_at_least_the_block_and_the_floor_and_caps_bind() -> None:
    q, k, member = one_head()
    a = (q @ k.T).exp()
    in_block = member.met(torch.arange(N))[0]
    block = (a * in_block).sum(1)
    # All queries are among the random ones: tau is the largest row sum outside the blocks.
    settings = Settings(**{**SMALL, "sample_size": N}, epsilon=1e-3, kappa_bound=4.0)
    lse = approx_d(q, k, member, torch.arange(N), settings, generator())
    tau = (a * ~in_block).sum(1).max()
    # Caps so low that the floor decides.
    assert torch.allclose(lse.exp(), block + tau / 4.0)
    share = 0.5**2 * N / (N * torch.log(torch.tensor(float(N))))
    cap = share * (block + tau / 1e12)
    settings = Settings(**{**SMALL, "sample_size": N}, epsilon=0.5, kappa_bound=1e12)
    lse = approx_d(q, k, member, torch.arange(N), settings, generator())
    capped = (torch.minimum(a, cap.unsqueeze(1)) * ~in_block).sum(1)
    assert float((capped - (a * ~in_block).sum(1)).abs().max()) > 0.1
    assert torch.allclose(lse.exp(), block + capped, rtol=1e-6)


def test_rows_of_v_are_drawn_by_their_squared_norms_and_weighed_by_the_inverse() -> None:
    v = drawn(1, 1, 1, 12, 4)[2][0, 0]
    v[5] = 0.0
    chosen, weights = sample_rows(v, 20_000, generator())
    counts = torch.bincount(chosen, minlength=12).double()
    chances = v.square().sum(1) / v.square().sum()
    assert counts[5] == 0
    assert float((counts / 20_000 - chances).abs().max()) < 0.02
    assert torch.allclose(weights, 1.0 / (20_000 * chances[chosen]))
    x = torch.rand(12, generator=generator(1), dtype=torch.float64)
    assert torch.allclose((weights * x[chosen]) @ v[chosen], x @ v, atol=0.15)
    assert sample_rows(torch.zeros(5, 3), 4, generator())[1].tolist() == pytest.approx([1.25] * 4)


@pytest.mark.parametrize("shape", [(1, 1, 1, 40, 8), (2, 4, 2, 33, 8)])
def test_it_converges_to_exact_attention(shape: tuple[int, ...]) -> None:
    q, k, v, _ = drawn(*shape)
    truth, lse = attention(q, k, v, False), probabilities(q, k, False)[1]
    errors, denominators = [], []
    for count in (64, 8_192):
        out, log_d = hyper_theory.with_lse(q, k, v, is_causal=False, seed=1, **{**SMALL, "sample_size": count}, **FREE)
        assert torch.equal(
            out, hyper_theory(q, k, v, is_causal=False, seed=1, **{**SMALL, "sample_size": count}, **FREE)
        )
        errors.append(float((out - truth).norm() / truth.norm()))
        denominators.append(float((log_d - lse).abs().max()))
    assert errors[1] < min(0.2, 0.25 * errors[0])
    assert denominators[1] < min(0.15, 0.5 * denominators[0])


def test_a_block_of_everything_leaves_the_product_alone_to_chance() -> None:
    q, k, v, _ = drawn(1, 2, 1, 20, 4)
    _, log_d = hyper_theory.with_lse(q, k, v, is_causal=False, seed=0, **{**SMALL, "block_size": 20})
    assert torch.allclose(log_d, probabilities(q, k, False)[1])


@pytest.mark.slow
def test_gradients_are_those_of_the_estimate_at_fixed_masks_and_samples() -> None:
    q, k, v, _ = drawn(1, 1, 1, 6, 2)
    settings: dict[str, Any] = {"block_size": 2, "sample_size": 3, "num_projections": 2}
    leaves = [x.clone().requires_grad_() for x in (q, k)]
    assert torch.autograd.gradcheck(
        lambda q, k: hyper_theory(q, k, v, is_causal=False, seed=0, **settings), leaves, eps=1e-7, atol=1e-4
    )


def test_the_same_seed_gives_the_same_and_global_generators_are_left_alone() -> None:
    q, k, v, _ = drawn(1, 2, 1, 40, 8)
    before = torch.get_rng_state()
    one, same, other = (hyper_theory(q, k, v, is_causal=False, seed=seed, **SMALL) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_there_is_no_causal_form() -> None:
    q, k, v, _ = drawn(1, 1, 1, 20, 4)
    with pytest.raises(NotImplementedError, match="no causal form"):
        hyper_theory(q, k, v, is_causal=True)
    assert hyper_theory.causal is False


@pytest.mark.parametrize(
    ("name", "bad"),
    [("epsilon", 0.0), ("epsilon", -1), ("epsilon", float("inf")), ("epsilon", True), ("kappa_bound", 0.5),
     ("kappa_bound", "4"), ("block_size", 0), ("sample_size", 1.5), ("num_projections", 99)],
)  # fmt: skip
def test_a_parameter_out_of_its_range_is_named(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=name):
        hyper_theory.check({**hyper_theory.defaults(), name: bad})
