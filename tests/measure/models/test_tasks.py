"""Examples of tasks: their tokens, and the scores of a model that knows the answer or does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hyperbench.config.catalog import entries
from hyperbench.measure.models import texts
from hyperbench.measure.models.language_model import LanguageModel, Reading
from hyperbench.measure.models.tasks import example, facts
from hyperbench.measure.models.tasks import example as make
from tests.helpers.tiny_models import language_model

DEPTHS = [0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A tiny Llama."""
    return language_model()


def params(task: str, **more: Any) -> dict[str, Any]:
    """The parameters of a task."""
    return {**entries("input")[task], "depths": DEPTHS, **more}


def nothing(*_: object) -> None:
    """A task that makes no example."""


def knows(model: LanguageModel, token: int) -> Reading:
    """A pass after which a token is the likeliest one."""
    hidden = torch.zeros(8, 64)
    hidden[-1] = model._head.weight[token] * 100
    return Reading(hidden, {}, None)


@pytest.mark.parametrize("task", ["perplexity", "copy", "passkey", "key_value", "variable_tracking"])
def test_an_example_has_its_length_and_is_the_same_for_a_number(model: LanguageModel, task: str) -> None:
    one, same, other = (make(model, 400, params(task), number) for number in (1, 1, 2))
    assert len(one.ids) == 400
    assert one.ids == same.ids
    assert one.ids != other.ids


def test_a_text_that_is_too_short_is_one_line(model: LanguageModel, tmp_path: Any) -> None:
    (tmp_path / "short.txt").write_text("one two three")
    with pytest.raises(ValueError, match=r"example 0 needs 50 tokens of short\.txt, which has 3"):
        example(model, 50, params("perplexity", text=str(tmp_path / "short.txt")), 0)
    with pytest.raises(ValueError, match="has no room for the facts"):
        example(model, 20, params("key_value"), 0)


def test_texts_are_taken_in_turns_and_piece_after_piece(model: LanguageModel) -> None:
    pieces = [make(model, 100, params("perplexity"), number).ids for number in range(6)]
    for number, text in enumerate(texts.shipped_texts()):
        ids = model.tokens(text.text[:100_000])
        assert pieces[number] == ids[:100]
        assert pieces[number + 3] == ids[100:200]


def test_perplexity_is_of_all_tokens_and_of_their_thirds(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(model, 100, params("perplexity"), 0)
    monkeypatch.setattr(model, "losses", lambda reading, ids: torch.arange(float(len(ids) - 1)))
    assert made.score(knows(model, 0)) == {"loss": 49.0, "loss_early": 16.0, "loss_middle": 49.0, "loss_late": 82.0}


def test_a_copy_is_read_again_in_the_last_quarter(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(model, 100, params("copy"), 0)
    assert made.ids[:25] == made.ids[75:]
    monkeypatch.setattr(model, "losses", lambda reading, ids: torch.arange(float(len(ids) - 1)))
    # The loss of token t has place t - 1; the first reading is of tokens 1 to 24, the second of 76 to 99.
    assert made.score(knows(model, 0)) == {"loss_first": 11.5, "loss_between": 48.5, "loss_second": 86.5}


@pytest.mark.parametrize("task", ["passkey", "key_value", "variable_tracking"])
@pytest.mark.parametrize("number", range(3))
def test_a_fact_lies_at_its_depth_and_its_word_is_the_answer(model: LanguageModel, task: str, number: int) -> None:
    made = make(model, 400, params(task), number)
    known = {token: word for word, token in model.tokenizer.known.items()}
    words = [known[token] for token in made.ids]
    # A model that knows the word is surest of it; some of the words are no candidates.
    answer = max(facts._WORDS, key=lambda word: made.score(knows(model, model.tokenizer.known[word]))["margin"])
    place = words.index(answer)
    if task == "passkey":
        assert words.count(answer) == 1
        assert words[place - 4 : place] == ["The", "secret", "word", "is"]
    else:
        name = words[place - 2]
        asked = words[-2]
        assert words[-3:-1] == ["of", asked] if task == "key_value" else True
        assert (name == asked) == (task == "key_value")
    depth = place / len(words)
    assert depth == pytest.approx(DEPTHS[number], abs=0.25 if task == "variable_tracking" else 0.12)


def test_a_wrong_word_has_a_rank_and_a_negative_margin(model: LanguageModel) -> None:
    made = make(model, 400, params("passkey"), 0)
    known = model.tokenizer.known
    right = next(w for w in facts._WORDS if made.score(knows(model, known[w]))["correct"])
    wrong = next(w for w in facts._WORDS if w != right and made.score(knows(model, known[w]))["rank"] > 1)
    assert made.score(knows(model, known[right]))["rank"] == 1
    assert made.score(knows(model, known[right]))["margin"] > 0
    assert made.score(knows(model, known[wrong]))["margin"] < 0


def test_a_tokenizer_without_such_words_is_one_line(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "tokens", lambda text: (1, 2))
    with pytest.raises(ValueError, match="has a token of its own for 0 words; 16 are needed"):
        make(model, 400, params("passkey"), 0)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("no_such_module.task", "input.task=no_such_module.task cannot be imported"),
        ("hyperbench.measure.models.tasks.facts._CANDIDATES", "is a int, not a function"),
        (f"{__name__}.nothing", "must return an Example, not a NoneType"),
    ],
)
def test_a_task_that_is_no_function_of_an_example_is_one_line(model: LanguageModel, task: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make(model, 400, {"task": task}, 0)
