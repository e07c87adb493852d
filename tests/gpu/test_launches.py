"""Launches of the Triton backend: few kernels, no wait for the device, CUDA graphs, torch.compile, opcheck."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from hyperattn_core import hyper_attention
from tests.gpu.gpu_cases import normal, qkv, small_params

MOST_KERNELS = 6


@pytest.fixture
def sync_is_an_error() -> Iterator[None]:
    """Inside the test, after its `torch.cuda.set_sync_debug_mode("error")`, a synchronising call raises."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def kernels_of(call: Any) -> list[str]:
    """The names of the kernels that a call launches."""
    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    on_device = [event.name for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return [name for name in on_device if not name.startswith(("Memcpy", "Memset"))]


@pytest.mark.parametrize("pairing", ["rank", "bucket"])
def test_a_forward_pass_at_4096_is_at_most_six_kernels(pairing: str) -> None:
    inputs = qkv(4096, heads=12)
    params = small_params(pairing=pairing, block_size=256, sample_size=256, num_projections=7, min_seq_len=1024)
    names = kernels_of(lambda: hyper_attention(*inputs, params=params, backend="triton"))
    assert 1 <= len(names) <= MOST_KERNELS, names


@pytest.mark.usefixtures("sync_is_an_error")
@pytest.mark.parametrize("pairing", ["rank", "bucket"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_call_never_waits_for_the_device(is_causal: bool, pairing: str) -> None:
    inputs = qkv(3001, heads=4, kv_heads=2)
    params = small_params(pairing=pairing)

    def call(seed: int) -> object:
        return hyper_attention(
            *inputs, params=params, seed=seed, is_causal=is_causal, enable_gqa=True, backend="triton"
        )

    call(0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for seed in (0, 1, 2):
        call(seed)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_cuda_graph_gives_the_same_output_for_new_inputs(is_causal: bool) -> None:
    inputs = qkv(3001)
    params = small_params()

    def call() -> torch.Tensor:
        return hyper_attention(*inputs, params=params, is_causal=is_causal, backend="triton")

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            first = call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    graph.replay()
    assert torch.equal(captured, first)
    for index, x in enumerate(inputs):
        x.copy_(normal(*x.shape, seed=70 + index))
    graph.replay()
    assert torch.equal(captured, call())
    assert not torch.equal(captured, first)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_graph_draws_for_itself(is_causal: bool) -> None:
    """A seed that no call has had before; and hundreds of others after it, whose tables take the place of kept ones."""
    inputs = qkv(1500)
    params = small_params()
    call = functools.partial(hyper_attention, *inputs, params=params, is_causal=is_causal, backend="triton")
    call(seed=0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(seed=1)
    for seed in range(2, 300):
        call(seed=seed)
    graph.replay()
    assert torch.equal(captured, call(seed=1))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("sampling", ["stratified", "probed"])
def test_a_captured_backward_pass_gives_the_same_gradients(sampling: str, is_causal: bool) -> None:
    inputs = tuple(x.requires_grad_() for x in qkv(1500, heads=4, kv_heads=2))
    params = small_params(sampling)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return hyper_attention(q, k, v, params=params, is_causal=is_causal, enable_gqa=True, backend="triton")

    captured = torch.cuda.make_graphed_callables(call, inputs)
    for seed in (0, 7):  # other inputs than those that it was captured with, the second time
        tensors = tuple(normal(*x.shape, seed=seed + i, dtype=x.dtype).requires_grad_() for i, x in enumerate(inputs))
        weight = normal(1, 4, 1500, 64, seed=9, dtype=torch.bfloat16)
        found, expected = captured(*tensors), call(*tensors)
        assert torch.equal(found, expected)
        for mine, theirs in zip(
            torch.autograd.grad(found, tensors, weight), torch.autograd.grad(expected, tensors, weight), strict=True
        ):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("compiler", "is_causal"),
    [("aot_eager", False), ("aot_eager", True), pytest.param("inductor", False, marks=pytest.mark.slow)],
)
def test_compiled_in_one_graph_it_gives_the_same_output(compiler: str, is_causal: bool) -> None:
    inputs = [x.requires_grad_() for x in qkv(700)]
    params = small_params()

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        return hyper_attention(*tensors, params=params, is_causal=is_causal, backend="triton")

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend=compiler)
    one, other = call(*inputs), compiled(*inputs)
    assert torch.equal(one, other)
    weight = normal(*one.shape, seed=9, dtype=one.dtype)
    for mine, theirs in zip(
        torch.autograd.grad(other, inputs, weight), torch.autograd.grad(one, inputs, weight), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


class Recorder(TorchDispatchMode):
    """Keeps the first call of each operator of this library, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "hyperattn" and str(func) not in self.calls:
            kept = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.detach().clone(), (args, kwargs or {}))
            self.calls[str(func)] = (func, *kept)
        return func(*args, **(kwargs or {}))


def test_operators_are_sound() -> None:
    recorder = Recorder()
    with recorder:
        for is_causal in (False, True):
            inputs = [x.requires_grad_() for x in qkv(301)]
            out, lse = hyper_attention(
                *inputs, params=small_params(), is_causal=is_causal, return_lse=True, backend="triton"
            )
            torch.autograd.grad(out.float().sum() + lse.sum(), inputs)
    assert recorder.calls, "no call went through an operator under torch.ops.hyperattn"
    for func, args, kwargs in recorder.calls.values():
        torch.library.opcheck(func, args, kwargs)
