"""Default device and dtype are the caller's affair: with any of them, a call on CPU tensors gives the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperattn_core import exact_attention, hyper_attention, make_plan, oracle_attention
from hyperattn_core.functional import attention_stages
from hyperattn_core.planning import draws
from tests.helpers.core_inputs import CHOICES, Tensors, bits, qkv, small_params
from tests.helpers.slow import slow


@contextlib.contextmanager
def set_for_all() -> Iterator[None]:
    """A default device as torch.set_default_device leaves it."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {"set_default_device": set_for_all, "with": lambda: torch.device("meta")}


def results(inputs: Tensors, sampling: str, pairing: str, is_causal: bool) -> list[Tensor]:
    """Tensors of a plan and results of every call at it, with gradients; nothing drawn before is used."""
    draws.projections.cache_clear()
    q, k, v = (x.requires_grad_() for x in inputs)
    options: dict[str, Any] = {"is_causal": is_causal, "enable_gqa": True}
    params = small_params(sampling, pairing, min_seq_len=40)
    plan = make_plan(q, k, params, 3, is_causal=is_causal)
    found = [x for level in plan.levels for x in vars(level).values() if isinstance(x, Tensor)]
    for out, lse in (
        hyper_attention(q, k, v, params=params, seed=3, return_lse=True, **options),
        hyper_attention(q, k, v, plan=plan, return_lse=True, **options),
        hyper_attention(q, k, v, plan=plan, return_lse=True, backend="oracle", **options),
        exact_attention(q, k, v, return_lse=True, **options),
        oracle_attention(q, k, v, plan),
    ):
        found += [out, lse, *torch.autograd.grad(out.sum() + lse.sum(), (q, k, v))]
    stages = attention_stages(q, k, v, params=params, seed=3, **options)
    return [*found, [stage() for stage in stages.values()][-1]]  # type: ignore[list-item]


@pytest.mark.parametrize("default", list(DEFAULTS.values()), ids=list(DEFAULTS))
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_results_do_not_depend_on_the_default_device(
    sampling: str, pairing: str, is_causal: bool, default: Callable[[], contextlib.AbstractContextManager[Any]]
) -> None:
    inputs = qkv(queries=150, heads=2, kv_heads=1)
    expected = results(inputs, sampling, pairing, is_causal)
    with default():
        found = results(inputs, sampling, pairing, is_causal)
    assert {x.device.type for x in found} == {"cpu"}
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(bits(one.detach()), bits(other.detach()))


@pytest.mark.parametrize("default", [torch.float64, *slow(torch.bfloat16)], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_results_do_not_depend_on_the_default_dtype(
    sampling: str, pairing: str, dtype: torch.dtype, is_causal: bool, default: torch.dtype
) -> None:
    inputs = qkv(queries=150, heads=2, kv_heads=1, dtype=dtype)
    expected = results(inputs, sampling, pairing, is_causal)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = results(inputs, sampling, pairing, is_causal)
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(bits(one.detach()), bits(other.detach()))
