"""The kernels against the dense oracle at the same plan: output, log-sum-exp and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, exact_attention, hyper_attention, make_plan, oracle_attention
from hyperattn_core.oracle import weight_matrix
from tests.helpers.slow import slow, slow_in
from tests.helpers.triton_inputs import CALLS, SLOW, Call, normal

#: Largest error of float32 kernels, relative to the largest value, and of others as a multiple of plain attention's.
TOLERANCE = 5e-6
MULTIPLE = 4.0
GRADIENTS = [
    "plain", "paper's choices", "more queries than keys", "grouped heads, batch", "odd head sizes", "large tile",
    "odd block and samples", "one sample, block of one", "more samples than keys", "tile no power of two",
    "negative scale", "causal", "causal, prime length", "causal, grouped heads, batch", "causal, odd head sizes",
    "block larger than a node", "causal, stored by heads", "bfloat16", "bfloat16, causal", "float16", "routed",
    "probed, causal", "probed, routed, causal", "truncated", "truncated, causal", "truncated, routed, causal",
    "truncated, causal, odd sizes", "truncated, bfloat16",
]  # fmt: skip

#: Like others of these, beside those of SLOW.
SLOW_GRADIENTS = (
    "plain", "grouped heads, batch", "large tile", "negative scale", "causal, odd head sizes", "float16",
    "probed, routed, causal",
)  # fmt: skip


def attend(call: Call, *qkv: Tensor, plan: AttentionPlan, backend: str = "triton") -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp at a plan."""
    out, lse = hyper_attention(
        *qkv, plan=plan, is_causal=call.is_causal, scale=call.scale, enable_gqa=True, return_lse=True, backend=backend
    )
    return out, lse


def worst(x: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest expected value."""
    return float((x.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def allowed(call: Call, expected: tuple[Tensor, ...], plain: tuple[Tensor, ...]) -> list[float]:
    """Allowed error of a kernel: rounding of float32, or a multiple of what PyTorch loses in the call's dtype."""
    if call.dtype == torch.float32:
        return [TOLERANCE] * len(expected)
    return [MULTIPLE * max(worst(x, y), TOLERANCE) for x, y in zip(plain, expected, strict=True)]


@pytest.mark.parametrize("name", slow_in(CALLS, SLOW))
def test_output_and_lse(name: str) -> None:
    call = CALLS[name]
    q, k, v = call.inputs()
    plan = call.plan()
    assert not plan.is_exact
    results = attend(call, q, k, v, plan=plan)
    expected = oracle_attention(q, k, v, plan, call.scale)
    bounds = allowed(call, expected, attend(call, q, k, v, plan=plan, backend="torch"))
    for result, right, bound in zip(results, expected, bounds, strict=True):
        assert result.shape == right.shape
        assert worst(result, right) <= bound
    assert results[0].dtype == call.dtype
    assert results[1].dtype == torch.float32


@pytest.mark.parametrize("name", slow_in(GRADIENTS, (*SLOW, *SLOW_GRADIENTS)))
def test_gradients(name: str) -> None:
    """Through the output and the log-sum-exp together, against autograd through the dense formula in float64."""
    call = CALLS[name]
    plan = call.plan()

    def gradients(backend: str) -> tuple[Tensor, ...]:
        exact = backend == "oracle"
        qkv = [(x.double() if exact else x).detach().requires_grad_() for x in call.inputs()]
        results = oracle_attention(*qkv, plan, call.scale) if exact else attend(call, *qkv, plan=plan, backend=backend)
        weights = [normal(*x.shape, seed=9 + i).to(call.dtype).to(x.dtype) for i, x in enumerate(results)]
        return torch.autograd.grad(results, qkv, weights)

    expected = gradients("oracle")
    results, bounds = gradients("triton"), allowed(call, expected, gradients("torch"))
    for name_, result, right, bound in zip("qkv", results, expected, bounds, strict=True):
        assert result.dtype == call.dtype
        assert worst(result, right) <= 4 * bound, f"d{name_}"


@pytest.mark.parametrize("is_causal", [*slow(False), True])
def test_a_gradient_of_one_result_alone(is_causal: bool) -> None:
    call = Call(queries=90, is_causal=is_causal)
    plan = call.plan()
    for which in (0, 1):
        qkv, exact = ([x.to(d).requires_grad_() for x in call.inputs()] for d in (torch.float32, torch.float64))
        result = attend(call, *qkv, plan=plan)[which].square().sum()
        expected = oracle_attention(*exact, plan)[which].square().sum()
        expected_grads = torch.autograd.grad(expected, exact, materialize_grads=True)
        for x, y in zip(torch.autograd.grad(result, qkv), expected_grads, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-4 * float(y.abs().max()) + 1e-12)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_huge_logits_do_not_overflow(size: float, is_causal: bool) -> None:
    call = Call(queries=90, is_causal=is_causal)
    q, k, v = call.inputs()
    plan = call.plan()
    out, lse = attend(call, size * q, k, v, plan=plan)
    expected, expected_lse = oracle_attention(size * q, k, v, plan)
    assert worst(lse, expected_lse) < 1e-5
    assert worst(out, expected) < 1e-5 * size


@pytest.mark.parametrize("name", ["plain", "causal, prime length"])
def test_plans_of_both_backends_give_the_same_output(name: str) -> None:
    call = CALLS[name]
    q, k, v = call.inputs()
    for x, y in zip(
        attend(call, q, k, v, plan=call.plan("torch")), attend(call, q, k, v, plan=call.plan("triton")), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("is_causal", [False, True])
def test_two_runs_are_equal_to_the_last_bit(is_causal: bool) -> None:
    call = Call(queries=80, heads=2, kv_heads=1, is_causal=is_causal, params={"sampling": "iid"})

    def run() -> tuple[Tensor, ...]:
        qkv = [x.requires_grad_() for x in call.inputs()]
        out = hyper_attention(
            *qkv, params=call.parameters(), seed=4, is_causal=is_causal, enable_gqa=True, backend="triton"
        )
        return (out, *torch.autograd.grad(out.square().sum(), qkv))

    for x, y in zip(run(), run(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("changes", ["kv", "qkv"])
def test_causal(changes: str) -> None:
    """Nothing after t enters an output up to t; with bucket pairing no later query moves what is met either.

    To the last bit where queries keep their places in the tiles; where they do not, the interpreter's matrix product
    may round a row otherwise, so there the plan's weights are compared to the last bit and outputs to rounding.
    """
    call = Call(queries=131, is_causal=True)
    tensors = call.inputs()

    def run(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plan = make_plan(q, k, call.parameters(), 1, is_causal=True, tile_size=16, backend="triton")
        return (*attend(call, q, k, v, plan=plan), weight_matrix(plan))

    before = run(*tensors)
    for t in (39, 40, 100):
        changed = []
        for name, x in zip("qkv", tensors, strict=True):
            other = x.clone()
            if name in changes:
                other[:, :, t + 1 :] = normal(*other[:, :, t + 1 :].shape, seed=50 + t)
            changed.append(other)
        after = run(*changed)
        assert torch.equal(after[2][:, :, : t + 1], before[2][:, :, : t + 1])
        for new, old in zip(after[:2], before[:2], strict=True):
            early = (new[:, :, : t + 1], old[:, :, : t + 1])
            assert torch.equal(*early) if changes == "kv" else torch.allclose(*early, rtol=0, atol=5e-6)
            assert not torch.equal(new, old)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_a_nan_reaches_the_rows_that_meet_it(which: str, is_causal: bool) -> None:
    call = Call(queries=101, is_causal=is_causal, dim=16)
    plan = call.plan()
    row = 43
    tensors = dict(zip("qkv", call.inputs(), strict=True))
    tensors[which][0, 0, row, 2] = math.nan
    out, lse = attend(call, *tensors.values(), plan=plan)
    met = weight_matrix(plan)[0, 0, :, row] > 0
    if which == "q":
        met = torch.arange(101) == row
    expected = torch.zeros(101, 16, dtype=torch.bool)
    expected[met, slice(2, 3) if which == "v" else slice(None)] = True
    assert torch.equal(out[0, 0].isnan(), expected)
    assert torch.equal(lse[0, 0].isnan(), met if which != "v" else torch.zeros_like(met))


@pytest.mark.parametrize(
    "call",
    [
        Call(queries=40),
        Call(queries=40, is_causal=True, heads=4, kv_heads=2),
        Call(queries=90, params={"block_size": 90}),
        Call(queries=90, params={"sample_size": 90}),
    ],
    ids=["short", "short and causal", "one block", "every key sampled"],
)
def test_exact_limits(call: Call) -> None:
    q, k, v = call.inputs()
    options = {"is_causal": call.is_causal, "enable_gqa": True, "return_lse": True}
    results = hyper_attention(q, k, v, params=call.parameters(), backend="triton", **options)
    for x, y in zip(results, exact_attention(q, k, v, **options), strict=True):
        torch.testing.assert_close(x, y)


def test_every_key_sampled_but_not_planned_so() -> None:
    """iid samples of every slice: the weights make the sums those of all keys where q is zero."""
    call = Call(queries=120, keys=128, params={"sampling": "stratified", "sample_size": 64, "block_size": 8})
    q, k, v = call.inputs()
    _, lse = attend(call, torch.zeros_like(q), k, v, plan=call.plan())
    assert (lse - math.log(128)).abs().max() < 0.15
