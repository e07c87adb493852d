"""alpha, kappa and stable rank against dense matrices: grouped heads, both maskings, odd lengths, many chunks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams, make_plan
from hyperattn_core.oracle import weight_matrix
from hyperbench.measure.worker.errors import reference as chunking
from hyperbench.measure.worker.errors.theory import input_properties, largest_eigenvalue
from tests.helpers.brute_force import drawn, probabilities

SHAPES = [(1, 1, 1, 16, 4), (2, 4, 2, 37, 8), (1, 3, 1, 50, 5), (1, 2, 2, 3, 3)]


def found_of(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, dtype: torch.dtype = torch.float64
) -> list[float]:
    """alpha, kappa and stable rank."""
    found = input_properties((q, k, v), is_causal=is_causal, dtype=dtype, seed=0)
    assert list(found) == ["alpha", "kappa", "stable_rank"]
    return [float(value) for value in found.values()]


def dense(q: Tensor, k: Tensor, is_causal: bool) -> list[float]:
    """The same from the definitions, on matrices as a whole."""
    if is_causal:
        half = max(1, q.shape[2] // 2)
        q, k = q[:, :, -half:], k[:, :, :half]
    n = k.shape[2]
    probs, lse = probabilities(q, k, False)
    alpha = n * probs.square().sum(2).amax()
    norms = torch.linalg.matrix_norm(probs), torch.linalg.matrix_norm(probs, ord=2)
    # Blocks weigh one in the estimator, a sample of one key n.
    params = HyperAttentionParams(min(256, n // 2), 1, 7, 1, sampling="iid", pairing="rank")
    rest = ((probs * lse.exp().unsqueeze(3)) * (weight_matrix(make_plan(q, k, params, 0)) != 1.0)).sum(3)
    kappa = (rest.amax(2) / rest.amin(2)).max()
    return [float(alpha), float(kappa), float((norms[0] / norms[1]).square().max())]


@pytest.mark.parametrize("chunk", [100, 2**22])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_properties_are_those_of_the_dense_matrix(
    shape: tuple[int, ...], is_causal: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "_CHUNK_ELEMENTS", chunk)
    q, k, v, _ = drawn(*shape)
    if shape[3] == 3 and is_causal:
        # One query over one key.
        assert found_of(q, k, v, True) == pytest.approx([1.0, 1.0, 1.0])
        return
    assert found_of(q, k, v, is_causal) == pytest.approx(dense(q, k, is_causal), rel=1e-8)


def test_float32_gives_the_same_to_its_rounding() -> None:
    q, k, v, _ = drawn(1, 2, 1, 60, 8)
    assert found_of(q, k, v, dtype=torch.float32) == pytest.approx(found_of(q, k, v), rel=1e-4)


def test_uniform_attention_has_the_least_of_each_and_the_identity_the_most() -> None:
    n = 32
    q, k, v, _ = drawn(1, 1, 1, n, n)
    assert found_of(0.0 * q, k, v) == pytest.approx([1.0, 1.0, 1.0])
    far_apart = 100.0 * torch.eye(n, dtype=torch.float64).reshape(1, 1, n, n)
    alpha, _, stable_rank = found_of(far_apart, far_apart, v)
    assert (alpha, stable_rank) == pytest.approx((n, n))


def test_one_key_that_everybody_reads_makes_alpha_as_large_as_its_square_and_the_rank_one() -> None:
    n = 40
    q, k, v, _ = drawn(1, 1, 1, n, 8)
    q[..., 0], k[..., 0] = 50.0, 0.0
    k[:, :, 7, 0] = 50.0
    alpha, _, stable_rank = found_of(q, k, v)
    assert alpha == pytest.approx(n * n)
    assert stable_rank == pytest.approx(1.0)


def test_row_sums_too_far_apart_for_a_number_are_infinite() -> None:
    q, k, v, _ = drawn(1, 1, 1, 20, 4)
    q[:, :, 0] *= 1e5
    assert found_of(q, k, v)[1] == math.inf


def test_a_single_position_has_the_properties_of_the_number_one() -> None:
    q, k, v, _ = drawn(1, 1, 1, 1, 4)
    for is_causal in (False, True):
        assert found_of(q, k, v, is_causal) == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("size", [1, 2, 30, 200])
def test_the_largest_eigenvalue_is_found(size: int) -> None:
    x = torch.rand(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    # A gap that is small: two blocks that hardly touch.
    x[: size // 2, size // 2 :] *= 1e-3
    gram = x.T @ x
    value = largest_eigenvalue(lambda y: gram @ y, torch.ones(size, dtype=torch.float64))
    assert value == pytest.approx(float(torch.linalg.eigvalsh(gram)[-1]), rel=1e-8)
