"""exact_attention on CUDA, through FlashAttention-2 and through plain products: output, log-sum-exp, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from hyperattn_core import exact_attention
from tests.gpu.gpu_cases import (
    ALLOWED,
    DTYPES,
    assert_as_good_as_plain,
    doubled,
    heads_inside,
    normal,
    plain_attention,
    qkv,
)
from tests.gpu.gpu_cases import relative_error as error


@pytest.mark.parametrize("is_causal", [False, True])
class TestExact:
    """Against plain attention in float64."""

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("length", [1, 31, 128, 257, 1000])
    def test_lengths_and_dtypes(self, length: int, dtype: torch.dtype, is_causal: bool) -> None:
        self.check(length, dtype, is_causal)

    @pytest.mark.parametrize(
        ("dim", "value_dim"), [(32, 32), (80, 80), (96, 96), (100, 100), (128, 64), (64, 128), (256, 256), (250, 16)]
    )
    def test_head_sizes(self, dim: int, value_dim: int, is_causal: bool) -> None:
        self.check(300, torch.bfloat16, is_causal, dim=dim, value_dim=value_dim)

    def test_batches_of_grouped_heads(self, is_causal: bool) -> None:
        self.check(300, torch.bfloat16, is_causal, batch=2, heads=6, kv_heads=2)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("with_lse", [False, True])
    def test_gradients(self, dtype: torch.dtype, with_lse: bool, is_causal: bool) -> None:
        inputs = tuple(x.requires_grad_() for x in qkv(300, heads=4, kv_heads=2, dtype=dtype))
        weight, lse_weight = normal(1, 4, 300, 64, seed=9), normal(1, 4, 300, seed=10)
        grads = []
        for tensors, attend in (
            (inputs, lambda *x: exact_attention(*x, is_causal=is_causal, enable_gqa=True, return_lse=True)),
            (doubled(*inputs), lambda *x: plain_attention(*x, is_causal=is_causal)),
            (inputs, lambda *x: plain_attention(*x, is_causal=is_causal)),
        ):
            out, lse = attend(*tensors)
            loss = (out * weight.to(out.dtype)).sum()
            if with_lse:
                loss = loss + (lse * lse_weight.to(lse.dtype)).sum()
            grads.append(torch.autograd.grad(loss, tensors))
        for ours, exact, plain in zip(*grads, strict=True):
            assert ours.dtype == dtype
            assert error(ours, exact) <= ALLOWED[dtype] * error(plain, exact)

    @pytest.mark.parametrize("scale", [0.0, -0.3, 1.0])
    def test_scales(self, scale: float, is_causal: bool) -> None:
        q, k, v = qkv(300)
        out = exact_attention(q, k, v, is_causal=is_causal, scale=scale)
        assert isinstance(out, torch.Tensor)
        # Plain attention divides by sqrt(D) = 8.
        expected, _ = plain_attention(q.double() * scale * 8.0, k.double(), v.double(), is_causal=is_causal)
        assert error(out, expected) < 2e-2

    def test_a_nan_in_a_value_reaches_the_rows_that_see_it_alone(self, is_causal: bool) -> None:
        q, k, v = qkv(300)
        v[0, 0, 200] = math.nan
        out = exact_attention(q, k, v, is_causal=is_causal)
        assert isinstance(out, torch.Tensor)
        seen = torch.arange(300, device=q.device) >= (200 if is_causal else 0)
        assert torch.equal(out[0, 0].isnan().all(1), seen)
        assert not out[0, 1].isnan().any()

    def check(self, length: int, dtype: torch.dtype, is_causal: bool, **shape: int) -> None:
        """Output and log-sum-exp, from inputs stored as (B, N, H, D) too."""
        inputs = qkv(length, dtype=dtype, **shape)
        expected = plain_attention(*(x.double() for x in inputs), is_causal=is_causal)
        for q, k, v in (inputs, tuple(heads_inside(x) for x in inputs)):
            ours = exact_attention(q, k, v, is_causal=is_causal, enable_gqa=True, return_lse=True)
            assert isinstance(ours, tuple)
            assert (ours[0].shape, ours[1].shape) == ((*q.shape[:3], v.shape[3]), q.shape[:3])
            if length > 1:
                assert_as_good_as_plain(ours, expected, inputs, is_causal=is_causal)
            else:
                assert error(ours[0], expected[0]) <= 1e-2
                assert error(ours[1], expected[1]) <= 1e-2


def test_other_numbers_of_queries_than_keys() -> None:
    for queries, keys in ((1, 300), (300, 7), (129, 500)):
        inputs = qkv(queries, keys=keys)
        ours = exact_attention(*inputs, return_lse=True)
        assert isinstance(ours, tuple)
        expected = plain_attention(*(x.double() for x in inputs))
        assert_as_good_as_plain(ours, expected, inputs, is_causal=False)
