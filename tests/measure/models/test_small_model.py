"""The small model that a package brings: its losses, its attention patched, facts that it finds, its answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams
from hyperattn_core.transformers import patched
from hyperbench.config.catalog import entries
from hyperbench.measure.methods.exact import flash2
from hyperbench.measure.models.language_model import LanguageModel, loaded_model
from hyperbench.measure.models.load import small_model
from hyperbench.measure.models.tasks import example

pytestmark = pytest.mark.slow
LENGTH = 512


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """The small model, where its package is installed."""
    try:
        small_model()
    except ValueError as error:
        pytest.skip(str(error))
    return loaded_model(None, None, "float32", "cpu")


def exact(q: Tensor, k: Tensor, v: Tensor, *, seed: int) -> Tensor:
    """Exact attention."""
    return flash2(q, k, v, is_causal=True)


def test_the_loss_of_a_text_is_that_of_transformers(model: LanguageModel) -> None:
    made = example(model, LENGTH, entries("input")["perplexity"], 0)
    reading = model.read(made.ids, dict.fromkeys(range(model.num_layers), exact))
    ids = torch.tensor([made.ids])
    with torch.no_grad():
        expected = float(model._model(ids, labels=ids).loss)
    # Help topics of Python, which a model of English and code knows something of; a wrong head would give 10.8.
    assert 1.0 < expected < 5.0
    assert made.score(reading)["loss"] == pytest.approx(expected, abs=1e-4)


def test_blocks_that_hold_every_key_give_the_logits_of_exact_attention(model: LanguageModel) -> None:
    ids = torch.tensor([example(model, LENGTH, entries("input")["perplexity"], 0).ids])
    with torch.no_grad():
        expected = model._model(ids).logits
        with patched(
            model._model, params=HyperAttentionParams(block_size=LENGTH, min_seq_len=64), strict=True
        ) as patch:
            found = model._model(ids).logits
        again = model._model(ids).logits
    assert patch.calls == {layer: {"hyper": 1} for layer in range(model.num_layers)}
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)
    assert torch.equal(again, expected)


def test_a_word_is_found_in_a_short_text(model: LanguageModel) -> None:
    found = []
    for number in range(3):
        made = example(model, LENGTH, entries("input")["passkey"], number)
        found.append(made.score(model.read(made.ids, dict.fromkeys(range(model.num_layers), exact)))["correct"])
    assert found == [1.0] * 3


def test_a_question_is_answered_as_transformers_answers_it(model: LanguageModel) -> None:
    ids = model.encoded("What is the capital of France?", chat=True)
    tokens = torch.tensor([ids])
    expected = model._model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=16, pad_token_id=0
    )[0, len(ids) :]
    reading = model.read(ids, dict.fromkeys(range(model.num_layers), exact), generates=True)
    answer = model.generate(reading, 16)
    # Unlike here, the token that ends it stands at its end there.
    assert list(answer) == expected[: len(answer)].tolist()
    assert "Paris" in model.text(answer)
