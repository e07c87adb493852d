"""A second derivative is refused wherever it would be asked for; the oracle, which is plain autograd, has one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan
from tests.helpers.core_inputs import doubled, qkv

PARAMS = HyperAttentionParams(8, 8, 3, min_seq_len=20)
REFUSAL = "no second derivative"


def exact(*inputs: Tensor, **options: Any) -> Any:
    return exact_attention(*inputs, **options)


def short(*inputs: Tensor, **options: Any) -> Any:
    return hyper_attention(*inputs, **options)


def hyper(*inputs: Tensor, **options: Any) -> Any:
    return hyper_attention(*inputs, params=PARAMS, **options)


def with_a_plan(*inputs: Tensor, is_causal: bool, **options: Any) -> Any:
    plan = make_plan(*inputs[:2], PARAMS, is_causal=is_causal)
    return hyper_attention(*inputs, plan=plan, is_causal=is_causal, **options)


CALLS = [exact, short, hyper, with_a_plan]
SUBSETS = ["".join(x) for size in (1, 2, 3) for x in itertools.combinations("qkv", size)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wanted", SUBSETS)
def test_refused_for_any_of_the_inputs(call: Any, wanted: str, is_causal: bool) -> None:
    tensors = dict(zip("qkv", qkv(queries=40), strict=True))
    inputs = [tensors[name].requires_grad_() for name in wanted]
    out, lse = call(*tensors.values(), is_causal=is_causal, return_lse=True)
    # Losses that are linear in a result, and one that is not.
    results = [out.sum(), out.square().sum()] + ([lse.sum()] if wanted != "v" else [])
    for loss in results:
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        assert all(x.requires_grad for x in first)
        for gradient, x in itertools.product(first, inputs):
            with pytest.raises(RuntimeError, match=REFUSAL) as caught:
                torch.autograd.grad(gradient.sum(), x, retain_graph=True, allow_unused=True)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", CALLS)
def test_a_penalty_on_the_gradient_is_refused_and_not_dropped(call: Any) -> None:
    q, k, v = doubled(*qkv(queries=40))
    out = call(q, k, v, is_causal=False)
    (gradient,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSAL):
        (out.sum() + gradient.square().sum()).backward()
    with pytest.raises(RuntimeError, match=REFUSAL):
        torch.autograd.functional.hessian(lambda x: call(x, k, v, is_causal=False).sum(), q.detach())


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_oracle_has_one(is_causal: bool) -> None:
    q, k, v = doubled(*qkv(queries=12, dim=2, value_dim=2))
    params = HyperAttentionParams(3, 3, 2, min_seq_len=4)
    plan = make_plan(q, k, params, is_causal=is_causal)
    assert torch.autograd.gradgradcheck(
        lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal, backend="oracle"), (q, k, v)
    )
