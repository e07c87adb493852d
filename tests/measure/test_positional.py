"""Inputs with positions: what is near and what comes first draws the attention, so that local methods can be judged."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.config import catalog
from hyperbench.measure.inputs import check_params, make_inputs
from hyperbench.measure.inputs.positional import rotated
from hyperbench.store.schema import Point
from tests.helpers.brute_force import probabilities
from tests.helpers.made_records import a_point

SEQ_LEN = 768
WINDOW = 64


def point(*, is_causal: bool = True, **params: Any) -> Point:
    """A point on this input, with the shipped parameters but for these."""
    node = catalog.entries("input")["positional"]
    shipped = {key: value for key, value in node.items() if key not in ("name", "description")}
    sizes = {"heads": 4, "kv_heads": 2, "seq_len": SEQ_LEN, "head_dim": 64, "is_causal": is_causal}
    return a_point(input="positional", input_params=shipped | params, **sizes)


def attention(made: Point) -> tuple[Tensor, Tensor]:
    """The probabilities (H, N, N) and the values of each query head (H, N, D), in float64."""
    q, k, v = (x.double() for x in make_inputs(made))
    return probabilities(q, k, made.is_causal)[0][0], v.repeat_interleave(2, dim=1)[0]


def error(probs: Tensor, v: Tensor, kept: Tensor) -> float:
    """The relative Frobenius error of attention to the keys that are kept (N, N), from the second eighth on."""
    exact, some = probs @ v, probs * kept
    answer = some / some.sum(2, keepdim=True).clamp_min(1e-30) @ v
    rows = slice(SEQ_LEN // 8, None)
    return float((answer - exact)[:, rows].norm() / exact[:, rows].norm())


def masks(is_causal: bool) -> dict[str, Tensor]:
    """The keys of each query: a window, the first four, both, and as many random ones as both."""
    positions = torch.arange(SEQ_LEN)
    distance = positions.unsqueeze(1) - positions
    seen = distance >= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
    window = seen & (distance.abs() < (WINDOW if is_causal else WINDOW // 2))
    sinks = seen & (positions < 4)
    noise = torch.rand(SEQ_LEN, SEQ_LEN, generator=torch.Generator().manual_seed(0)).masked_fill(~seen, -1.0)
    random = torch.zeros_like(seen).scatter(1, noise.topk(WINDOW + 4, dim=1).indices, True) & seen
    return {"window": window, "sinks": sinks, "window and sinks": window | sinks, "random": random}


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_window_with_sinks_beats_random_keys_and_each_of_its_parts(is_causal: bool) -> None:
    probs, v = attention(point(is_causal=is_causal))
    errors = {name: error(probs, v, kept) for name, kept in masks(is_causal).items()}
    assert errors["window and sinks"] < 0.4
    assert errors["window and sinks"] < 0.6 * errors["random"]
    assert errors["window and sinks"] < 0.7 * errors["window"]
    assert errors["window and sinks"] < 0.5 * errors["sinks"]


def test_sinks_draw_a_good_part_of_the_attention_at_any_distance() -> None:
    probs, _ = attention(point())
    mass = probs[:, :, :4].sum(2)
    near, far = mass[:, 64:128].mean(), mass[:, -64:].mean()
    assert 0.15 < float(far) < 0.7
    assert float(near) == pytest.approx(float(far), abs=0.2)
    weak, _ = attention(point(sink_strength=0.0))
    assert float(weak[:, -64:, :4].sum(2).mean()) < 0.02


def test_attention_falls_with_the_distance_and_more_so_with_more_local_strength() -> None:
    shares = []
    for strength in (0.5, 1.0, 1.5):
        probs, _ = attention(point(local_strength=strength, sink_strength=0.0))
        last = probs[:, -128:]
        at = [last.diagonal(SEQ_LEN - 128 - d, dim1=1, dim2=2) for d in (1, 8, 64, 512)]
        by_distance = [float(x.log().mean()) for x in at]
        assert by_distance == sorted(by_distance, reverse=True)
        shares.append(by_distance[0] - by_distance[2])
    assert shares == sorted(shares)


def test_without_structure_nothing_is_local() -> None:
    probs, _ = attention(point(local_strength=0.0))
    assert float(probs[:, -1].max()) < 10 / SEQ_LEN


def test_rotary_embedding_keeps_lengths_and_tells_distances_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    for head_dim in (1, 2, 5, 64):
        one, other = torch.randn(2, head_dim, generator=generator)
        q, k = (rotated(x.expand(1, 1, 50, head_dim), 10_000.0)[0, 0] for x in (one, other))
        assert torch.allclose(q.norm(dim=1), one.norm().expand(50), rtol=1e-5)
        logits = q @ k.T
        assert torch.allclose(logits[10:, 10:], logits[:-10, :-10], atol=1e-4)
    x = torch.tensor([1.0, 0.0]).expand(1, 1, 3, 2)
    expected = torch.tensor([[math.cos(t), math.sin(t)] for t in range(3)])
    assert torch.allclose(rotated(x, 10_000.0)[0, 0], expected)


def test_any_shape_is_made_and_a_base_without_slow_frequencies_is_refused() -> None:
    params = point().input_params
    for seq_len, head_dim in ((1, 1), (3, 2), (7, 5), (65, 4)):
        made = a_point(input="positional", input_params=params, seq_len=seq_len, head_dim=head_dim)
        assert all(bool(x.isfinite().all()) for x in make_inputs(made))
    with pytest.raises(ValueError, match=r"input\.rope_theta=1\.0 must be above 1"):
        check_params("positional", {**params, "rope_theta": 1.0})
