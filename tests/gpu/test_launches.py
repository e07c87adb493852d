"""Launches of the Triton backend: few kernels, no wait for the device, CUDA graphs, torch.compile, opcheck."""

from __future__ import annotations

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

    def call() -> object:
        return hyper_attention(*inputs, params=params, is_causal=is_causal, enable_gqa=True, backend="triton")

    call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    call()


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
