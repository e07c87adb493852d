"""The gradient is the true gradient of the estimator at its plan, through the output and the log-sum-exp."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, hyper_attention, make_plan, oracle_attention
from tests.helpers.core_inputs import CHOICES, Case, assert_close, cases, doubled, normal, qkv, small_params


def attend(plan: AttentionPlan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Out and lse of the PyTorch backend at a plan."""
    return hyper_attention(
        *tensors, plan=plan, is_causal=plan.is_causal, enable_gqa=True, return_lse=True, backend="torch"
    )


def check_against_oracle(plan: AttentionPlan, tensors: list[Tensor]) -> None:
    """Gradients agree with autograd through the oracle: of out and lse together, and of each alone."""
    ours, theirs = attend(plan, *tensors), oracle_attention(*tensors, plan)
    out_weight, lse_weight = normal(*ours[0].shape, seed=5), normal(*ours[1].shape, seed=6)
    for use_out, use_lse in ((1, 1), (1, 0), (0, 1)):
        gradients = [
            torch.autograd.grad(
                use_out * (out * out_weight).sum() + use_lse * (lse * lse_weight).sum(), tensors, retain_graph=True
            )
            for out, lse in (ours, theirs)
        ]
        for a, b in zip(*gradients, strict=True):
            assert_close(a, b)
    # Not a zero gradient of the other result, but none at all.
    for i, weight in ((0, out_weight), (1, lse_weight)):
        alone = (
            torch.autograd.grad(results[i], tensors, weight, retain_graph=True, allow_unused=True)
            for results in (ours, theirs)
        )
        for a, b in zip(*alone, strict=True):
            assert_close(a, torch.zeros_like(a) if b is None else b)


@settings(max_examples=80)
@given(cases(max_len=80))
def test_gradients_of_any_call_are_those_of_the_oracle(case: Case) -> None:
    tensors = [x.detach().requires_grad_() for x in (case.q, case.k, case.v)]
    check_against_oracle(case.plan(), tensors)


@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("is_causal", [False, True])
class TestGradients:
    """Both samplings and pairings, with and without a mask."""

    def test_gradcheck(self, sampling: str, pairing: str, is_causal: bool) -> None:
        tensors = doubled(*qkv(queries=19, keys=19, heads=2, kv_heads=1, dim=3, value_dim=2))
        params = small_params(sampling, pairing, block_size=4, sample_size=3, min_seq_len=4)
        plan = make_plan(tensors[0], tensors[1], params, is_causal=is_causal, tile_size=3)
        # Along random directions: entry by entry is ten times the work, and the oracle checks each entry below.
        assert torch.autograd.gradcheck(lambda *x: attend(plan, *x), tensors, fast_mode=True)

    @pytest.mark.parametrize("sizes", [(41, 67, 3, 8), (67, 41, 8, 3), (97, 97, 16, 16)])
    def test_lengths_and_head_sizes(
        self, sizes: tuple[int, int, int, int], sampling: str, pairing: str, is_causal: bool
    ) -> None:
        queries, keys, dim, value_dim = sizes
        queries = keys if is_causal else queries
        tensors = doubled(*qkv(queries=queries, keys=keys, batch=2, heads=4, kv_heads=2, dim=dim, value_dim=value_dim))
        plan = make_plan(tensors[0], tensors[1], small_params(sampling, pairing), is_causal=is_causal)
        check_against_oracle(plan, tensors)

    @pytest.mark.parametrize("wanted", ["q", "k", "v", "qk", "qv", "kv"])
    def test_only_some_inputs_want_a_gradient(self, wanted: str, sampling: str, pairing: str, is_causal: bool) -> None:
        tensors = dict(zip("qkv", qkv(queries=50, heads=2, kv_heads=1, value_dim=5), strict=True))
        plan = make_plan(tensors["q"], tensors["k"], small_params(sampling, pairing), is_causal=is_causal)
        inputs = [tensors[name].requires_grad_() for name in wanted]
        ours, theirs = attend(plan, *tensors.values()), oracle_attention(*tensors.values(), plan)
        grads = [torch.autograd.grad(out.square().sum() + lse.square().sum(), inputs, allow_unused=True)
                 for out, lse in (ours, theirs)]  # fmt: skip
        for a, b in zip(*grads, strict=True):
            assert_close(a, b)

    def test_gradients_add_up_over_calls(self, sampling: str, pairing: str, is_causal: bool) -> None:
        tensors = doubled(*qkv(queries=40))
        plan = make_plan(tensors[0], tensors[1], small_params(sampling, pairing), is_causal=is_causal)
        for _ in range(2):
            attend(plan, *tensors)[0].square().sum().backward()
        once = torch.autograd.grad(attend(plan, *tensors)[0].square().sum(), tensors)
        for x, gradient in zip(tensors, once, strict=True):
            assert x.grad is not None
            assert_close(x.grad, 2 * gradient)

    def test_inputs_are_left_as_they_were(self, sampling: str, pairing: str, is_causal: bool) -> None:
        tensors = doubled(*qkv(queries=70, dim=16))
        before = [x.detach().clone() for x in tensors]
        out, lse = hyper_attention(
            *tensors, params=small_params(sampling, pairing), is_causal=is_causal, return_lse=True
        )
        kept = out.detach().clone(), lse.detach().clone()
        grad_out, grad_lse = normal(*out.shape, seed=5), normal(*lse.shape, seed=6)
        given_grads = grad_out.clone(), grad_lse.clone()
        torch.autograd.grad((out, lse), tensors, (grad_out, grad_lse))
        pairs = zip((*tensors, out, lse, grad_out, grad_lse), (*before, *kept, *given_grads), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("min_seq_len", [5, 100])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_second_derivative_is_refused_rather_than_wrong(min_seq_len: int, is_causal: bool) -> None:
    tensors = doubled(*qkv(queries=60))
    params = HyperAttentionParams(8, 8, 3, min_seq_len, "iid", "bucket")
    out = hyper_attention(*tensors, params=params, is_causal=is_causal)
    (gradient,) = torch.autograd.grad(out.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
