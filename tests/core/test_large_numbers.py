"""Large logits and values: weights add up to one, gradients are those of PyTorch's own attention, nothing overflows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan, oracle_attention
from tests.helpers.core_inputs import doubled, normal, qkv, relative_error, with_gradients

SMALL = HyperAttentionParams(block_size=32, sample_size=32, min_seq_len=64)
# Fewer keys than PyTorch's kernel takes, more, the estimator, and several causal levels.
PATHS = [(2, False), (20, False), (20, True), (70, False), (600, False), (300, True), (1500, True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("logit", [2e4, 8e4, 7.2e7])
@pytest.mark.parametrize(("length", "is_causal"), PATHS)
@pytest.mark.parametrize("backend", ["torch", "oracle"])
def test_weights_add_up_to_one(length: int, is_causal: bool, logit: float, dtype: torch.dtype, backend: str) -> None:
    q = torch.full((1, 1, length, 64), (logit / 8) ** 0.5, dtype=dtype)
    out = hyper_attention(q, q, torch.ones_like(q), is_causal=is_causal, params=SMALL, backend=backend)
    exact = exact_attention(q, q, torch.ones_like(q), is_causal=is_causal)
    for found in (out, exact):
        assert isinstance(found, Tensor)
        # Sums of many terms are rounded some times more than once, and an output in bfloat16 once.
        assert (found - 1).abs().max() <= torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 else 50)


def far_apart(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of some 1e5, of which one or two in a row count."""
    q, k, v = qkv(queries=length, heads=2, dim=64, dtype=torch.float32)
    return q * (1e5 / 24), k, v


def close_together(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of 1e5 that differ by some 1: dq is a small difference of large terms."""
    q, k, v = qkv(queries=length, heads=2, dim=64, dtype=torch.float32)
    direction = torch.nn.functional.normalize(normal(64, seed=9, dtype=torch.float32), dim=0)
    return direction * 8e5 + q, direction + k * 1e-5, v


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_key_that_outweighs_all_others_gets_all_of_a_gradient(is_causal: bool) -> None:
    # Blocks are met by as few queries as one here: products of few rows are made by another kernel than those of many.
    q, k, v = far_apart(300)
    plan = make_plan(q, k, SMALL, is_causal=is_causal)
    ours = with_gradients(lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal, backend="torch"), (q, k, v))
    oracle = with_gradients(lambda *x: oracle_attention(*x, plan)[0], doubled(q, k, v))
    assert relative_error(ours[3], oracle[3]) < 5e-5


@pytest.mark.parametrize(
    ("inputs", "length", "is_causal"),
    [(far_apart, 70, False), (far_apart, 600, False), (far_apart, 600, True)]
    + [(close_together, length, False) for length in (20, 70, 600)]
    + [(close_together, length, True) for length in (20, 70, 110, 140, 600, 1500)],
)
def test_gradients_lose_no_more_than_those_of_pytorch(
    inputs: Callable[[int], tuple[Tensor, Tensor, Tensor]], length: int, is_causal: bool
) -> None:
    q, k, v = inputs(length)
    params = SMALL if length > 100 else HyperAttentionParams()
    theirs = with_gradients(lambda *x: scaled_dot_product_attention(*x, is_causal=is_causal), (q, k, v))
    exact = with_gradients(lambda *x: scaled_dot_product_attention(*x, is_causal=is_causal), doubled(q, k, v))
    lost = []
    # Where logits are far apart, one near tie of two keys that a plan happens to hold is most of its error.
    for seed in range(5 if inputs is far_apart else 1):
        plan = make_plan(q, k, params, seed, is_causal=is_causal)
        attend = partial(hyper_attention, plan=plan, is_causal=is_causal, backend="torch")
        ours = with_gradients(attend, (q, k, v))
        oracle = with_gradients(lambda *x, plan=plan: oracle_attention(*x, plan)[0], doubled(q, k, v))
        pairs = zip(ours, oracle, theirs, exact, strict=True)
        lost.append(max(relative_error(a, b) / relative_error(c, d) for a, b, c, d in pairs))
    assert statistics.median(lost) <= 2


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", [110, 600])
def test_the_gradient_of_a_large_lse_moves_a_query_along_the_mean_of_its_keys(
    length: int, is_causal: bool, group: int
) -> None:
    q, k, v = close_together(length)
    q = q.repeat_interleave(group, dim=1)
    plan = make_plan(q, k, SMALL, is_causal=is_causal)

    def gradients(attend: Callable[..., Any], tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        tensors = [x.clone().requires_grad_() for x in tensors]
        results = attend(*tensors)
        return torch.autograd.grad(results, tensors, [normal(*x.shape, seed=7).to(x.dtype) for x in results])

    settings: dict[str, Any] = {"return_lse": True, "is_causal": is_causal, "enable_gqa": True, "backend": "torch"}
    ours = gradients(lambda *x: hyper_attention(*x, plan=plan, **settings), (q, k, v))
    oracle = gradients(lambda *x: oracle_attention(*x, plan), (x.double() for x in (q, k, v)))
    # A logit is rounded by a hundredth, which changes weights but not their sum.
    for found, expected, tolerance in zip(ours, oracle, (5e-6, 3e-2, 3e-2), strict=True):
        assert relative_error(found, expected) < tolerance


@pytest.mark.parametrize("logit", [1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("length", "is_causal"), PATHS)
def test_the_mean_of_values_near_the_largest_is_finite(
    length: int, is_causal: bool, dtype: torch.dtype, logit: float
) -> None:
    q = torch.full((1, 1, length, 64), (logit / 8) ** 0.5, dtype=dtype)
    large = 0.98 * torch.finfo(dtype).max
    v = torch.full_like(q, large)
    v[..., 1] *= -1
    v[..., 2] = 1.0
    outs = [
        hyper_attention(q, q, v, is_causal=is_causal, params=SMALL, backend="torch"),
        exact_attention(q, q, v, is_causal=is_causal),
    ]
    for out in outs:
        assert isinstance(out, Tensor)
        torch.testing.assert_close(out / v, torch.ones_like(out))
