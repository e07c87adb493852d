"""Large logits and values in the kernels: weights add up to one, and sums of values near the largest stay finite."""

from __future__ import annotations

import pytest
import torch

from hyperattn_core import HyperAttentionParams, hyper_attention

PARAMS = HyperAttentionParams(block_size=16, sample_size=16, min_seq_len=32)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "logit"),
    [(torch.float32, 1.0), (torch.float32, 8e4), (torch.float32, 7.2e7), (torch.bfloat16, 8e4), (torch.float16, 8e4)],
)
def test_the_mean_of_equal_values_is_that_value(dtype: torch.dtype, logit: float, is_causal: bool) -> None:
    q = torch.full((1, 1, 150, 16), (logit / 4) ** 0.5, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for value in (1.0, 0.98 * torch.finfo(dtype).max):
        v = torch.full_like(q, value)
        out = hyper_attention(q, q, v, is_causal=is_causal, params=PARAMS, backend="triton")
        torch.testing.assert_close(out / v, torch.ones_like(out), rtol=0, atol=tolerance)
