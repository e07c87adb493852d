"""Long sequences: the Triton backend against the torch backend at the same plan, and memory that grows linearly."""

from __future__ import annotations

import pytest
import torch

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan
from tests.gpu.gpu_cases import ALLOWED, CHOICES, DTYPES, plain_attention, qkv, relative_error

LONG = 1048576
#: Rows of the queries on which plain attention is tried.
ROWS = 256


def check(queries: int, params: HyperAttentionParams, dtype: torch.dtype, *, is_causal: bool, **shape: int) -> None:
    """Triton errs by a small multiple of what plain attention loses in the same dtype on some of the rows.

    The judge is the torch backend at the same plan in float64: the oracle's matrices would be too large.
    """
    q, k, v = qkv(queries, dtype=dtype, **shape)
    plan = make_plan(q, k, params, is_causal=is_causal, backend="triton")
    wide = (q.double(), k.double(), v.double())
    exact, ours = (
        hyper_attention(*x, plan=plan, is_causal=is_causal, enable_gqa=True, return_lse=True, backend=backend)
        for x, backend in ((wide, "torch"), ((q, k, v), "triton"))
    )
    step = max(1, queries // ROWS)
    low, high = (plain_attention(x[0][:, :, ::step], *x[1:]) for x in ((q, k, v), wide))
    for name, mine, wanted, plain, judge in zip(("out", "lse"), ours, exact, low, high, strict=True):
        error, allowed = relative_error(mine, wanted), ALLOWED[dtype] * relative_error(plain, judge)
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_samplings_and_pairings(sampling: str, pairing: str, is_causal: bool) -> None:
    params = HyperAttentionParams(sampling=sampling, pairing=pairing)  # type: ignore[arg-type]
    check(16384, params, torch.bfloat16, is_causal=is_causal, heads=2)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [8191, 32768])
def test_dtypes_and_lengths(length: int, dtype: torch.dtype, is_causal: bool) -> None:
    check(length, HyperAttentionParams(), dtype, is_causal=is_causal, heads=2)


@pytest.mark.parametrize("is_causal", [False, True])
def test_batches_of_grouped_heads(is_causal: bool) -> None:
    check(5003, HyperAttentionParams.paper(), torch.bfloat16, is_causal=is_causal, batch=2, heads=6, kv_heads=2)


def test_other_numbers_of_queries_than_keys() -> None:
    check(4099, HyperAttentionParams(), torch.bfloat16, is_causal=False, keys=20011)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_million_keys_fit_and_memory_grows_linearly(is_causal: bool) -> None:
    peaks = []
    for length in (LONG // 4, LONG):
        inputs = [torch.randn(1, 1, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = hyper_attention(*inputs, is_causal=is_causal, backend="triton")
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        assert out.isfinite().all()
        del inputs, out
    # Levels of the causal recursion come one by one: a little more than linear is due to them.
    assert peaks[1] <= 4.8 * peaks[0]
