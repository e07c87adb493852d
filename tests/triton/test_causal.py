"""Strictly causal to the last bit in q too, where a product rounds a row alike wherever it stands in its tile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperattn_core import hyper_attention
from hyperattn_core.triton_backend.kernels import attend, common
from tests.helpers.triton_inputs import Call, normal

CALL = Call(queries=83, is_causal=True, params={"num_projections": 3, "min_seq_len": 20})


def run(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, plan and all."""
    return hyper_attention(
        q, k, v, is_causal=True, params=call.parameters(), seed=3, return_lse=True, backend="triton"
    )  # fmt: skip


@triton.jit
def product_by_elements(a: Any, b: Any, acc: Any) -> Any:
    """acc + a b, every element by itself."""
    return acc + tl.sum(a.to(tl.float32)[:, :, None] * b.to(tl.float32)[None, :, :], 1)


@pytest.fixture
def rows_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's product of matrices rounds a row by its place among the others; a tensor core does not, nor does this."""
    for module in (attend, common):
        monkeypatch.setattr(module, "add_product", product_by_elements)


@pytest.mark.usefixtures("rows_by_themselves")
@pytest.mark.parametrize("how", ["alike", "huge"])
def test_later_queries_keys_and_values_change_no_bit(how: str) -> None:
    tensors = CALL.inputs()
    before = run(CALL, *tensors)
    for t in (47, 61):
        changed = []
        for x in tensors:
            later = x[:, :, t + 1 :]
            # Rows that are all alike crowd one bucket.
            other = x[:, :, :1].expand_as(later) if how == "alike" else 1000 * normal(*later.shape, seed=7)
            changed.append(torch.cat([x[:, :, : t + 1], other], dim=2))
        after = run(CALL, *changed)
        for new, old in zip(after, before, strict=True):
            assert torch.equal(new[:, :, : t + 1], old[:, :, : t + 1])
            assert not torch.equal(new[:, :, t + 1 :], old[:, :, t + 1 :])


def test_outputs_up_to_t_have_no_gradient_in_what_comes_after() -> None:
    t = 50
    inputs = [x.requires_grad_() for x in CALL.inputs()]
    out, lse = run(CALL, *inputs)
    for gradient in torch.autograd.grad(out[:, :, : t + 1].square().sum() + lse[:, :, : t + 1].sum(), inputs):
        assert gradient[:, :, : t + 1].any()
        assert not gradient[:, :, t + 1 :].any()
