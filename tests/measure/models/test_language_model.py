"""A language model taken apart: passes that begin in the middle, losses, and what cannot be taken apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperbench.measure.methods.exact import flash2
from hyperbench.measure.models.language_model import LanguageModel
from hyperbench.measure.models.load import Loaded
from tests.helpers.slow import slow
from tests.helpers.tiny_models import Words, language_model, tiny

IDS = [(7 * i * i + 3 * i) % 50 for i in range(90)]


def exact(q: Tensor, k: Tensor, v: Tensor, *, seed: int) -> Tensor:
    """Exact attention."""
    return flash2(q, k, v, is_causal=True)


def zero(q: Tensor, k: Tensor, v: Tensor, *, seed: int) -> Tensor:
    """Attention to nothing."""
    return torch.zeros_like(q)


@pytest.mark.parametrize("family", ["llama", *slow("qwen2", "gpt_neox")])
def test_losses_are_those_of_the_model(family: str) -> None:
    model = language_model(family)
    reading = model.read(IDS, dict.fromkeys(range(3), exact))
    with torch.no_grad():
        logits = model._model(torch.tensor([IDS]), use_cache=False).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(IDS[1:]), reduction="none")
    torch.testing.assert_close(model.losses(reading, IDS), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.next_token(reading), logits[-1].log_softmax(-1), rtol=1e-4, atol=1e-4)
    assert sorted(reading.attention_ms) == [0, 1, 2]
    assert reading.forward_ms is not None
    assert reading.forward_ms > sum(reading.attention_ms.values()) > 0


@pytest.mark.parametrize("start", [1, 2])
def test_a_pass_that_begins_in_the_middle_is_the_whole_one(start: int) -> None:
    model = language_model()
    whole = model.read(IDS, dict.fromkeys(range(3), exact), keep=[1, 2])
    ways = {i: zero if i == start else exact for i in range(3)}
    expected = model.read(IDS, ways)
    found = model.read(IDS, {i: way for i, way in ways.items() if i >= start}, after=whole)
    assert torch.equal(found.hidden, expected.hidden)
    assert not torch.allclose(found.hidden, whole.hidden, rtol=1e-2, atol=1e-2)
    assert sorted(found.attention_ms) == list(range(start, 3))
    assert found.forward_ms is None
    again = model.read(IDS, dict.fromkeys(range(3), exact))
    assert torch.equal(again.hidden, whole.hidden)


def test_another_scale_is_that_of_the_model() -> None:
    model = language_model()
    for module in model._model.modules():
        if hasattr(module, "scaling"):
            module.scaling = 0.3
    reading = model.read(IDS, dict.fromkeys(range(3), exact))
    with torch.no_grad():
        expected = model._model.base_model(torch.tensor([IDS]), use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(reading.hidden, expected, rtol=1e-3, atol=1e-3)


def test_a_sliding_window_is_refused_and_not_ignored() -> None:
    model = language_model("mistral")
    with pytest.raises(ValueError, match="a sliding window of 40"):
        model.read(IDS, dict.fromkeys(range(3), exact))


def test_logits_that_are_scaled_after_the_head_are_refused() -> None:
    model = tiny("llama")
    before = model.forward

    def scaled(*words: object, **more: object) -> object:
        out = before(*words, **more)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    with pytest.raises(ValueError, match="scaled or capped"):
        LanguageModel(Loaded(model, Words(), "tiny", ""))
