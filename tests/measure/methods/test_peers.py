"""Other approximate methods: their limits, their dense forms with gradients, causality, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.config import catalog
from hyperbench.measure.methods import method as registry
from hyperbench.measure.methods.peers import kdeformer as kde
from hyperbench.measure.methods.peers.efficient import efficient
from hyperbench.measure.methods.peers.kdeformer import kdeformer
from hyperbench.measure.methods.peers.nystrom import nystrom
from hyperbench.measure.methods.peers.performer import orthogonal_directions, performer
from hyperbench.measure.methods.peers.reformer import buckets, random_rotations, reformer
from hyperbench.store.schema import Pass
from tests.helpers.brute_force import attention, drawn, probabilities
from tests.helpers.made_records import a_point

PEERS = ("efficient", "kdeformer", "nystrom", "performer", "reformer")
#: More positions than a chunk of the performer under a causal mask, and no multiple of one.
SHAPE = (2, 4, 2, 150, 8)
Function = Callable[..., Tensor]


def error(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    return float((found - expected).norm() / expected.norm())


def with_gradients(function: Function, *inputs: Tensor) -> list[Tensor]:
    """The output of a function of q, k and v, and its gradients under the last input."""
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, inputs[3])]


def same(one: Function, other: Function, *inputs: Tensor, tolerance: float = 1e-9) -> None:
    """Assert that two functions agree in output and gradients."""
    for found, expected in zip(with_gradients(one, *inputs), with_gradients(other, *inputs), strict=True):
        assert error(found, expected) < tolerance


def repeated(x: Tensor, q: Tensor) -> Tensor:
    """Kv heads repeated for the heads of q."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def exact(is_causal: bool) -> Function:
    """Exact attention under a mask."""
    return lambda q, k, v: attention(q, k, v, is_causal)


def test_a_method_without_a_causal_form_says_so() -> None:
    q, k, v, _ = drawn(1, 1, 1, 20, 8)
    for function in (efficient, kdeformer, nystrom):
        with pytest.raises(NotImplementedError, match="has no causal form: "):
            function(q, k, v, is_causal=True)  # type: ignore[operator]


def test_efficient_attention_is_its_closed_form() -> None:
    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = q.softmax(3) @ repeated(k, q).softmax(2).transpose(2, 3)
        assert torch.allclose(weights.sum(3), torch.ones(()).double())
        return weights @ repeated(v, q)

    same(lambda q, k, v: efficient(q, k, v, is_causal=False), dense, *drawn(*SHAPE))


def test_nystrom_is_its_formula_with_the_pseudo_inverse() -> None:
    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = repeated(k, q), repeated(v, q)
        few_q, few_k = (torch.stack([part.mean(2) for part in x.split(15, dim=2)], dim=2) for x in (q, k))
        first, kernel, last = (
            (a @ b.transpose(2, 3) / math.sqrt(8)).softmax(3) for a, b in ((q, few_k), (few_q, few_k), (few_q, k))
        )
        return first @ torch.linalg.pinv(kernel) @ last @ v

    same(
        lambda q, k, v: nystrom(q, k, v, is_causal=False, num_landmarks=10, pinv_iterations=40), dense, *drawn(*SHAPE),
        tolerance=1e-5,
    )  # fmt: skip
    # 151 positions in segments of 16, the last of 7.
    q, k, v, _ = drawn(1, 1, 1, 151, 8)
    assert nystrom(q, k, v, is_causal=False, num_landmarks=10).isfinite().all()


def test_nystrom_with_a_landmark_at_each_position_is_exact() -> None:
    q, k, v, _ = drawn(1, 2, 1, 60, 8)
    errors = [
        error(nystrom(q, k, v, is_causal=False, num_landmarks=60, pinv_iterations=n), attention(q, k, v, False))
        for n in (6, 12, 24)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_nystrom_gives_an_entry_of_the_batch_what_it_gets_by_itself() -> None:
    q, k, v, _ = drawn(2, 2, 2, 64, 8)
    q[1] *= 5.0
    together = nystrom(q, k, v, is_causal=False, num_landmarks=8)
    alone = nystrom(q[:1], k[:1], v[:1], is_causal=False, num_landmarks=8)
    assert torch.allclose(together[:1], alone)


@pytest.mark.parametrize("is_causal", [False, True])
def test_performer_is_the_quotient_of_its_features(is_causal: bool) -> None:
    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (x / 8**0.25 for x in (q, repeated(k, q)))
        w = orthogonal_directions(8, 40, 3, "cpu")
        phi_q, phi_k = ((x @ w - x.square().sum(3, keepdim=True) / 2).exp() for x in (q, k))
        weights = phi_q @ phi_k.transpose(2, 3)
        if is_causal:
            weights = weights.tril()
        return weights / weights.sum(3, keepdim=True) @ repeated(v, q)

    same(lambda q, k, v: performer(q, k, v, is_causal=is_causal, num_features=40, seed=3), dense, *drawn(*SHAPE))


@pytest.mark.parametrize("is_causal", [False, True])
def test_performer_converges_to_attention_with_its_features(is_causal: bool) -> None:
    q, k, v, _ = drawn(1, 1, 1, 70, 8)
    q, k = q / 2, k / 2
    truth = attention(q, k, v, is_causal)
    errors = [error(performer(q, k, v, is_causal=is_causal, num_features=m), truth) for m in (64, 1024, 16384)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.03


def test_directions_of_the_performer_are_orthogonal_and_as_long_as_gaussian_ones() -> None:
    w = orthogonal_directions(16, 40, 0, "cpu")
    assert w.shape == (16, 40)
    products = w.t() @ w
    for block in (products[:16, :16], products[16:32, 16:32], products[32:, 32:]):
        assert torch.allclose(block, block.diagonal().diag(), atol=1e-9)
    many = orthogonal_directions(4, 20000, 1, "cpu")
    # A Gaussian direction has the identity as covariance, and components of kurtosis 3.
    assert torch.allclose(many @ many.t() / 20000, torch.eye(4).double(), atol=0.05)
    assert torch.allclose(many.pow(4).mean(1), torch.full((4,), 3.0).double(), atol=0.3)


@pytest.mark.parametrize("t", [0, 63, 64, 100])
def test_performer_sees_no_later_position_to_the_last_bit(t: int) -> None:
    q, k, v = (x.float() for x in drawn(*SHAPE)[:3])
    before = performer(q, k, v, is_causal=True, num_features=24)
    for x in (q, k, v):
        x[:, :, t + 1 :] *= -1000.0
    after = performer(q, k, v, is_causal=True, num_features=24)
    assert torch.equal(before[:, :, : t + 1], after[:, :, : t + 1])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("is_causal", [False, True])
def test_performer_stays_finite_and_has_gradients_where_features_span_all_magnitudes(is_causal: bool) -> None:
    inputs = [20.0 * x.float() for x in drawn(*SHAPE)]
    for found in with_gradients(lambda q, k, v: performer(q, k, v, is_causal=is_causal, num_features=24), *inputs):
        assert found.isfinite().all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_reformer_with_one_chunk_is_exact(is_causal: bool) -> None:
    same(lambda q, k, v: reformer(q, k, v, is_causal=is_causal, bucket_size=150), exact(is_causal), *drawn(*SHAPE))


@pytest.mark.parametrize("is_causal", [False, True])
def test_reformer_weighs_a_key_by_the_rounds_in_which_it_is_met(is_causal: bool) -> None:
    q, k, _, _ = drawn(1, 2, 1, 50, 8)
    values = torch.eye(50).double().expand(1, 1, 50, 50)
    rounds, size = 3, 8
    weights = reformer(q, k, values, is_causal=is_causal, bucket_size=size, num_hashes=rounds)
    assert torch.allclose(weights.sum(3), torch.ones(()).double())
    keys, met = repeated(k, q), torch.zeros(1, 2, 50, 50)
    for rotation in random_rotations(8, 3, rounds, 0, "cpu"):
        # Place of each position in the order by bucket, and its chunk; the chunk before the first is the last.
        query_chunk, key_chunk = (
            (buckets(x, rotation) * 50 + torch.arange(50)).argsort(2).argsort(2) // size for x in (q, keys)
        )
        apart = (query_chunk.unsqueeze(3) - key_chunk.unsqueeze(2)) % 7
        meets = apart <= 1
        met += (meets.tril(-1) | torch.eye(50).bool()) if is_causal else meets
    expected = met * probabilities(q, k, False)[0]
    assert torch.allclose(weights, expected / expected.sum(3, keepdim=True))


def test_reformer_under_a_causal_mask_sees_no_later_value_but_later_keys_choose_what_it_meets() -> None:
    q, k, v = (x.float() for x in drawn(*SHAPE)[:3])
    before = reformer(q, k, v, is_causal=True, bucket_size=8, num_hashes=2)
    v[:, :, 101:] = 1000.0
    after = reformer(q, k, v, is_causal=True, bucket_size=8, num_hashes=2)
    assert torch.equal(before[:, :, :101], after[:, :, :101])
    k[:, :, 101:] *= -1.0
    later = reformer(q, k, v, is_causal=True, bucket_size=8, num_hashes=2)
    assert not torch.equal(after[:, :, :101], later[:, :, :101])


def test_kdeformer_with_one_block_is_exact() -> None:
    same(lambda q, k, v: kdeformer(q, k, v, is_causal=False, block_size=150), exact(False), *drawn(*SHAPE))


def test_kdeformer_converges_to_attention_with_its_samples() -> None:
    q, k, v, _ = drawn(1, 1, 1, 60, 8)
    truth = attention(q, k, v, False)
    errors = [error(kdeformer(q, k, v, is_causal=False, block_size=8, sample_size=m), truth) for m in (64, 2048, 65536)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.05


def test_the_sample_of_kdeformer_is_unbiased_and_follows_the_norms() -> None:
    q, k, v, _ = drawn(1, 1, 1, 30, 8)
    q, v = q / math.sqrt(8), v.clone()
    v[:, :, 3] *= 10.0
    positions, log_weights = kde.sample((q, k, v), 20000, 30, 0)
    shares = torch.bincount(positions.flatten(), minlength=30) / 20000
    columns = (q @ k.transpose(2, 3)).softmax(3).square().sum(2).flatten()
    rows = v.square().sum(3).flatten()
    assert torch.allclose(shares.double(), (columns / columns.sum() + rows / rows.sum()) / 2, atol=0.015)
    # Of any number per key, the weighted sum over the sample is that over all keys, on average.
    numbers = torch.linspace(1.0, 2.0, 30).double()
    assert float((log_weights.exp() * numbers[positions]).sum()) == pytest.approx(float(numbers.sum()), rel=0.05)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (reformer, {"is_causal": False, "bucket_size": 4, "num_hashes": 2}),
        (reformer, {"is_causal": True, "bucket_size": 4, "num_hashes": 2}),
        (kdeformer, {"is_causal": False, "block_size": 4, "sample_size": 5}),
    ],
)
def test_gradients_are_those_of_what_was_met(function: Function, parameters: dict[str, Any]) -> None:
    q, k, v, g = drawn(1, 2, 1, 11, 3)
    # Rows of the same norms as those of the identity, so that kdeformer draws the same keys with both.
    v = v / v.norm(dim=3, keepdim=True)
    shares = function(q, k, torch.eye(11).double().expand(1, 1, 11, 11), **parameters)
    # The weights are those of softmax with factors that do not depend on q, k and v but for what is met.
    factors = shares / probabilities(q, k, False)[0]

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = factors * (q @ repeated(k, q).transpose(2, 3) / math.sqrt(3)).exp()
        return weights / weights.sum(3, keepdim=True) @ repeated(v, q)

    same(partial(function, **parameters), dense, q, k, v, g)


@pytest.mark.parametrize("name", PEERS)
def test_half_precision_comes_back_and_is_near_what_float32_gives(name: str) -> None:
    method = registry.find(catalog.entries("method")[name]["_target_"])
    q, k, v = (x.to(torch.bfloat16) for x in drawn(1, 2, 1, 100, 16)[:3])
    half = method.function(q, k, v, is_causal=False)
    single = method.function(q.float(), k.float(), v.float(), is_causal=False)
    assert half.dtype == torch.bfloat16
    assert error(half.float(), single) < 0.05


@pytest.mark.parametrize("name", PEERS)
def test_a_seed_decides_the_draws_and_global_generators_none(name: str) -> None:
    method = registry.find(catalog.entries("method")[name]["_target_"])
    if "seed" not in method.defaults():
        return
    q, k, v, _ = drawn(1, 1, 1, 300, 8)
    state = torch.get_rng_state()
    one, same_seed, other = (method.function(q, k, v, is_causal=False, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same_seed)
    assert not torch.equal(one, other)


def test_operations_are_those_of_hyper_at_the_settings_that_the_docs_name() -> None:
    hyper = {"block_size": 256, "sample_size": 256, "min_seq_len": 1024, "sampling": "stratified"}
    settings: dict[str, dict[str, Any]] = {
        "hyper": hyper,
        "performer": {"num_features": 256},
        "nystrom": {"num_landmarks": 192, "pinv_iterations": 6},
        "reformer": {"bucket_size": 64, "num_hashes": 4},
        "kdeformer": {"block_size": 256, "sample_size": 256, "num_probes": 64},
        "efficient": {},
    }
    flops = {}
    for name, parameters in settings.items():
        method = registry.find(catalog.entries("method")[name]["_target_"])
        point = a_point(method=name, hyper=parameters, seq_len=8192, head_dim=64)
        flops[name] = method.executed_flops(point, Pass.FORWARD, False) or 0.0
        assert method.implementation("cpu").endswith("-cpu")
    for name in ("performer", "nystrom", "reformer", "kdeformer"):
        assert flops[name] == pytest.approx(flops["hyper"], rel=0.1)
    assert flops["efficient"] == flops["hyper"] / 8


def test_a_size_that_cannot_be_is_refused() -> None:
    for name, parameter in (("performer", "num_features"), ("reformer", "num_hashes"), ("kdeformer", "num_probes")):
        method = registry.find(catalog.entries("method")[name]["_target_"])
        with pytest.raises(ValueError, match=f"{parameter} must be an integer of at least 1, got 0"):
            method.check({parameter: 0})
