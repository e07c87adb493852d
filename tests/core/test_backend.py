"""The PyTorch backend against the oracle at the same plan: float64 to 1e-10, lower precisions as plain attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import hyperattn_core.torch_backend.tiles as tiles_module
from hyperattn_core import AttentionPlan, HyperAttentionParams, hyper_attention, make_plan, oracle_attention
from tests.helpers.core_inputs import (
    CHOICES,
    LAYOUTS,
    Case,
    assert_close,
    bits,
    cases,
    doubled,
    laid_out,
    normal,
    plain_attention,
    qkv,
    relative_error,
    small_params,
)

# (queries, keys): a multiple of nothing, odd, prime, shorter than a block, one more or less than a tile, unequal.
LENGTHS = ((64, 64), (63, 63), (97, 97), (9, 9), (130, 130), (1, 60), (13, 110), (129, 40), (65, 200))


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: AttentionPlan, scale: float | None = None) -> None:
    """The backend and the oracle agree to 1e-10."""
    out, lse = hyper_attention(
        q, k, v, plan=plan, is_causal=plan.is_causal, enable_gqa=True, scale=scale, return_lse=True, backend="torch"
    )
    expected, expected_lse = oracle_attention(q, k, v, plan, scale)
    assert_close(out, expected)
    assert_close(lse, expected_lse)


@settings(max_examples=60)
@given(cases())
def test_any_call_agrees_with_the_oracle(case: Case) -> None:
    check(case.q, case.k, case.v, case.plan())


@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("is_causal", [False, True])
class TestAgainstTheOracle:
    """Cases that the contract names."""

    @pytest.mark.parametrize(("queries", "keys"), LENGTHS)
    def test_lengths(self, queries: int, keys: int, sampling: str, pairing: str, is_causal: bool) -> None:
        queries = keys if is_causal else queries
        q, k, v = qkv(queries=queries, keys=keys, heads=2, dim=5, value_dim=3)
        plan = make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal)
        assert not plan.is_exact
        check(q, k, v, plan)

    @pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (4, 2), (6, 1)])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_batches_and_grouped_heads(
        self, batch: int, heads: int, kv_heads: int, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        q, k, v = qkv(queries=47, batch=batch, heads=heads, kv_heads=kv_heads, dim=4)
        check(q, k, v, make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal))

    @pytest.mark.parametrize(("dim", "value_dim"), [(1, 1), (16, 16), (16, 5), (5, 16), (24, 64), (33, 17)])
    def test_head_sizes(self, dim: int, value_dim: int, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, v = qkv(queries=50, dim=dim, value_dim=value_dim)
        plan = make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal)
        check(q, k, v, plan)
        out = hyper_attention(q, k, v, plan=plan, is_causal=is_causal)
        assert out.shape == v.shape
        assert out.is_contiguous()

    @pytest.mark.parametrize(
        ("block_size", "sample_size"), [(1, 1), (7, 5), (16, 16), (8, 1), (3, 45), (45, 3), (13, 50)]
    )
    def test_odd_blocks_and_samples(
        self, block_size: int, sample_size: int, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        q, k, v = qkv(queries=51, heads=2)
        params = small_params(sampling, pairing, block_size=block_size, sample_size=sample_size)
        check(q, k, v, make_plan(q, k, params, is_causal=is_causal))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, layout: str, sampling: str, pairing: str, is_causal: bool) -> None:
        tensors = qkv(queries=50, batch=2, heads=4, kv_heads=2, value_dim=6)
        q, k, v = (laid_out(x, layout) for x in tensors)
        plan = make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal)
        check(q, k, v, plan)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        out, lse = hyper_attention(
            *inputs, plan=plan, is_causal=is_causal, enable_gqa=True, return_lse=True, backend="torch"
        )
        expected, expected_lse = oracle_attention(*inputs, plan)
        grad_out = laid_out(normal(*out.shape, seed=5), layout)
        grads = (grad_out, grad_out[..., 0])
        for a, b in zip(
            torch.autograd.grad((out, lse), inputs, grads),
            torch.autograd.grad((expected, expected_lse), inputs, grads),
            strict=True,
        ):
            assert_close(a, b)

    @pytest.mark.parametrize("tile_size", [1, 5, 64, 3000])
    def test_tile_sizes(self, tile_size: int, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, v = qkv(queries=70, heads=2)
        check(q, k, v, make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal, tile_size=tile_size))

    @pytest.mark.parametrize("chunk", [1, 16, 50])
    def test_many_chunks(
        self, chunk: int, sampling: str, pairing: str, is_causal: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tiles_module, "CHUNK_QUERIES", chunk)
        q, k, v = qkv(queries=70, heads=4, kv_heads=2, batch=2)
        check(q, k, v, make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal, tile_size=4))

    @pytest.mark.parametrize("scale", [0.0, -0.7, 2.0])
    def test_scales(self, scale: float, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, v = qkv(queries=90)
        params = small_params(sampling, pairing, min_seq_len=40)
        check(q, k, v, make_plan(q, k, params, is_causal=is_causal), scale)

    @pytest.mark.parametrize(("size", "scale"), [(30.0, None), (1e4, None), (1e4, -1.0)])
    def test_huge_logits_do_not_overflow(
        self, size: float, scale: float | None, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        q, k, v = qkv(queries=90)
        check(size * q, k, v, make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal), scale)

    def test_huge_values_do_not_overflow(self, sampling: str, pairing: str, is_causal: bool) -> None:
        q, k, v = qkv(queries=90, dtype=torch.float32)
        q *= 20 / (q.norm(dim=3).max() * k.norm(dim=3).max() * 8**-0.5)
        plan = make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal)
        expected = hyper_attention(q, k, v, plan=plan, is_causal=is_causal)
        out = hyper_attention(q, k, v * 2.0**120, plan=plan, is_causal=is_causal)
        assert torch.allclose(out * 2.0**-120, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_low_precision_loses_as_little_as_plain_attention(
        self, dtype: torch.dtype, sampling: str, pairing: str, is_causal: bool
    ) -> None:
        inputs = [x.requires_grad_() for x in qkv(queries=301, dim=64, dtype=dtype)]
        params = small_params(sampling, pairing, block_size=32, sample_size=32, num_projections=4, min_seq_len=60)
        plan = make_plan(inputs[0], inputs[1], params, is_causal=is_causal)
        weight = normal(1, 1, 301, 64, seed=9)
        results = []
        for tensors, attend in (
            (inputs, lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal, return_lse=True)),
            (doubled(*inputs), lambda *x: oracle_attention(*x, plan)),
            (inputs, lambda *x: plain_attention(*x, is_causal=is_causal)),
            (doubled(*inputs), lambda *x: plain_attention(*x, is_causal=is_causal)),
        ):
            out, lse = attend(*tensors)
            results.append((out, lse, *torch.autograd.grad(out, tensors, weight.to(out.dtype))))
        ours, oracle, plain, exact = results
        assert [x.dtype for x in ours] == [dtype, torch.float32, dtype, dtype, dtype]
        for a, b, c, d in zip(ours, oracle, plain, exact, strict=True):
            assert relative_error(a, b) <= 2 * relative_error(c, d)


@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_same_seed_gives_the_same_output_to_the_last_bit(
    sampling: str, pairing: str, is_causal: bool, dtype: torch.dtype
) -> None:
    check_repeatable(
        2500, small_params(sampling, pairing, block_size=48, sample_size=40, min_seq_len=300), is_causal, dtype
    )


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("is_causal", [False, True])
def test_two_threads_give_the_same_output_to_the_last_bit(is_causal: bool) -> None:
    params = small_params("stratified", "bucket", block_size=256, sample_size=256, min_seq_len=1500)
    check_repeatable(2500, params, is_causal, torch.float32)


def check_repeatable(length: int, params: HyperAttentionParams, is_causal: bool, dtype: torch.dtype) -> None:
    """Two calls agree to the last bit, gradients too, and a call with another seed does not."""
    inputs = [x.requires_grad_() for x in qkv(queries=length, heads=2, kv_heads=1, dim=24, dtype=dtype)]
    runs = []
    for seed in (3, 3, 4):
        out, lse = hyper_attention(
            *inputs, params=params, seed=seed, is_causal=is_causal, enable_gqa=True, return_lse=True
        )
        runs.append((out, lse, *torch.autograd.grad(out.sum() + lse.sum(), inputs)))
    first, second, other = runs
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("pairing", ["rank", "bucket"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_no_value_is_read_from_the_device(pairing: str, is_causal: bool) -> None:
    # Tensors on the meta device have no values: code that asks for one, which on a GPU would wait for it, raises.
    inputs = [torch.randn(1, 4, 300, 8, device="meta", requires_grad=True)]
    inputs += [torch.randn(1, 2, 300, 8, device="meta", requires_grad=True) for _ in range(2)]
    params = HyperAttentionParams(16, 16, 5, 40, "stratified", pairing)  # type: ignore[arg-type]
    out, lse = hyper_attention(*inputs, params=params, is_causal=is_causal, enable_gqa=True, return_lse=True)
    assert (out.shape, lse.shape) == ((1, 4, 300, 8), (1, 4, 300))
    grads = torch.autograd.grad(out.sum() + lse.sum(), inputs)
    assert [g.shape for g in grads] == [x.shape for x in inputs]
