"""Errors are what their names say, and no wrong answer passes the gate."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError, relative_frobenius
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from tests.helpers.brute_force import attention, drawn, gradients, probabilities

SHAPE = (2, 4, 2, 40, 8)
INPUTS = drawn(*SHAPE)
Q, K, V, G = INPUTS
NOISE = torch.randn(Q.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def reference(is_causal: bool = False, num_rows: int = 1000, v: Tensor = V) -> Reference:
    """The reference of the inputs."""
    return make_reference(
        (Q, K, v), G, is_causal=is_causal, num_rows=num_rows, dtype=torch.float64, operator_norm=True, seed=0
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_output_errors_are_those_of_the_formula(is_causal: bool) -> None:
    exact = attention(Q, K, V, is_causal)
    out = exact + 0.1 * NOISE
    found = accuracy.output_errors(out, reference(is_causal))
    assert found["out_rel_fro"] == pytest.approx(float((out - exact).norm() / exact.norm()))
    assert found["out_max_abs"] == pytest.approx(float((out - exact).abs().max()))
    rows = ((out - exact).norm(dim=3) / exact.norm(dim=3)).flatten().sort().values
    for name, level in (("out_row_rel_p50", 0.5), ("out_row_rel_p90", 0.9), ("out_row_rel_p99", 0.99)):
        below = float((rows < found[name]).double().mean())
        assert abs(below - level) <= 1.5 / len(rows)
        assert float((rows - found[name]).abs().min()) < 1e-12
    norms = [torch.linalg.matrix_norm(x, ord=2) for x in (out - exact, probabilities(Q, K, is_causal)[0])]
    value_norms = torch.linalg.matrix_norm(V, ord=2).repeat_interleave(2, dim=1)
    assert found["out_rel_op"] == pytest.approx(float((norms[0] / (norms[1] * value_norms)).max()), rel=1e-5)


def test_drawn_rows_are_compared_and_no_others() -> None:
    few = make_reference((Q, K, V), None, is_causal=False, num_rows=7, dtype=torch.float64, operator_norm=False, seed=0)
    out = attention(Q, K, V, False)
    hidden = [i for i in range(SHAPE[3]) if i not in few.rows.positions.tolist()]
    out[:, :, hidden] = 1e9
    assert accuracy.output_errors(out, few)["out_rel_fro"] < 1e-12
    assert accuracy.output_errors(out, reference(num_rows=7))["out_rel_op"] > 1e6


def test_gradient_errors_are_relative_frobenius() -> None:
    exact = gradients(Q, K, V, G, True)
    dq, dk, dv = (x * factor for x, factor in zip(exact, (1.1, 0.8, 1.0), strict=True))
    found = accuracy.grad_errors((dq, dk, dv), reference(True))
    assert found["dq_rel_fro"] == pytest.approx(0.1)
    assert found["dk_rel_fro"] == pytest.approx(0.2)
    assert found["dv_rel_fro"] < 1e-10


def test_the_error_of_a_log_sum_exp_is_absolute() -> None:
    exact = probabilities(Q, K, False)[1]
    assert accuracy.lse_errors(exact + 0.25, reference())["lse_mean_abs"] == pytest.approx(0.25)


@pytest.mark.parametrize("is_causal", [False, True])
def test_trivial_answers_are_the_mean_and_zero(is_causal: bool) -> None:
    exact = attention(Q, K, V, is_causal)
    found = accuracy.trivial_errors((Q, K, V), reference(is_causal), is_causal)
    values = V.repeat_interleave(2, dim=1)
    mean = torch.stack([values[:, :, : i + 1 if is_causal else None].mean(2) for i in range(SHAPE[3])], dim=2)
    assert found["mean_v_rel_fro"] == pytest.approx(float((mean - exact).norm() / exact.norm()))
    assert found["zero_rel_fro"] == 1


def test_nothing_over_nothing_is_no_error() -> None:
    zeros = torch.zeros_like(V)
    nothing = reference(v=zeros)
    found = accuracy.output_errors(torch.zeros_like(Q), nothing)
    assert set(found.values()) == {0.0}
    found = accuracy.output_errors(torch.ones_like(Q), nothing)
    assert found.pop("out_max_abs") == 1
    assert set(found.values()) == {math.inf}


@given(st.floats(-2, 2), st.floats(1e-3, 1e3))
def test_relative_frobenius_knows_no_scale(difference: float, scale: float) -> None:
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * scale
    assert relative_frobenius(exact * (1 + difference), exact) == pytest.approx(abs(difference), abs=1e-9)


def test_relative_frobenius_of_zero() -> None:
    zero = torch.zeros(3)
    assert relative_frobenius(zero, zero) == 0
    assert relative_frobenius(torch.ones(3), zero) == math.inf


OUT = attention(Q, K, V, False)


def with_entry(x: Tensor, value: float) -> Tensor:
    """A copy with another last entry."""
    changed = x.clone()
    changed.view(-1)[-1] = value
    return changed


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (None, "the output is None, not a tensor"),
        ((OUT, None), "the output is a tuple, not a tensor"),
        (OUT[:, :, 1:], r"has shape \(2, 4, 39, 8\), not \(2, 4, 40, 8\)"),
        (OUT[0], r"has shape \(4, 40, 8\)"),
        (OUT.float(), "is float32, not float64"),
        (OUT.to("meta"), "is on meta, not on cpu"),
        (with_entry(OUT, math.nan), "non-finite"),
        (with_entry(OUT, -math.inf), "non-finite"),
    ],
)
def test_an_output_that_is_none_is_refused(bad: Any, words: str) -> None:
    with pytest.raises(IncorrectError, match=words):
        accuracy.check_output(bad, Q, V)


def test_a_good_output_is_handed_on() -> None:
    assert accuracy.check_output(OUT, Q, V) is OUT
    # The values may have another width than queries and keys.
    wide = torch.cat([V, V], dim=3)
    assert accuracy.check_output(torch.cat([OUT, OUT], dim=3), Q, wide).shape[3] == 16


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("damage", ["none", "shape", "dtype", "nan"])
def test_a_gradient_that_is_none_is_refused(index: int, damage: str) -> None:
    inputs = (Q, K, V)
    grads: list[Tensor | None] = list(gradients(Q, K, V, G, False))
    good = grads[index]
    assert good is not None
    assert accuracy.check_grads(tuple(grads), inputs)[index] is good
    grads[index] = {"none": None, "shape": good[:, :1], "dtype": good.half(), "nan": with_entry(good, math.nan)}[damage]
    with pytest.raises(IncorrectError, match=f"the gradient of {'qkv'[index]} "):
        accuracy.check_grads(tuple(grads), inputs)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("metric", ["out_rel_fro", "dq_rel_fro", "dk_rel_fro", "dv_rel_fro"])
def test_an_exact_method_that_is_off_is_refused(dtype: str, metric: str) -> None:
    for error in (0.1, math.inf, math.nan):
        with pytest.raises(IncorrectError, match=f"an exact method must agree with the reference: {metric} is"):
            accuracy.check_exact({metric: error}, dtype)
    accuracy.check_exact({metric: 0.0}, dtype)
    accuracy.check_exact({"out_max_abs": 5.0}, dtype)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_plain_attention_in_any_dtype_is_exact_enough(dtype: str, is_causal: bool) -> None:
    kind = getattr(torch, dtype)
    q, k, v, g = (x.to(kind) for x in drawn(1, 2, 2, 256, 64))
    truth = make_reference(
        (q, k, v), g, is_causal=is_causal, num_rows=1000, dtype=torch.float64, operator_norm=False, seed=0
    )
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=is_causal)
    dq, dk, dv = torch.autograd.grad(out, leaves, g)
    errors = {**accuracy.output_errors(out.detach(), truth), **accuracy.grad_errors((dq, dk, dv), truth)}
    accuracy.check_exact(errors, dtype)
