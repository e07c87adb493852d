"""Limits in which the estimator is exact attention, or every key is met with weight 1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan
from hyperattn_core.oracle import weight_matrix
from tests.helpers.core_inputs import ALL_PAIRINGS, CHOICES, PAIRINGS, assert_close, plain_attention, qkv, small_params
from tests.helpers.slow import slow

SIZES = ((1, 1), (7, 7), (64, 64), (97, 97), (53, 130), (130, 53))


def check_exact(queries: int, keys: int, params: HyperAttentionParams, is_causal: bool) -> None:
    """Every key has weight 1, and out, lse and gradients are those of exact attention."""
    if is_causal and queries != keys:
        queries = keys
    shape = {"queries": queries, "keys": keys, "batch": 2, "heads": 4, "kv_heads": 2, "dim": 5, "value_dim": 3}
    tensors = [x.requires_grad_() for x in qkv(**shape)]  # type: ignore[arg-type]
    plan = make_plan(tensors[0], tensors[1], params, seed=4, is_causal=is_causal)
    ones = torch.ones(2, 4, queries, keys, dtype=torch.float64)
    assert torch.equal(weight_matrix(plan), ones.tril() if is_causal else ones)
    out, lse = hyper_attention(*tensors, plan=plan, is_causal=is_causal, enable_gqa=True, return_lse=True)
    expected, expected_lse = plain_attention(*tensors, is_causal=is_causal)
    assert_close(out, expected)
    assert_close(lse, expected_lse)
    ours = torch.autograd.grad((out * out).sum() + lse.sum(), tensors)
    theirs = torch.autograd.grad((expected * expected).sum() + expected_lse.sum(), tensors)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
class TestExactLimits:
    """The limits of the contract, over both samplings and pairings."""

    @pytest.mark.parametrize("more", [0, *slow(1, 50)])
    def test_blocks_hold_every_key(
        self, sampling: str, pairing: str, queries: int, keys: int, more: int, is_causal: bool
    ) -> None:
        # With routed pairing a query that chooses as many blocks as there are meets all keys.
        size = 32 * -(-(keys + more) // 4) if pairing == "routed" else keys + more
        params = HyperAttentionParams(size, 5, 4, 6, sampling, pairing, num_probes=1)  # type: ignore[arg-type]
        check_exact(queries, keys, params, is_causal)

    @pytest.mark.parametrize("more", [0, *slow(1, 50)])
    def test_sequences_up_to_min_seq_len(
        self, sampling: str, pairing: str, queries: int, keys: int, more: int, is_causal: bool
    ) -> None:
        size = 32 if pairing == "routed" else 3
        params = HyperAttentionParams(size, 2, 4, keys + more, sampling, pairing, num_probes=1)  # type: ignore[arg-type]
        check_exact(queries, keys, params, is_causal)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("pairing", ALL_PAIRINGS)
@pytest.mark.parametrize("more", [*slow(0), 50])
@pytest.mark.parametrize("sampling", [*slow("stratified"), "probed"])
def test_samples_of_every_key(sampling: str, queries: int, keys: int, pairing: str, more: int, is_causal: bool) -> None:
    size = 32 if pairing == "routed" else 8
    params = HyperAttentionParams(size, keys + more, 4, 3, sampling, pairing, num_probes=2)  # type: ignore[arg-type]
    check_exact(queries, keys, params, is_causal)


@settings(max_examples=15)
@given(st.integers(2, 120), st.integers(1, 30), st.integers(1, 30), st.sampled_from(PAIRINGS))
def test_causal_blocks_or_samples_that_cover_every_node(length: int, leaf: int, block: int, pairing: str) -> None:
    longest = leaf
    while 2 * longest < length:
        longest *= 2
    for params in (
        HyperAttentionParams(longest, 3, 4, leaf, "iid", pairing),  # type: ignore[arg-type]
        HyperAttentionParams(block, longest, 4, leaf, "stratified", pairing),  # type: ignore[arg-type]
        HyperAttentionParams(block, longest, 4, leaf, "probed", pairing, num_probes=1),  # type: ignore[arg-type]
    ):
        check_exact(length, length, params, is_causal=True)


@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_one_key_beyond_the_limit_is_an_estimate(sampling: str, pairing: str, is_causal: bool) -> None:
    q, k, v = qkv(queries=65, dim=5)
    params = HyperAttentionParams(32, 20, 4, 64, sampling, pairing)  # type: ignore[arg-type]
    exact = plain_attention(q, k, v, is_causal=is_causal)[0]
    assert (hyper_attention(q, k, v, params=params, is_causal=is_causal) - exact).abs().max() > 1e-3
    assert_close(hyper_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], params=params, is_causal=is_causal),
                 plain_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], is_causal=is_causal)[0])  # fmt: skip


@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_no_queries_give_no_rows(sampling: str, pairing: str) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(queries=0, keys=40))
    params = small_params(sampling, pairing)
    out, lse = hyper_attention(q, k, v, params=params, return_lse=True)
    assert (out.shape, lse.shape) == ((1, 1, 0, 8), (1, 1, 0))
    assert not torch.autograd.grad(out.sum() + lse.sum(), k)[0].any()
