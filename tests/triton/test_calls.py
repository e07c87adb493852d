"""Operators, compilation, and which backend takes a call."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import triton
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from hyperattn_core import HyperAttentionParams, backends, hyper_attention, make_plan
from hyperattn_core.backends import BackendFallback, backend_for
from hyperattn_core.functional import attention_stages
from hyperattn_core.planning.packed import Settings
from hyperattn_core.triton_backend import support
from tests.helpers.slow import slow
from tests.helpers.triton_inputs import Call, normal

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
both_masks = pytest.mark.parametrize("is_causal", [*slow(False), True])


def small_call(is_causal: bool, sampling: str = "truncated") -> Call:
    """A call of the fewest tokens that have levels."""
    sizes = {"block_size": 8, "sample_size": 8, "min_seq_len": 17}
    return Call(queries=40, is_causal=is_causal, params={**sizes, "sampling": sampling})


class TestOperators:
    """Requirements of torch.compile on a custom operator."""

    @pytest.mark.slow
    @pytest.mark.parametrize("is_causal", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_opcheck(self, is_causal: bool) -> None:
        call = small_call(is_causal)
        q, k, v = (x.requires_grad_() for x in call.inputs())
        ops = torch.ops.hyperattn
        settings = Settings(call.parameters(), is_causal, 16).to_list()
        drawn = (q.detach(), k.detach(), 5, "", "triton", settings, 0.25)
        torch.library.opcheck(ops.plan, drawn)
        rest = (*ops.plan(*drawn), "triton", settings, 0.25)
        torch.library.opcheck(ops.attend, (q, k, v, *rest))
        out, lse = (x.detach() for x in ops.attend(q, k, v, *rest))
        for grad_lse in (None, normal(*lse.shape, seed=8)):
            arguments = (normal(*out.shape, seed=7), grad_lse, q.detach(), k.detach(), v.detach(), out, lse)
            torch.library.opcheck(ops.attend_backward, (*arguments, *rest))

    @both_masks
    def test_compiled_as_one_graph(self, is_causal: bool) -> None:
        call = small_call(is_causal)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = hyper_attention(
                q, k, v, is_causal=is_causal, params=call.parameters(), seed=5, backend="triton", return_lse=True
            )
            return out[0].square().sum() + out[1].sum()

        qkv = [x.requires_grad_() for x in call.inputs()]
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        result, expected = compiled(*qkv), run(*qkv)
        assert torch.equal(result, expected)
        for x, y in zip(torch.autograd.grad(result, qkv), torch.autograd.grad(expected, qkv), strict=True):
            assert torch.equal(x, y)

    @pytest.mark.slow
    @pytest.mark.parametrize("is_causal", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_lengths_share_a_graph(self, is_causal: bool) -> None:
        call = small_call(is_causal)

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return hyper_attention(q, k, v, is_causal=is_causal, params=call.parameters(), backend="triton")

        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(run, fullgraph=True, backend=counter)
        for queries in (40, 44, 70, 16):
            q, k, v = (normal(1, 2, queries, 16, seed=i) for i in range(3))
            assert torch.equal(compiled(q, k, v), run(q, k, v))
        assert counter.frame_count == 2

    def test_vmap_and_a_second_derivative(self) -> None:
        call = small_call(False)
        q, k, v = call.inputs()

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return hyper_attention(q, k, v, params=call.parameters(), backend="triton")

        assert torch.equal(torch.vmap(run)(*(x[None] for x in (q, k, v))), run(q, k, v)[None])
        (gradient,) = torch.autograd.grad(run(q.requires_grad_(), k, v).sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            gradient.sum().backward()

    @pytest.mark.slow
    def test_checkpointed(self) -> None:
        call = small_call(True)
        qkv = [x.requires_grad_() for x in call.inputs()]

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return hyper_attention(q, k, v, is_causal=True, params=call.parameters(), backend="triton")

        again = checkpoint(run, *qkv, use_reentrant=False)
        assert torch.equal(again, run(*qkv))
        for x, y in zip(torch.autograd.grad(again.sum(), qkv), torch.autograd.grad(run(*qkv).sum(), qkv), strict=True):
            assert torch.equal(x, y)


@both_masks
@pytest.mark.parametrize("sampling", ["stratified", "truncated"])
def test_stages_give_the_output(sampling: str, is_causal: bool) -> None:
    call = small_call(is_causal, sampling)
    q, k, v = call.inputs()
    stages = attention_stages(q, k, v, is_causal=is_causal, params=call.parameters(), seed=2, backend="triton")
    expected = hyper_attention(q, k, v, is_causal=is_causal, params=call.parameters(), seed=2, backend="triton")
    drawn = {"stratified": ["sort", "sample"], "truncated": ["probe", "sort", "sample", "mean_keys"]}
    names = ["hash", *drawn[sampling], "attend"]
    assert list(stages) == ([*names, "leaves", "merge"] if is_causal else names)
    for _ in range(2):
        for run in stages.values():
            result = run()
        assert torch.equal(result, expected)


@pytest.mark.parametrize("seed", [2**70, -5])
def test_a_seed_of_any_size(seed: int) -> None:
    call = small_call(True)
    q, k, v = call.inputs()
    options = {"is_causal": True, "params": call.parameters(), "seed": seed}
    torch.testing.assert_close(
        hyper_attention(q, k, v, backend="triton", **options), hyper_attention(q, k, v, backend="torch", **options)
    )


class TestBadCalls:
    """One clear error that names what to do instead."""

    def test_cpu_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(support, "interpreted", lambda: False)
        q, k, v = Call().inputs()
        for call in (lambda: hyper_attention(q, k, v, backend="triton"), lambda: make_plan(q, k, backend="triton")):
            with pytest.raises(ValueError, match=r"need tensors on a CUDA GPU, got cpu; use backend='torch'"):
                call()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (Call(dtype=torch.float64), "take float16, bfloat16, float32, got float64"),
            (Call(queries=60, dim=257), "take head sizes up to 256, got 257"),
            (Call(queries=60, value_dim=300), "take head sizes up to 256, got 300"),
            (Call(params={"num_projections": 11}), "take num_projections up to 10, got num_projections=11"),
        ],
    )
    def test_what_the_kernels_lack(self, call: Call, message: str) -> None:
        q, k, v = call.inputs()
        with pytest.raises(ValueError, match=message) as error:
            hyper_attention(q, k, v, params=call.parameters(), backend="triton")
        assert "use backend='torch'" in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_tile_that_no_program_holds(self) -> None:
        q, k, v = Call().inputs()
        plan = make_plan(q, k, Call().parameters(), tile_size=129, backend="torch")
        for call in (
            lambda: hyper_attention(q, k, v, plan=plan, backend="triton"),
            lambda: make_plan(q, k, Call().parameters(), tile_size=129, backend="triton"),
        ):
            with pytest.raises(ValueError, match=r"tile_size up to 128, got tile_size=129; use backend='torch'"):
                call()

    def test_many_projections_in_a_plan_that_is_given(self) -> None:
        call = Call(params={"num_projections": 12})
        q, k, v = call.inputs()
        result = hyper_attention(q, k, v, plan=call.plan(), backend="triton")
        torch.testing.assert_close(result, hyper_attention(q, k, v, plan=call.plan(), backend="torch"))

    def test_triton_that_does_not_import(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(support, "import_error", lambda: "Triton does not import (no such file)")
        q, k, v = Call().inputs()
        with pytest.raises(RuntimeError, match=r"Triton does not import .*; use backend='torch'"):
            hyper_attention(q, k, v, backend="triton")

    @pytest.mark.parametrize(("backend", "near"), [("tritn", "triton"), ("trtion", "triton")])
    def test_a_name_with_a_typing_error(self, backend: str, near: str) -> None:
        q, k, v = Call().inputs()
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            hyper_attention(q, k, v, backend=backend)
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            make_plan(q, k, backend=backend)

    def test_a_plan_has_no_oracle(self) -> None:
        q, k, _ = Call().inputs()
        with pytest.raises(ValueError, match="must be one of auto, torch, triton, got 'oracle'"):
            make_plan(q, k, backend="oracle")

    def test_a_plan_of_another_shape(self) -> None:
        q, k, v = Call(queries=160).inputs()
        with pytest.raises(ValueError, match="plan was made for"):
            hyper_attention(q, k, v, plan=Call().plan("triton"), backend="triton")


class TestChoice:
    """The choice of "auto", and its warning."""

    @pytest.fixture(autouse=True)
    def a_new_gpu(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        backends._say_once.cache_clear()
        yield
        backends._say_once.cache_clear()

    def test_the_cpu_goes_to_pytorch_without_a_word(self) -> None:
        assert backend_for("cpu", torch.float32, 64, 64) == ("torch", "")
        q, k, v = Call().inputs()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            auto = hyper_attention(q, k, v, params=Call().parameters())
        assert torch.equal(auto, hyper_attention(q, k, v, params=Call().parameters(), backend="torch"))

    def test_a_gpu_goes_to_the_kernels(self) -> None:
        assert backend_for("cuda", torch.bfloat16, 64, 64) == ("triton", "")

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ((torch.float64, 64, 64), "float64"),
            ((torch.bfloat16, 300, 64), "up to 256"),
            ((torch.bfloat16, 64, 64, HyperAttentionParams(num_projections=12)), "num_projections=12"),
        ],
    )
    def test_what_the_kernels_lack_goes_to_pytorch(self, arguments: tuple, reason: str) -> None:
        backend, why = backend_for("cuda", *arguments)
        assert backend == "torch"
        assert reason in why

    def test_an_old_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        backend, why = backend_for("cuda", torch.float16, 64, 64)
        assert backend == "torch"
        assert "7.5" in why

    def test_the_capability_is_that_of_the_tensors_own_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        capabilities = {torch.device("cuda", 0): (9, 0), torch.device("cuda", 1): (7, 5)}
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device])
        assert support.why_unsupported(torch.device("cuda", 0), torch.bfloat16, 64, 64, None) is None
        assert "7.5" in str(support.why_unsupported(torch.device("cuda", 1), torch.bfloat16, 64, 64, None))

    def test_a_gpu_of_another_maker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.version, "hip", "6.2.41133")
        backend, why = backend_for("cuda", torch.bfloat16, 64, 64)
        assert backend == "torch"
        assert "NVIDIA GPUs, and this PyTorch is built for ROCm 6.2.41133" in why

    @pytest.mark.parametrize(
        ("version", "serves"),
        [
            ("3.1.0", False),
            ("3.4.0+git1234", False),
            ("3.5.1", False),
            ("3.6.0", True),
            ("3.10.0", True),
            ("4.0", True),
        ],
    )
    def test_an_old_triton(self, version: str, serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton, "__version__", version)
        support.import_error.cache_clear()
        try:
            backend, why = backend_for("cuda", torch.bfloat16, 64, 64)
            assert backend == ("triton" if serves else "torch")
            if serves:
                return
            assert why == f"the Triton kernels need Triton 3.6 or newer, this is {version}"
            q, k, v = Call().inputs()
            with pytest.raises(RuntimeError, match=r"need Triton 3\.6 or newer, .*; use backend='torch'"):
                hyper_attention(q, k, v, backend="triton")
        finally:
            support.import_error.cache_clear()

    def test_what_is_installed_for_a_gpu_is_new_enough(self) -> None:
        extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
        assert "triton>={}.{}".format(*support.MIN_TRITON) in extras["gpu"]

    def test_no_triton(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(support, "import_error", lambda: "Triton does not import (x)")
        assert backend_for("cuda", torch.float16, 64, 64) == ("torch", "Triton does not import (x)")

    def test_a_reason_is_said_once(self) -> None:
        class OnAGpu:
            device, dtype, shape = torch.device("cuda"), torch.float64, (1, 1, 10, 64)

        with pytest.warns(BackendFallback, match="runs in PyTorch: .* got float64"):
            assert backends.chosen_backend(OnAGpu(), 64, None, "auto") == "torch"  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backends.chosen_backend(OnAGpu(), 64, None, "auto") == "torch"  # type: ignore[arg-type]
