"""torch.compile and torch.export take a call as a whole, for all lengths and seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan
from hyperattn_core.planning.packed import Settings
from tests.helpers.core_inputs import normal, qkv

PARAMS = HyperAttentionParams(8, 8, 3, min_seq_len=16)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def hyper(q: Tensor, k: Tensor, v: Tensor, seed: int = 1, *, is_causal: bool = False) -> Tensor:
    return hyper_attention(q.cos(), k, v, params=PARAMS, seed=seed, is_causal=is_causal).sin()


def causal(q: Tensor, k: Tensor, v: Tensor, seed: int = 1) -> Tensor:
    return hyper(q, k, v, seed, is_causal=True)


def planned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return hyper_attention(q, k, v, plan=make_plan(q, k, PARAMS, 1))


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return exact_attention(q, k, v, is_causal=True)  # type: ignore[return-value]


def under_autocast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return hyper(q, k, v)


def with_gradients(call: Callable[..., Tensor], *inputs: Any) -> list[Tensor]:
    """The output and its gradients."""
    tensors = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    out = call(*tensors, *inputs[3:])
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("call", [hyper, causal, planned, exact, under_autocast])
def test_one_graph_forward_and_backward(call: Callable[..., Tensor]) -> None:
    inputs = qkv(queries=40, heads=2, dim=9, dtype=torch.float32)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same(with_gradients(compiled, *inputs), with_gradients(call, *inputs))


def test_a_plan_that_is_given() -> None:
    q, k, v = qkv(queries=40)
    plan = make_plan(q, k, PARAMS)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return hyper_attention(q, k, v, plan=plan)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same(with_gradients(compiled, q, k, v), with_gradients(call, q, k, v))


@pytest.mark.parametrize("call", [hyper, causal])
def test_lengths_and_seeds_share_a_graph(call: Callable[..., Tensor]) -> None:
    """The first is compiled for its own sizes, the second for all; lengths that are exact attention are among them."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for length, seed in ((40, 1), (80, 2), (300, 3), (33, -4), (9, 5), (16, 2**40)):
        inputs = qkv(queries=length, heads=2, dtype=torch.float32)
        assert_same(with_gradients(compiled, *inputs, seed), with_gradients(call, *inputs, seed))
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.skipif(" " in torch.__file__, reason="inductor's linker takes no folder with a space in its name")
def test_inductor() -> None:
    compiled = torch.compile(causal, fullgraph=True)
    for length in (40, 80, 300):
        inputs = qkv(queries=length, heads=2, dtype=torch.float32)
        assert_same(with_gradients(compiled, *inputs), with_gradients(causal, *inputs))


class Layer(torch.nn.Module):
    """Attention over a projection, so that there is a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.projection(x) * factor for factor in (1.0, 0.5, 2.0))
        return hyper_attention(q, k, v, params=PARAMS, is_causal=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic: bool, strict: bool) -> None:
    layer = Layer()
    x = normal(1, 2, 40, 8, dtype=torch.float32)
    shapes = ({2: torch.export.Dim("seq_len", min=2, max=4096)},) if dynamic else None
    exported = torch.export.export(layer, (x,), dynamic_shapes=shapes, strict=strict).module()
    for length in (40, 300, 7) if dynamic else (40,):
        x = normal(1, 2, length, 8, dtype=torch.float32)
        assert torch.equal(exported(x), layer(x))
    for module in (exported, layer):
        module(x).square().sum().backward()
    assert torch.equal(exported.get_parameter("projection.weight").grad, layer.projection.weight.grad)


def test_vmap_within_a_graph() -> None:
    stacked = [x.unsqueeze(0).repeat(2, 1, 1, 1, 1) for x in qkv(queries=40)]
    mapped = torch.vmap(causal)
    assert torch.equal(torch.compile(mapped, fullgraph=True, backend="aot_eager")(*stacked), mapped(*stacked))


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("call", [causal, exact])
def test_a_derivative_of_torch_func_within_a_graph_is_refused(call: Callable[..., Tensor], fullgraph: bool) -> None:
    for gradient in (
        torch.func.grad(lambda *x: call(*x).sum()),
        lambda q, k, v: torch.func.jvp(lambda x: call(x, k, v), (q,), (q,)),
    ):
        with pytest.raises(Exception, match=r"take no derivative of torch.func: use torch.autograd.grad or backward"):
            torch.compile(gradient, fullgraph=fullgraph, backend="eager")(*qkv(queries=40))


@pytest.mark.parametrize("name", ["plan", "attend", "attend_backward"])
@pytest.mark.parametrize("length", [10, 40])
def test_operators_are_sound(name: str, length: int) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(queries=length, heads=2, kv_heads=1, dim=9, value_dim=5))
    ops = torch.ops.hyperattn
    settings = Settings(PARAMS, True, 64).to_list()
    arguments: dict[str, tuple[Any, ...]] = {"plan": (q.detach(), k.detach(), 3, "", "torch", settings, 0.25)}
    rest = (*ops.plan(*arguments["plan"]), "torch", settings, 0.25)
    arguments["attend"] = (q, k, v, *rest)
    tensors = [x.detach() for x in (q, k, v, *ops.attend(*arguments["attend"]))]
    grad_out, grad_lse = (normal(*x.shape, seed=7) for x in tensors[3:])
    arguments["attend_backward"] = (grad_out, grad_lse, *tensors, *rest)
    torch.library.opcheck(getattr(ops, name), arguments[name])
