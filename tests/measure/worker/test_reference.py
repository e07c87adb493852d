"""The reference against the formula: all rows and drawn ones, grouped heads, both maskings, gradients and norms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperbench.measure.worker.errors import reference as module
from hyperbench.measure.worker.errors.reference import Reference, make_reference, operator_norms
from tests.helpers.brute_force import attention, drawn, gradients, probabilities

SHAPES = [(1, 1, 1, 16, 4), (2, 4, 2, 37, 8), (1, 3, 1, 50, 5), (1, 2, 2, 1, 3)]


def made(shape: tuple[int, ...], is_causal: bool, num_rows: int = 10_000, **changes: object) -> Reference:
    """A reference of drawn inputs."""
    q, k, v, g = drawn(*shape)
    options = {"dtype": torch.float64, "operator_norm": True, "seed": 0, "grad_output": g, **changes}
    return make_reference((q, k, v), is_causal=is_causal, num_rows=num_rows, **options)  # type: ignore[arg-type]


def close(one: Tensor, other: Tensor) -> bool:
    """Equal to rounding in float64."""
    return torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_rows", [10_000, 9])
def test_the_reference_is_the_formula(
    shape: tuple[int, ...], is_causal: bool, num_rows: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    q, k, v, g = drawn(*shape)
    part = made(shape, is_causal, num_rows, grad_output=None, operator_norm=False)
    positions = part.rows.positions
    assert len(positions) == min(num_rows, shape[3])
    assert positions.tolist() == sorted(positions.tolist())
    assert close(part.out, attention(q, k, v, is_causal)[:, :, positions])
    assert close(part.lse, probabilities(q, k, is_causal)[1][:, :, positions])
    whole = made(shape, is_causal, num_rows)
    assert (whole.rows.weights, len(whole.rows)) == (None, shape[3])
    assert close(whole.out, attention(q, k, v, is_causal))
    assert whole.grads is not None
    for grad, exact in zip(whole.grads, gradients(q, k, v, g, is_causal), strict=True):
        assert close(grad, exact)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_operator_norm_is_that_of_the_dense_matrices(shape: tuple[int, ...], is_causal: bool) -> None:
    q, k, v, _ = drawn(*shape)
    scale = made(shape, is_causal).operator_scale
    dense = torch.linalg.matrix_norm(probabilities(q, k, is_causal)[0], ord=2)
    values = torch.linalg.matrix_norm(v, ord=2).repeat_interleave(shape[1] // shape[2], dim=1)
    assert scale is not None
    assert torch.allclose(scale, dense * values, rtol=1e-6)


def test_the_operator_norm_of_peaked_attention_is_found_too() -> None:
    q, k, v, _ = drawn(1, 2, 2, 40, 6)
    k[:, :, 3] *= 8
    found = make_reference(
        (20 * q, k, v), None, is_causal=True, num_rows=100, dtype=torch.float64, operator_norm=True, seed=1
    )
    dense = torch.linalg.matrix_norm(probabilities(20 * q, k, True)[0], ord=2)
    assert found.operator_scale is not None
    assert torch.allclose(found.operator_scale, dense * torch.linalg.matrix_norm(v, ord=2), rtol=1e-4)


@pytest.mark.parametrize("rows", [3, 20])
def test_norms_of_matrices_are_their_largest_singular_values(rows: int) -> None:
    x = torch.randn(2, 3, rows, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(operator_norms(x), torch.linalg.matrix_norm(x, ord=2), rtol=1e-10)
    assert operator_norms(torch.zeros(1, 1, rows, 7)).item() == 0


def test_rows_are_drawn_by_the_seed_and_by_nothing_else() -> None:
    options = {"grad_output": None, "operator_norm": False}
    one, same, other = (made((1, 1, 1, 50, 4), False, 9, seed=seed, **options).rows.positions for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_is_not_wanted_is_not_there() -> None:
    found = made((1, 1, 1, 20, 4), False, 9, grad_output=None, operator_norm=False)
    assert (found.grads, found.operator_scale) == (None, None)


def test_exact_attention_that_is_not_exact_is_no_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = module.exact_attention

    def scaled(*inputs: Tensor, **options: bool) -> tuple[Tensor, Tensor]:
        out, lse = honest(*inputs, **options)
        return 1.001 * out, lse

    monkeypatch.setattr(module, "exact_attention", scaled)
    with pytest.raises(RuntimeError, match="exact attention in float32 differs from plain products in float64"):
        made((1, 2, 1, 100, 8), True, dtype=torch.float32)


def test_a_reference_in_float32_differs_by_rounding_alone() -> None:
    one, other = (made((1, 2, 1, 64, 8), True, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert other.out.dtype == torch.float32
    assert other.grads is not None
    assert one.grads is not None
    for single, double in ((other.out, one.out), *zip(other.grads, one.grads, strict=True)):
        assert torch.allclose(single.double(), double, rtol=1e-4, atol=1e-5)
