"""Gradients through the Triton backend against those of the oracle at the same plan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperattn_core import hyper_attention, make_plan, oracle_attention
from tests.gpu.gpu_cases import (
    ALLOWED,
    CHOICES,
    DTYPES,
    doubled,
    heads_inside,
    normal,
    plain_attention,
    qkv,
    small_params,
)
from tests.gpu.gpu_cases import relative_error as error


def check(inputs: list[Tensor], sampling: str, pairing: str, *, is_causal: bool, with_lse: bool = True) -> None:
    """dq, dk and dv err by a small multiple of what plain attention's do in the same precision."""
    inputs = [x.requires_grad_() for x in inputs]
    q, k, v = inputs
    plan = make_plan(q, k, small_params(sampling, pairing), is_causal=is_causal, backend="triton")
    weight = normal(*q.shape[:3], v.shape[3], seed=9)
    lse_weight = normal(*q.shape[:3], seed=10) if with_lse else None

    def ours(*x: Tensor) -> tuple[Tensor, Tensor]:
        return hyper_attention(*x, plan=plan, is_causal=is_causal, enable_gqa=True, return_lse=True, backend="triton")

    def plain(*x: Tensor) -> tuple[Tensor, Tensor]:
        return plain_attention(*x, is_causal=is_causal)

    grads = []
    for tensors, attend in (
        (inputs, ours),
        (doubled(*inputs), lambda *x: oracle_attention(*x, plan)),
        (inputs, plain),
        (doubled(*inputs), plain),
    ):
        out, lse = attend(*tensors)
        loss = (out * weight.to(out.dtype)).sum()
        if lse_weight is not None:
            loss = loss + (lse * lse_weight.to(lse.dtype)).sum()
        grads.append(torch.autograd.grad(loss, tensors))
    for mine, oracle, low, high in zip(*grads, strict=True):
        assert mine.dtype == q.dtype
        assert error(mine, oracle) <= ALLOWED[q.dtype] * error(low, high)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_the_oracles(dtype: torch.dtype, sampling: str, pairing: str, is_causal: bool) -> None:
    check(list(qkv(301, dtype=dtype)), sampling, pairing, is_causal=is_causal)


@pytest.mark.parametrize("is_causal", [False, True])
def test_of_the_output_alone(is_causal: bool) -> None:
    check(list(qkv(301)), "stratified", "bucket", is_causal=is_causal, with_lse=False)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("dim", "value_dim"), [(80, 80), (128, 64)])
def test_grouped_heads_layouts_and_head_sizes(dim: int, value_dim: int, is_causal: bool) -> None:
    tensors = qkv(257, batch=2, heads=4, kv_heads=2, dim=dim, value_dim=value_dim)
    check([heads_inside(x) for x in tensors], "stratified", "bucket", is_causal=is_causal)
