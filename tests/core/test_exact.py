"""Exact attention with its log-sum-exp: the formula, its gradient, every layout, through both ways of computing it."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import hyperattn_core.exact_aten as exact_module
from hyperattn_core import exact_attention
from hyperattn_core.exact import exact_forward
from tests.helpers.core_inputs import (
    LAYOUTS,
    assert_close,
    doubled,
    laid_out,
    normal,
    plain_attention,
    qkv,
    relative_error,
)

# Lengths beside the sizes at which the fused kernel changes its ways, and primes.
LENGTHS = (1, 2, 5, 8, 15, 16, 17, 31, 32, 33, 67, 128, 521)


@pytest.fixture(params=["fused", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Through the fused kernel, or by matrix products in small chunks, as on devices without one."""
    if request.param == "plain":
        monkeypatch.setattr(exact_module, "CPU_KERNEL_MIN_KEYS", 10**9)
        monkeypatch.setattr(exact_module, "_CHUNK_ELEMENTS", 1000)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("is_causal", [False, True])
class TestFormula:
    """softmax(scale q k^T) v, whatever the sizes and strides."""

    @pytest.mark.parametrize("length", LENGTHS)
    def test_output_and_lse_are_those_of_the_formula(self, length: int, is_causal: bool) -> None:
        q, k, v = qkv(queries=length, batch=2, heads=2, dim=8, value_dim=5)
        out, lse = exact_attention(q, k, v, is_causal=is_causal, return_lse=True)
        expected, expected_lse = plain_attention(q, k, v, is_causal=is_causal)
        assert_close(out, expected)
        assert_close(lse, expected_lse)
        assert torch.equal(out, exact_attention(q, k, v, is_causal=is_causal))

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("length", [11, 45])
    def test_strides_do_not_matter(self, length: int, layout: str, is_causal: bool) -> None:
        shape = {"queries": length, "batch": 2, "heads": 4, "kv_heads": 2, "value_dim": 6}
        tensors = [laid_out(x, layout).requires_grad_() for x in qkv(**shape)]  # type: ignore[arg-type]
        same = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in tensors]
        out, lse = exact_attention(*tensors, is_causal=is_causal, enable_gqa=True, return_lse=True)
        expected, expected_lse = plain_attention(*same, is_causal=is_causal)
        assert_close(out, expected)
        assert_close(lse, expected_lse)
        for grad_out in (laid_out(normal(*out.shape, seed=9), layout), torch.ones(()).double().expand_as(out)):
            got = torch.autograd.grad((out, lse), tensors, (grad_out, grad_out[..., 0]), retain_graph=True)
            want = torch.autograd.grad((expected, expected_lse), same, (grad_out, grad_out[..., 0]), retain_graph=True)
            for a, b in zip(got, want, strict=True):
                assert_close(a, b)

    @pytest.mark.parametrize("length", [3, 40])
    @pytest.mark.parametrize(("dim", "value_dim"), [(1, 1), (3, 8), (8, 3), (16, 64), (64, 16)])
    def test_gradients_are_those_of_the_formula(self, dim: int, value_dim: int, length: int, is_causal: bool) -> None:
        tensors = doubled(*qkv(queries=length, heads=4, kv_heads=2, dim=dim, value_dim=value_dim))
        out, lse = exact_attention(*tensors, is_causal=is_causal, enable_gqa=True, return_lse=True)
        expected, expected_lse = plain_attention(*tensors, is_causal=is_causal)
        weight, lse_weight = normal(*out.shape, seed=7), normal(*lse.shape, seed=8)
        for factors in ((1, 1), (1, 0), (0, 1)):
            ours, theirs = (
                torch.autograd.grad(
                    factors[0] * (a * weight).sum() + factors[1] * (b * lse_weight).sum(), tensors, retain_graph=True
                )
                for a, b in ((out, lse), (expected, expected_lse))
            )
            for a, b in zip(ours, theirs, strict=True):
                assert_close(a, b)

    @pytest.mark.parametrize("length", [4, 33])
    def test_gradcheck(self, length: int, is_causal: bool) -> None:
        tensors = doubled(*qkv(queries=length, heads=2, kv_heads=1, dim=3, value_dim=2))
        torch.autograd.gradcheck(
            lambda q, k, v: exact_attention(q, k, v, is_causal=is_causal, enable_gqa=True, return_lse=True), tensors
        )

    @pytest.mark.parametrize("scale", [0.0, -0.7, 2.5])
    def test_the_scale_multiplies_the_logits(self, scale: float, is_causal: bool) -> None:
        q, k, v = qkv(queries=40, dim=4)
        out, lse = exact_attention(q, k, v, is_causal=is_causal, scale=scale, return_lse=True)
        expected, expected_lse = plain_attention(q * scale * 2, k, v, is_causal=is_causal)
        assert_close(out, expected)
        assert_close(lse, expected_lse)


@pytest.mark.usefixtures("way")
@settings(max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_queries_and_keys_may_differ_in_number(queries: int, keys: int, dim: int, value_dim: int, seed: int) -> None:
    q, k, v = qkv(queries=queries, keys=keys, heads=2, kv_heads=1, dim=dim, value_dim=value_dim, seed=seed)
    out, lse = exact_attention(q, k, v, enable_gqa=True, return_lse=True)
    expected, expected_lse = plain_attention(q, k, v)
    assert_close(out, expected)
    assert_close(lse, expected_lse)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("is_causal", [False, True])
def test_no_overflow_where_logits_are_huge(is_causal: bool) -> None:
    q, k, v = qkv(queries=50, dtype=torch.float32)
    out, lse = exact_attention(1000 * q, k, v, is_causal=is_causal, return_lse=True)
    expected, expected_lse = plain_attention(1000 * q.double(), k.double(), v.double(), is_causal=is_causal)
    assert_close(lse, expected_lse, 1e-5)
    assert_close(out, expected, 1e-2)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_loses_no_more_than_plain_attention_does(dtype: torch.dtype, is_causal: bool) -> None:
    inputs = qkv(queries=301, heads=2, dim=64, dtype=dtype)
    out, lse = exact_attention(*inputs, is_causal=is_causal, return_lse=True)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    exact, exact_lse = plain_attention(*(x.double() for x in inputs), is_causal=is_causal)
    plain, plain_lse = plain_attention(*inputs, is_causal=is_causal)
    assert relative_error(out, exact) <= 2 * relative_error(plain, exact)
    assert relative_error(lse, exact_lse) <= 2 * relative_error(plain_lse, exact_lse)


@pytest.mark.usefixtures("way")
def test_no_queries_give_no_rows_and_no_gradient() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(queries=0, keys=40))
    out, lse = exact_attention(q, k, v, return_lse=True)
    assert out.shape == (1, 1, 0, 8)
    assert lse.shape == (1, 1, 0)
    for gradient, x in zip(torch.autograd.grad(out.sum() + lse.sum(), (q, k, v)), (q, k, v), strict=True):
        assert torch.equal(gradient, torch.zeros_like(x))


class FloatSums(TorchDispatchMode):
    """Counts cumulative sums of floating point numbers: under deterministic algorithms they raise on CUDA."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.cumsum and args[0].is_floating_point()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_algorithms_give_the_same_without_a_cumulative_sum(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in qkv(queries=67, heads=2, dim=8))
    v[0, 0, 9, 0], v[0, 0, 11, 1], v[0, 1, 4, 0], v[0, 1, 60, 0] = math.inf, math.nan, -math.inf, math.inf
    # Beneath the operator, whose insides no mode sees.
    call = functools.partial(exact_forward, q, k, v, True, 0.3)
    with FloatSums() as sums:
        expected = call()
    assert sums.count == 1
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with FloatSums() as sums:
            found = call()
    finally:
        torch.use_deterministic_algorithms(before)
    assert sums.count == 0
    assert not expected[0].isfinite().all()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
