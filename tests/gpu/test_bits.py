"""To the last bit: the same seed gives the same results, and nothing after t reaches an output up to t."""

from __future__ import annotations

import pytest
import torch

from hyperattn_core import hyper_attention
from tests.gpu.gpu_cases import CHOICES, DTYPES, bits, normal, qkv, small_params


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_seed_gives_the_same_results(dtype: torch.dtype, sampling: str, pairing: str, is_causal: bool) -> None:
    inputs = [x.requires_grad_() for x in qkv(2500, heads=4, kv_heads=2, dtype=dtype)]
    results = []
    for _ in range(3):
        out, lse = hyper_attention(
            *inputs, params=small_params(sampling, pairing), seed=3, is_causal=is_causal, enable_gqa=True,
            return_lse=True, backend="triton",
        )  # fmt: skip
        results.append((out, lse, *torch.autograd.grad(out.float().sum() + lse.sum(), inputs)))
    for again in results[1:]:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(results[0], again, strict=True))


@pytest.mark.parametrize("sampling", ["iid", "stratified"])
@pytest.mark.parametrize(("pairing", "changed"), [("rank", "kv"), ("bucket", "kv"), ("bucket", "qkv")])
@pytest.mark.parametrize("last", [0, 299, 300, 700, 1400])
def test_nothing_after_t_reaches_an_output_up_to_t(sampling: str, pairing: str, changed: str, last: int) -> None:
    tensors = dict(zip("qkv", qkv(1501, heads=4, kv_heads=2), strict=True))
    others = {name: x.clone() for name, x in tensors.items()}
    for index, name in enumerate(changed):
        rest = others[name][:, :, last + 1 :]
        rest.copy_(3.0 * normal(*rest.shape, seed=50 + index))
    params = small_params(sampling, pairing, block_size=64, min_seq_len=150)
    outs = [
        hyper_attention(*x.values(), params=params, is_causal=True, enable_gqa=True, return_lse=True, backend="triton")
        for x in (tensors, others)
    ]
    for one, other in zip(*outs, strict=True):
        assert torch.equal(bits(one[:, :, : last + 1]), bits(other[:, :, : last + 1]))
    assert not torch.equal(outs[0][0], outs[1][0])
