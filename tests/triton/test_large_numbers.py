"""Large logits and values in the kernels: weights add up to one, gradients as exact as PyTorch's, sums stay finite."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan, oracle_attention
from tests.helpers.core_inputs import doubled, qkv, relative_error, with_gradients
from tests.helpers.slow import slow

PARAMS = HyperAttentionParams(block_size=16, sample_size=16, min_seq_len=32, sampling="stratified")
TRUNCATED = replace(PARAMS, sampling="truncated")


@pytest.mark.parametrize("params", [PARAMS, TRUNCATED])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "logit"),
    [
        (torch.float16, 8e4),
        *slow((torch.float32, 1.0), (torch.float32, 8e4), (torch.float32, 7.2e7), (torch.bfloat16, 8e4)),
    ],
)
def test_the_mean_of_equal_values_is_that_value(
    dtype: torch.dtype, logit: float, is_causal: bool, params: HyperAttentionParams
) -> None:
    q = torch.full((1, 1, 150, 16), (logit / 4) ** 0.5, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for value in (1.0, 0.98 * torch.finfo(dtype).max):
        v = torch.full_like(q, value)
        out = hyper_attention(q, q, v, is_causal=is_causal, params=params, backend="triton")
        torch.testing.assert_close(out / v, torch.ones_like(out), rtol=0, atol=tolerance)


@pytest.fixture
def products_of_one_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products whose entries do not depend on how the operands lie in memory, as on a GPU; NumPy's do, in the last bit.

    The passes make the same logits of operands that lie otherwise.
    """

    def dot(self: Any, a: TensorHandle, b: TensorHandle, c: TensorHandle, *precision: Any) -> TensorHandle:
        exact = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)) + c.data
        return TensorHandle(exact.astype(c.data.dtype), c.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)


@pytest.mark.slow
@pytest.mark.usefixtures("products_of_one_rounding")
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradients_of_large_logits_lose_no_more_than_those_of_pytorch(is_causal: bool) -> None:
    # Logits of some 1e5, of which one or two in a row count.
    q, k, v = qkv(queries=150, heads=2, dim=64, dtype=torch.float32)
    q = q * (1e5 / 24)
    plan = make_plan(q, k, PARAMS, is_causal=is_causal)
    ours = with_gradients(lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal, backend="triton"), (q, k, v))
    oracle = with_gradients(lambda *x: oracle_attention(*x, plan)[0], doubled(q, k, v))
    theirs = with_gradients(lambda *x: scaled_dot_product_attention(*x, is_causal=is_causal), (q, k, v))
    exact = with_gradients(lambda *x: scaled_dot_product_attention(*x, is_causal=is_causal), doubled(q, k, v))
    for a, b, c, d in zip(ours, oracle, theirs, exact, strict=True):
        # At a plan where one key counts in every row there is no gradient to lose.
        size = max(float(x.detach().norm()) for x in (b, d))
        assert float((a - b).detach().norm()) / size <= 2 * relative_error(c, d)
