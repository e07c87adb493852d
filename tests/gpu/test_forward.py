"""The Triton backend's forward pass against the oracle at the same plan, where the oracle is affordable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan, oracle_attention
from tests.gpu.gpu_cases import (
    CHOICES,
    DTYPES,
    Tensors,
    assert_as_good_as_plain,
    every_second_column,
    heads_inside,
    qkv,
    relative_error,
    small_params,
)


def check(inputs: Tensors, params: HyperAttentionParams, *, is_causal: bool, seed: int = 0) -> None:
    """Output and log-sum-exp are the oracle's at the plan, as far as the precision of the inputs goes."""
    q, k, v = inputs
    plan = make_plan(q, k, params, seed, is_causal=is_causal, backend="triton")
    assert not plan.is_exact
    ours = hyper_attention(q, k, v, plan=plan, is_causal=is_causal, enable_gqa=True, return_lse=True, backend="triton")
    assert (ours[0].dtype, ours[1].dtype) == (q.dtype, torch.float32)
    assert_as_good_as_plain(ours, oracle_attention(q, k, v, plan), inputs, is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [False, True])
class TestAgainstTheOracle:
    """Cases that the contract names."""

    @pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes_samplings_and_pairings(
        self, dtype: torch.dtype, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        check(qkv(301, dtype=dtype), small_params(sampling, pairing), is_causal=is_causal)

    @pytest.mark.parametrize("length", [61, 64, 127, 128, 131, 257, 512])
    def test_odd_prime_and_even_lengths(self, length: int, is_causal: bool) -> None:
        check(qkv(length), small_params(), is_causal=is_causal)

    @pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(1, 1, 1), (3, 3, 3), (2, 4, 2), (2, 6, 1)])
    @pytest.mark.parametrize("pairing", ["rank", "bucket"])
    def test_batches_and_grouped_heads(
        self, batch: int, heads: int, kv_heads: int, pairing: str, is_causal: bool
    ) -> None:
        inputs = qkv(191, batch=batch, heads=heads, kv_heads=kv_heads)
        check(inputs, small_params(pairing=pairing), is_causal=is_causal)

    @pytest.mark.parametrize(
        ("dim", "value_dim"),
        [(32, 32), (64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (64, 128), (128, 64), (80, 24)],
    )
    def test_head_sizes(self, dim: int, value_dim: int, is_causal: bool) -> None:
        check(qkv(203, heads=1, dim=dim, value_dim=value_dim), small_params(), is_causal=is_causal)

    @pytest.mark.parametrize(("block_size", "sample_size"), [(48, 80), (100, 60), (16, 112), (17, 33), (128, 1)])
    @pytest.mark.parametrize(("sampling", "pairing"), [("iid", "rank"), ("stratified", "bucket")])
    def test_blocks_and_samples_that_no_tile_divides(
        self, block_size: int, sample_size: int, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        params = small_params(sampling, pairing, block_size=block_size, sample_size=sample_size, min_seq_len=130)
        check(qkv(523), params, is_causal=is_causal)

    @pytest.mark.parametrize("layout", [heads_inside, every_second_column])
    def test_layouts(self, layout: Callable[[Tensor], Tensor], is_causal: bool) -> None:
        q, k, v = (layout(x) for x in qkv(259, batch=2, heads=4, kv_heads=2))
        assert not q.is_contiguous()
        check((q, k, v), small_params(), is_causal=is_causal)

    def test_another_seed_is_another_estimate(self, is_causal: bool) -> None:
        inputs = qkv(301)
        for seed in (1, 2):
            check(inputs, small_params(), is_causal=is_causal, seed=seed)
        one, other = (
            hyper_attention(*inputs, params=small_params(), seed=seed, is_causal=is_causal, backend="triton")
            for seed in (1, 2)
        )
        assert not torch.equal(one, other)

    @pytest.mark.parametrize("scale", [0.0, -0.2, 0.5])
    def test_scales(self, scale: float, is_causal: bool) -> None:
        q, k, v = qkv(301, dtype=torch.float32)
        plan = make_plan(q, k, small_params(), is_causal=is_causal, backend="triton")
        out = hyper_attention(q, k, v, plan=plan, is_causal=is_causal, scale=scale, backend="triton")
        assert relative_error(out, oracle_attention(q, k, v, plan, scale)[0]) < 1e-5

    def test_huge_logits_do_not_overflow(self, is_causal: bool) -> None:
        q, k, v = qkv(301, dtype=torch.float32)
        out, lse = hyper_attention(
            100.0 * q, 100.0 * k, v, params=small_params(), is_causal=is_causal, return_lse=True, backend="triton"
        )
        assert out.isfinite().all()
        assert lse.isfinite().all()


@pytest.mark.parametrize(("queries", "keys"), [(1, 400), (37, 301), (301, 97), (500, 499)])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_other_numbers_of_queries_than_keys(queries: int, keys: int, sampling: str, pairing: str) -> None:
    check(qkv(queries, keys=keys), small_params(sampling, pairing), is_causal=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_short_call_is_exact_attention(dtype: torch.dtype, is_causal: bool) -> None:
    inputs = qkv(60, dtype=dtype)
    ours = hyper_attention(*inputs, params=small_params(), is_causal=is_causal, return_lse=True, backend="triton")
    expected = exact_attention(*(x.double() for x in inputs), is_causal=is_causal, return_lse=True)
    assert isinstance(expected, tuple)
    assert_as_good_as_plain(ours, expected, inputs, is_causal=is_causal)


def test_auto_takes_the_kernels_and_falls_back_for_float64() -> None:
    inputs = qkv(301)
    one = hyper_attention(*inputs, params=small_params())
    assert torch.equal(one, hyper_attention(*inputs, params=small_params(), backend="triton"))
    wide = tuple(x.double() for x in inputs)
    out = hyper_attention(*wide, params=small_params())
    assert torch.equal(out, hyper_attention(*wide, params=small_params(), backend="torch"))
    with pytest.raises((ValueError, RuntimeError), match="float64"):
        hyper_attention(*wide, params=small_params(), backend="triton")


def test_tensors_of_the_cpu_are_refused_with_the_alternative() -> None:
    with pytest.raises((ValueError, RuntimeError), match="torch"):
        hyper_attention(*(x.cpu() for x in qkv(301)), params=small_params(), backend="triton")
