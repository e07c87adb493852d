"""Methods: what ships answers in the right shape with gradients, and what is wrong with a target is one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams, exact_attention
from hyperbench.config import catalog
from hyperbench.config.axes import METHOD_KEYS
from hyperbench.flops import exact_flops
from hyperbench.measure.methods import exact, trivial
from hyperbench.measure.methods import method as registry
from hyperbench.store.schema import Pass
from tests.helpers.brute_force import attention, drawn, gradients
from tests.helpers.made_records import a_point

METHODS = {name: data["_target_"] for name, data in catalog.entries("method").items()}
#: Small enough that HyperAttention is no exact attention.
SMALL = {"block_size": 8, "sample_size": 8, "num_projections": 3, "min_seq_len": 16}
#: Those with a backward pass here; FlexAttention has none on a CPU, and tests of its own.
DIFFERENTIABLE = [name for name in METHODS if name != "flex"]
SHAPES = [(1, 1, 1, 64, 8), (2, 4, 2, 50, 16), (1, 2, 2, 1, 8)]


def filled(method: registry.Method) -> dict[str, Any]:
    """All parameters of a method, small where they are sizes."""
    values = {**method.defaults(), **SMALL, "match": "hyper", "seed": 0}
    return {name: values[name] for name in {*method.defaults(), *(p.name for p in method._keywords())}}


def on_cpu(name: str) -> registry.Method:
    """A shipped method; the test is skipped where it cannot run."""
    method = registry.find(METHODS[name])
    reason = method.why_unsupported("cpu", "float32")
    if reason is not None:
        pytest.skip(reason)
    return method


def run(method: registry.Method, inputs: tuple[Tensor, ...], is_causal: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The output of a method and its gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    try:
        out = method.function(*leaves, is_causal=is_causal, **filled(method))
    except NotImplementedError as error:
        assert is_causal
        pytest.skip(str(error))
    return out.detach(), torch.autograd.grad(out, leaves, inputs[3])


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_method_answers_in_the_right_shape_and_has_gradients(
    name: str, shape: tuple[int, ...], is_causal: bool
) -> None:
    inputs = tuple(x.float() for x in drawn(*shape))
    out, grads = run(on_cpu(name), inputs, is_causal)
    assert out.shape == inputs[0].shape
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    for grad, x in zip(grads, inputs, strict=False):
        assert grad.shape == x.shape
        assert grad.isfinite().all()


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["flash2", "math"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5), ("bfloat16", 3e-2)])
def test_exact_methods_are_the_formula(
    name: str, shape: tuple[int, ...], is_causal: bool, dtype: str, tolerance: float
) -> None:
    inputs = tuple(x.to(getattr(torch, dtype)) for x in drawn(*shape))
    out, grads = run(on_cpu(name), inputs, is_causal)
    wide = [x.double() for x in inputs]
    truth = (attention(*wide[:3], is_causal), *gradients(*wide, is_causal))
    for found, expected in zip((out, *grads), truth, strict=True):
        assert float((found.double() - expected).norm()) <= tolerance * max(float(expected.norm()), 1.0)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", ["hyper", "hyper_paper"])
def test_hyper_with_its_log_sum_exp_answers_the_same(name: str, is_causal: bool) -> None:
    method = registry.find(METHODS[name])
    q, k, v, _ = drawn(1, 4, 2, 70, 8)
    assert method.with_lse is not None
    out, lse = method.with_lse(q, k, v, is_causal=is_causal, **filled(method))
    assert torch.equal(out, method.function(q, k, v, is_causal=is_causal, **filled(method)))
    assert lse.shape == q.shape[:3]
    exact_out, exact_lse = method.with_lse(q, k, v, is_causal=is_causal, **{**filled(method), "min_seq_len": 70})
    truth = exact_attention(q, k, v, is_causal=is_causal, enable_gqa=True, return_lse=True)
    assert torch.allclose(exact_out, truth[0])
    assert torch.allclose(exact_lse, truth[1])
    assert not torch.allclose(out, truth[0], rtol=1e-3)


def test_the_seed_of_hyper_and_uniform_is_that_of_their_draw() -> None:
    q, k, v, _ = drawn(1, 1, 1, 80, 8)
    for name in ("hyper", "uniform"):
        method = registry.find(METHODS[name])
        one, same, other = (
            method.function(q, k, v, is_causal=False, **{**filled(method), "seed": seed}) for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_defaults_of_hyper_are_those_of_the_library() -> None:
    for name, params in (("hyper", HyperAttentionParams()), ("hyper_paper", HyperAttentionParams.paper())):
        method = registry.find(METHODS[name])
        values = {**dataclasses.asdict(params), "seed": 0}
        if not params.uses_probes:
            values |= {"num_probes": None, "probe_floor": None}
        assert method.defaults() == values
        shipped = set(catalog.entries("method")[name]) - set(METHOD_KEYS)
        assert shipped == set(method.defaults())
        assert method.with_lse is not None


def test_shipped_parameters_are_those_that_the_methods_take() -> None:
    for data in catalog.entries("method").values():
        method = registry.find(data["_target_"])
        hyper = {k: 1 for k in data if k not in (*METHOD_KEYS, "sampling", "pairing", "hashing", "match")}
        method.check(hyper)


@pytest.mark.parametrize("is_causal", [False, True])
def test_trivial_answers_are_what_they_say(is_causal: bool) -> None:
    q, k, v, g = drawn(1, 4, 2, 30, 8)
    values = v.repeat_interleave(2, dim=1)
    visible = [values[:, :, : i + 1] if is_causal else values for i in range(30)]
    mean = torch.stack([x.mean(2) for x in visible], dim=2)
    assert torch.allclose(trivial.mean_v(q, k, v, is_causal=is_causal), mean)
    assert not trivial.zero(q, k, v, is_causal=is_causal).any()
    everything = trivial.uniform(q, k, v, is_causal=is_causal, sample_size=30, seed=0)
    assert torch.allclose(everything, attention(q, k, v, is_causal))
    grads = run(registry.find(METHODS["zero"]), (q, k, v, g), is_causal)[1]
    assert not any(grad.any() for grad in grads)


def test_uniform_sees_no_later_key() -> None:
    q, k, v, _ = drawn(1, 2, 2, 40, 8)
    before = trivial.uniform(q, k, v, is_causal=True, sample_size=5, seed=3)
    k[:, :, 20:], v[:, :, 20:] = 7.0, -7.0
    after = trivial.uniform(q, k, v, is_causal=True, sample_size=5, seed=3)
    assert torch.equal(before[:, :, :20], after[:, :, :20])
    assert not torch.equal(before, after)


def test_what_needs_a_gpu_says_so() -> None:
    cudnn, flash_attn = registry.find(METHODS["cudnn"]), registry.find(METHODS["flash_attn"])
    assert "needs a CUDA GPU" in str(cudnn.why_unsupported("cpu", "float32"))
    assert "flash-attn package" in str(flash_attn.why_unsupported("cpu", "bfloat16"))
    for name in ("flash2", "math", "hyper", "uniform", "zero", "mean_v"):
        assert registry.find(METHODS[name]).why_unsupported("cpu", "float32") is None


@pytest.mark.parametrize("kernel", [exact.flash2, exact.cudnn])
def test_a_fused_kernel_takes_half_precision_on_cuda(
    kernel: exact.Flash2 | exact.Sdpa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "flash_attn_imports", lambda: False)
    assert kernel.why_unsupported("cuda", "bfloat16") is None
    assert kernel.why_unsupported("cuda", "float16") is None
    assert "takes float16 or bfloat16 on CUDA, not float32" in str(kernel.why_unsupported("cuda", "float32"))
    assert exact.math.why_unsupported("cuda", "float32") is None


def test_the_flash_attn_package_is_asked_for_before_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    method = exact.flash_attn
    monkeypatch.setattr(exact, "flash_attn_imports", lambda: False)
    assert "is not installed" in str(method.why_unsupported("cuda", "bfloat16"))
    monkeypatch.setattr(exact, "flash_attn_imports", lambda: True)
    assert "needs a CUDA GPU" in str(method.why_unsupported("cpu", "bfloat16"))
    assert "not float32" in str(method.why_unsupported("cuda", "float32"))
    assert method.why_unsupported("cuda", "bfloat16") is None


def test_flash2_is_the_package_on_cuda_where_it_imports_and_pytorch_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.9")
    monkeypatch.setattr(exact, "flash_attn_imports", lambda: True)
    assert exact.flash2.implementation("cuda") == "flash-attn-2.9-cuda"
    assert exact.flash2.implementation("cpu").startswith("torch-")
    monkeypatch.setattr(exact, "flash_attn_imports", lambda: False)
    assert exact.flash2.implementation("cuda").startswith("torch-")


def test_a_flash_attn_that_does_not_import_counts_as_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "flash_attn.py").write_text("raise OSError('built for another PyTorch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    exact.flash_attn_imports.cache_clear()
    assert not exact.flash_attn_imports()
    exact.flash_attn_imports.cache_clear()


def test_implementations_name_what_runs_and_where() -> None:
    names = {
        name: registry.find(target).implementation("cpu") for name, target in METHODS.items() if name != "flash_attn"
    }
    assert all(label.endswith("-cpu") for label in names.values())
    assert torch.__version__.partition("+")[0] in names["flash2"]
    assert "flash" in names["flash2"]
    assert names["flash2"] != names["math"] != names["cudnn"]
    assert names["hyper"].startswith("hyperattn-core-")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("no_such_module.f", "_target_=no_such_module.f cannot be imported: .*no_such_module"),
        (
            "tests.helpers.odd_methods.no_such_name",
            "_target_=tests.helpers.odd_methods.no_such_name cannot be imported",
        ),
        ("tests.helpers.raises_at_import.f", r"cannot be imported: .*this module.*cannot be imported"),
        ("tests.helpers.exits_at_import.f", "_target_=tests.helpers.exits_at_import.f cannot be imported: no license"),
        (
            "tests.helpers.odd_methods.NOT_A_FUNCTION",
            "_target_=tests.helpers.odd_methods.NOT_A_FUNCTION is a int, not a function",
        ),
        ("tests.helpers.odd_methods", "_target_=tests.helpers.odd_methods is a module, not a function"),
        ("", "_target_= cannot be imported"),
        ("..", "cannot be imported"),
        ("3", "cannot be imported"),
    ],
)
def test_a_target_that_is_no_method_is_one_line(target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        registry.find(target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "hyper", "words"),
    [
        ("tests.helpers.odd_methods.exact", {"rank": 3}, "has no parameter 'rank'; allowed: none"),
        (
            "tests.helpers.odd_methods.keyword_defaults",
            {"rnk": 3},
            "has no parameter 'rnk'; allowed: .*did you mean 'rank'",
        ),
        ("tests.helpers.odd_methods.needs_a_value", {}, "needs a value for its parameter 'rank'"),
        ("tests.helpers.odd_methods.needs_a_value", {"rank": None}, "needs a value for its parameter 'rank'"),
        (METHODS["hyper"], {"blok_size": 3}, "has no parameter 'blok_size'; .*did you mean 'block_size'"),
        (METHODS["hyper"], {"block_size": 0}, "block_size must be an integer of at least 1"),
        (METHODS["hyper"], {"sampling": "idd"}, "sampling must be one of iid, stratified.*did you mean 'iid'"),
        (METHODS["hyper"], {"num_projections": 99}, "num_projections must be an integer from 1 to 15"),
    ],
)
def test_a_parameter_that_cannot_be_is_one_line(target: str, hyper: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        registry.find(target).check(hyper)
    assert "\n" not in str(caught.value)


def test_a_plain_function_is_a_method() -> None:
    method = registry.find("tests.helpers.odd_methods.keyword_defaults")
    method.check({"rank": 2})
    # A default that is no plain data is left to the function.
    assert method.defaults() == {"rank": 4, "kind": "a"}
    assert method.implementation("cpu") == "tests.helpers.odd_methods.keyword_defaults-cpu"
    assert method.why_unsupported("cpu", "float32") is None
    assert method.with_lse is None
    registry.find("tests.helpers.odd_methods.takes_anything").check({"colour": "blue", "rank": 2})


def test_operations_are_counted_where_a_method_says_so() -> None:
    point = a_point(method="any", hyper={**SMALL, "sampling": "stratified"}, seq_len=64)
    dense = exact_flops(point, Pass.FORWARD)
    plain = registry.find("tests.helpers.odd_methods.exact")
    assert plain.executed_flops(point, Pass.FORWARD, True) == dense
    assert plain.executed_flops(point, Pass.FORWARD, False) is None
    hyper = registry.find(METHODS["hyper"]).executed_flops(point, Pass.FORWARD, False)
    assert hyper is not None
    assert 0 < hyper < dense
