"""Strictly causal, to the last bit: what comes after t is nowhere in what is at t."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention
from tests.helpers.core_inputs import ALL_PAIRINGS, CHOICES, SAMPLINGS, all_params, bits, normal, qkv, small_params
from tests.helpers.slow import slow

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
WIDTHS = (1, 3, 7, 16, 33, 64)


def changed_after(x: Tensor, t: int, how: str) -> Tensor:
    """x with other rows after position t: new ones, huge ones, or all alike, so that they crowd one bucket."""
    later = x[:, :, t + 1 :]
    if how == "alike":
        rows = x[:, :, :1].expand_as(later)
    else:
        rows = normal(*later.shape, seed=77, dtype=x.dtype) * (1000 if how == "huge" else 1)
    return torch.cat([x[:, :, : t + 1], rows], dim=2)


def unchanged_up_to(t: int, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> bool:
    """True if out and lse agree to the last bit at positions 0..t."""
    return all(torch.equal(bits(a[:, :, : t + 1]), bits(b[:, :, : t + 1])) for a, b in zip(before, after, strict=True))


def call(q: Tensor, k: Tensor, v: Tensor, params: HyperAttentionParams) -> tuple[Tensor, Tensor]:
    """Causal out and lse."""
    return hyper_attention(q, k, v, is_causal=True, params=params, seed=1, enable_gqa=True, return_lse=True)


@st.composite
def calls(
    draw: st.DrawFn, pairings: tuple[str, ...]
) -> tuple[tuple[Tensor, Tensor, Tensor], int, HyperAttentionParams]:
    """Inputs, a position that has others after it, and parameters."""
    length = draw(st.integers(2, 400))
    kv_heads = draw(st.integers(1, 2))
    tensors = qkv(
        queries=length,
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.sampled_from(WIDTHS)),
        value_dim=draw(st.sampled_from(WIDTHS)),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 100)),
    )
    return tensors, draw(st.integers(0, length - 2)), draw(all_params(max_size=70, pairings=pairings))


HOW = st.sampled_from(["new", "huge", "alike"])


@settings(max_examples=40)
@given(calls(ALL_PAIRINGS), HOW)
def test_keys_and_values_after_t_change_nothing_up_to_t(
    call_: tuple[tuple[Tensor, Tensor, Tensor], int, HyperAttentionParams], how: str
) -> None:
    (q, k, v), t, params = call_
    before = call(q, k, v, params)
    assert unchanged_up_to(t, before, call(q, changed_after(k, t, how), v, params))
    assert unchanged_up_to(t, before, call(q, k, changed_after(v, t, how), params))


@settings(max_examples=40)
@given(calls(("bucket", "routed")), HOW)
def test_with_other_than_rank_pairing_queries_after_t_change_nothing_either(
    call_: tuple[tuple[Tensor, Tensor, Tensor], int, HyperAttentionParams], how: str
) -> None:
    (q, k, v), t, params = call_
    before = call(q, k, v, params)
    assert unchanged_up_to(t, before, call(changed_after(q, t, how), k, v, params))
    everything = (changed_after(x, t, how) for x in (q, k, v))
    assert unchanged_up_to(t, before, call(*everything, params))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("sampling", "pairing"), [(s, "bucket") for s in SAMPLINGS] + [("probed", "routed")])
@pytest.mark.parametrize(
    ("length", "leaf", "block_size", "sample_size"),
    [(5003, 300, 100, 90), *slow((6000, 512, 256, 256), (5555, 1024, 61, 45)), (5120, 64, 64, 64)],
)
def test_sequences_of_many_chunks(
    length: int, leaf: int, block_size: int, sample_size: int, sampling: str, pairing: str, dtype: torch.dtype
) -> None:
    q, k, v = qkv(queries=length, dim=24, value_dim=40, dtype=dtype)
    params = small_params(
        sampling, pairing, block_size=block_size, sample_size=sample_size, num_projections=7, min_seq_len=leaf
    )
    before = call(q, k, v, params)
    for t in (leaf, length // 2, length - 700, length - 2):
        for how in ("new", "alike"):
            after = call(*(changed_after(x, t, how) for x in (q, k, v)), params)
            assert unchanged_up_to(t, before, after)
            assert not torch.equal(before[0][:, :, t + 1 :], after[0][:, :, t + 1 :])


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_threads_are_causal_too(dtype: torch.dtype) -> None:
    q, k, v = qkv(queries=5003, dim=24, value_dim=40, dtype=dtype)
    params = small_params("stratified", "bucket", block_size=256, sample_size=250, min_seq_len=1500)
    after = call(*(changed_after(x, 3333, "new") for x in (q, k, v)), params)
    assert unchanged_up_to(3333, call(q, k, v, params), after)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_with_rank_pairing_queries_after_t_do_change_outputs_up_to_t(sampling: str) -> None:
    # The paper's pairing: later queries move a query's place among all sorted ones, and with it the block it meets.
    q, k, v = qkv(queries=256)
    params = small_params(sampling, "rank", min_seq_len=16)
    t = 200
    before, after = call(q, k, v, params), call(changed_after(q, t, "new"), k, v, params)
    assert not unchanged_up_to(t, before, after)
    assert float((before[0] - after[0])[:, :, : t + 1].abs().max()) > 1e-3


@settings(max_examples=40)
@given(
    st.integers(2, 600), st.data(), st.sampled_from(WIDTHS), st.sampled_from(DTYPES), HOW
)  # fmt: skip
def test_exact_attention_is_causal_to_the_last_bit(
    length: int, data: st.DataObject, dim: int, dtype: torch.dtype, how: str
) -> None:
    t = data.draw(st.integers(0, length - 2))
    q, k, v = qkv(queries=length, dim=dim, dtype=dtype)
    before = exact_attention(q, k, v, is_causal=True, return_lse=True)
    after = exact_attention(*(changed_after(x, t, how) for x in (q, k, v)), is_causal=True, return_lse=True)
    assert unchanged_up_to(t, before, after)  # type: ignore[arg-type]


@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("t", [0, 20, 36, 58])
def test_outputs_up_to_t_have_no_gradient_in_what_comes_after(sampling: str, pairing: str, t: int) -> None:
    inputs = [x.requires_grad_() for x in qkv(queries=60, heads=2, kv_heads=1, value_dim=5)]
    out, lse = call(*inputs, small_params(sampling, pairing))
    for gradient in torch.autograd.grad(out[:, :, : t + 1].square().sum() + lse[:, :, : t + 1].sum(), inputs):
        assert gradient[:, :, : t + 1].any()
        assert not gradient[:, :, t + 1 :].any()
