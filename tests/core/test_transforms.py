"""Transforms of torch.func: grad, vjp, jacrev and vmap give what plain calls give; forward mode is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan
from tests.helpers.core_inputs import normal, qkv

PARAMS = HyperAttentionParams(8, 8, 3, min_seq_len=16)


def hyper(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return hyper_attention(q, k, v, params=PARAMS, seed=1)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return hyper_attention(q, k, v, params=PARAMS, seed=1, is_causal=True)


def planned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return hyper_attention(q, k, v, plan=make_plan(q, k, PARAMS, 1))


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return exact_attention(q, k, v, is_causal=True)  # type: ignore[return-value]


CALLS = [hyper, causal, planned, exact]
every_call = pytest.mark.parametrize("call", CALLS)


def loss_of(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *inputs: call(*inputs).square().sum()


def plain_gradients(call: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the loss by torch.autograd."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(loss_of(call)(*leaves), leaves)


def batches(count: int) -> list[Tensor]:
    """As many q, k and v, stacked in front."""
    return [normal(count, 1, 2, 40, 8, seed=i) for i in range(3)]


def all_equal(found: Any, expected: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@every_call
def test_grad_and_vjp(call: Callable[..., Tensor]) -> None:
    inputs = qkv(queries=40, heads=2)
    expected = plain_gradients(call, *inputs)
    assert all_equal(torch.func.grad(loss_of(call), argnums=(0, 1, 2))(*inputs), expected)
    out, pullback = torch.func.vjp(call, *inputs)
    assert all_equal(pullback(2 * out), expected)


@every_call
def test_vmap_gives_each_entry_what_it_gives_by_itself(call: Callable[..., Tensor]) -> None:
    q, k, v = batches(3)
    expected = torch.stack([call(*x) for x in zip(q, k, v, strict=True)])
    assert torch.equal(torch.vmap(call)(q, k, v), expected)
    moved = torch.vmap(call, in_dims=(1, -1, 0))(q.movedim(0, 1), k.movedim(0, -1), v)
    assert torch.equal(moved, expected)
    shared = torch.vmap(call, in_dims=(None, 0, 0))(q[0], k, v)
    assert torch.equal(shared, torch.stack([call(q[0], *x) for x in zip(k, v, strict=True)]))


@every_call
def test_gradients_per_sample_and_through_vmap(call: Callable[..., Tensor]) -> None:
    inputs = batches(2)
    expected = [
        torch.stack(x) for x in zip(*(plain_gradients(call, *x) for x in zip(*inputs, strict=True)), strict=True)
    ]
    per_sample = torch.vmap(torch.func.grad(loss_of(call), argnums=(0, 1, 2)))(*inputs)
    assert all_equal(per_sample, expected)
    mapped = torch.func.grad(lambda *x: torch.vmap(loss_of(call))(*x).sum(), argnums=(0, 1, 2))(*inputs)
    assert all_equal(mapped, expected)
    leaves = [x.requires_grad_() for x in inputs]
    assert all_equal(torch.autograd.grad(torch.vmap(loss_of(call))(*leaves).sum(), leaves), expected)


@every_call
def test_jacrev(call: Callable[..., Tensor]) -> None:
    q, k, v = qkv(queries=40)
    rows = torch.func.jacrev(lambda x: call(x, k, v)[0, 0, -1, :3])(q)
    leaf = q.requires_grad_()
    out = call(leaf, k, v)
    for i in range(3):
        (expected,) = torch.autograd.grad(out[0, 0, -1, i], leaf, retain_graph=True)
        torch.testing.assert_close(rows[i], expected)


def dual_numbers(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> None:
    with forward_ad.dual_level():
        call(q, k, forward_ad.make_dual(v, v))


FORWARD_MODES = {
    "jvp": lambda call, q, k, v: torch.func.jvp(lambda x: call(x, k, v), (q,), (q,)),
    "jvp, inputs that want a gradient": lambda call, q, k, v: torch.func.jvp(
        lambda x, leaf=q.clone().requires_grad_(): call(leaf, x, v), (k,), (k,)
    ),
    "jacfwd": lambda call, q, k, v: torch.func.jacfwd(lambda x: call(x, k, v))(q),
    "hessian": lambda call, q, k, v: torch.func.hessian(lambda x: call(x, k, v).sum())(q),
    "dual numbers": dual_numbers,
}


@every_call
@pytest.mark.parametrize("mode", FORWARD_MODES)
def test_forward_mode_is_refused_and_names_reverse_mode(call: Callable[..., Tensor], mode: str) -> None:
    with pytest.raises(RuntimeError, match=r"no forward-mode derivative .* torch.func.vjp or jacrev") as caught:
        FORWARD_MODES[mode](call, *qkv(queries=40))
    assert "\n" not in str(caught.value)


@every_call
def test_a_level_of_dual_numbers_does_no_harm_to_others(call: Callable[..., Tensor]) -> None:
    inputs = qkv(queries=40)
    expected = plain_gradients(call, *inputs)
    with forward_ad.dual_level():
        assert all_equal(plain_gradients(call, *inputs), expected)


@every_call
def test_a_second_derivative_is_refused(call: Callable[..., Tensor]) -> None:
    q, k, v = qkv(queries=40)
    gradient = torch.func.grad(lambda x: call(x, k, v).sum())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda x: gradient(x).sum())(q)


def test_the_oracle_is_not_for_vmap() -> None:
    with pytest.raises(RuntimeError, match="backend='oracle' takes no vmap: use the batch dimension"):
        torch.vmap(lambda *x: hyper_attention(*x, params=PARAMS, backend="oracle"))(*batches(2))
