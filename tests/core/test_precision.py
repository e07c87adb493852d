"""torch.set_float32_matmul_precision rounds what a product is made of, and neither lse nor weights nor hash codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan
from hyperattn_core.planning.lsh import bucket_codes
from hyperattn_core.precision import rounds_products
from tests.helpers.core_inputs import normal, qkv

PARAMS = HyperAttentionParams(block_size=32, sample_size=24, min_seq_len=100)
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")


class RoundedProducts(TorchDispatchMode):
    """Matrix products of operands in bfloat16, as some processors have them: so their operands are rounded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in _PRODUCTS:
            added = args[: len(args) - 2]
            args = (*added, *(self.rounded(x) for x in args[-2:]))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(x: torch.Tensor) -> torch.Tensor:
        """x as a product takes it."""
        return x.bfloat16().float() if x.dtype == torch.float32 else x


@pytest.fixture
def medium() -> Iterator[None]:
    """The lowest precision, and products that are as coarse as it allows."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with RoundedProducts():
        yield
    torch.set_float32_matmul_precision(before)


def test_the_setting_is_seen() -> None:
    cpu, before = torch.device("cpu"), torch.get_float32_matmul_precision()
    try:
        for setting, rounds in (("highest", False), ("high", True), ("medium", True), ("highest", False)):
            torch.set_float32_matmul_precision(setting)
            assert rounds_products(cpu, torch.float32) is rounds
            assert not rounds_products(cpu, torch.float64)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("medium")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [None, 40.0])
def test_log_sum_exp_and_weights_keep_their_digits(is_causal: bool, scale: float | None) -> None:
    # All logits are 0, so that lse is the logarithm of what the weights add up to, which are no powers of two. With 40
    # the bound on logits is too large to go without a row's maximum.
    q, k, v = qkv(queries=900, dim=16, dtype=torch.float32)
    tensors = [torch.zeros_like(q), k, torch.ones_like(v)]
    q, k, v = (x.requires_grad_() for x in tensors)
    out, lse = hyper_attention(
        q, k, v, is_causal=is_causal, params=PARAMS, return_lse=True, scale=scale, backend="torch"
    )
    plan = make_plan(q, k, PARAMS, is_causal=is_causal)
    expected = hyper_attention(q, k, v, plan=plan, is_causal=is_causal, return_lse=True, scale=scale, backend="oracle")
    torch.testing.assert_close(lse, expected[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0.005, atol=0)
    # Each query's weights are multiplied by 1 and summed: as many queries.
    (dv,) = torch.autograd.grad(out, v, torch.ones_like(out))
    assert dv[..., 0].sum().item() == pytest.approx(900, rel=0.005)


@pytest.mark.usefixtures("medium")
def test_shifts_keep_their_digits_where_logits_are_large() -> None:
    # Whole numbers of a few bits make products exact; lse has more bits than bfloat16 has.
    q = torch.full((1, 1, 900, 16), 8.0)
    k = torch.full((1, 1, 900, 16), 9.0)
    v = torch.ones(1, 1, 900, 16, requires_grad=True)
    out = hyper_attention(q, k, v, params=PARAMS, backend="torch")
    (dv,) = torch.autograd.grad(out, v, torch.ones_like(out))
    assert dv[..., 0].sum().item() == pytest.approx(900, rel=0.005)


def test_hash_codes_do_not_depend_on_the_setting(request: pytest.FixtureRequest) -> None:
    x, directions = normal(4096, 64, dtype=torch.float32), normal(64, 7, seed=1)
    before = bucket_codes(x, directions)
    request.getfixturevalue("medium")
    assert torch.equal(bucket_codes(x, directions), before)
