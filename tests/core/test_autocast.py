"""Under autocast a call is the call on inputs cast as scaled_dot_product_attention casts them, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan, oracle_attention
from hyperattn_core.functional import attention_stages
from tests.helpers.core_inputs import Tensors, bits, normal, qkv

#: More projections than bfloat16 has bits: a code that is rounded lies out of range.
PARAMS = HyperAttentionParams(16, 16, num_projections=10, min_seq_len=40)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

both_masks = pytest.mark.parametrize("is_causal", [False, True])


def hyper(*inputs: Tensor, **options: Any) -> Any:
    return hyper_attention(*inputs, params=PARAMS, seed=2, **options)


def with_a_plan(*inputs: Tensor, is_causal: bool, **options: Any) -> Any:
    plan = make_plan(*inputs[:2], PARAMS, 2, is_causal=is_causal)
    return hyper_attention(*inputs, plan=plan, is_causal=is_causal, **options)


def of_the_oracle(*inputs: Tensor, **options: Any) -> Any:
    return hyper(*inputs, backend="oracle", **options)


CALLS = [hyper, with_a_plan, of_the_oracle, exact_attention]


def results(call: Any, inputs: Tensors, is_causal: bool) -> list[Tensor]:
    """Output, log-sum-exp and gradients."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)  # type: ignore[assignment]
    out, lse = call(*inputs, is_causal=is_causal, return_lse=True)
    loss = (out * normal(*out.shape, seed=9).to(out.dtype)).sum() + lse.sum()
    return [out, lse, *torch.autograd.grad(loss, inputs)]


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(bits(one.detach()), bits(other.detach()))


@both_masks
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_and_backward_are_those_of_cast_inputs(call: Any, is_causal: bool, dtype: torch.dtype) -> None:
    inputs = qkv(queries=150, heads=2, dtype=torch.float32)
    expected = results(call, tuple(x.to(dtype) for x in inputs), is_causal)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=dtype):
        found = results(call, inputs, is_causal)
    assert_same_bits(found[:2], expected[:2])
    assert_same_bits(found[2:], [x.float() for x in expected[2:]])


@both_masks
@pytest.mark.parametrize("call", CALLS)
def test_a_backward_pass_alone_under_autocast(call: Any, is_causal: bool) -> None:
    inputs = tuple(x.requires_grad_() for x in qkv(queries=150, dtype=torch.float32))
    out = call(*inputs, is_causal=is_causal)
    expected = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(out.sum(), inputs)
    if call is not of_the_oracle:  # autograd's own operations on float64 numbers
        assert_same_bits(list(found), list(expected))


@pytest.mark.parametrize("enabled", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS)
def test_the_dtype_of_a_result_is_that_of_fused_attention(call: Any, dtype: torch.dtype, enabled: torch.dtype) -> None:
    inputs = qkv(queries=60, dtype=dtype)
    with torch.autocast("cpu", dtype=enabled):
        assert call(*inputs, is_causal=True).dtype == scaled_dot_product_attention(*inputs).dtype


@pytest.mark.parametrize("call", CALLS)
def test_inputs_of_several_dtypes_are_cast_to_one(call: Any) -> None:
    q, k, v = qkv(queries=60, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert call(q.bfloat16(), k, v.half(), is_causal=True).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="must share a dtype, got bfloat16 for q and float64 for k"):
            call(q, k.double(), v.double(), is_causal=True)


@both_masks
def test_the_plan_is_that_of_cast_inputs(is_causal: bool) -> None:
    q, k, _ = qkv(queries=2000, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = make_plan(q, k, PARAMS, is_causal=is_causal)
        of_doubles = make_plan(q.double(), k.double(), PARAMS, is_causal=is_causal)
    assert found == make_plan(q.bfloat16(), k.bfloat16(), PARAMS, is_causal=is_causal)
    assert of_doubles == make_plan(q.double(), k.double(), PARAMS, is_causal=is_causal)


@both_masks
def test_stages(is_causal: bool) -> None:
    inputs = qkv(queries=150, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stages = attention_stages(*inputs, params=PARAMS, seed=2, is_causal=is_causal)
        *_, out = [run() for run in stages.values()]
    assert torch.equal(out, hyper(*(x.bfloat16() for x in inputs), is_causal=is_causal))  # type: ignore[arg-type]


def test_the_oracle_itself_stays_in_float64() -> None:
    q, k, v = qkv(queries=60, dtype=torch.float32)
    plan = make_plan(q, k, PARAMS)
    expected = oracle_attention(q, k, v, plan)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(list(oracle_attention(q, k, v, plan)), list(expected))
