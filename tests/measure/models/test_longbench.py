"""LongBench: prompts that fit, answers that a model generates, lines that are broken, and their rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbench.config import longbench as benchmark
from hyperbench.measure.methods.exact import flash2
from hyperbench.measure.models import scoring
from hyperbench.measure.models.language_model import LanguageModel
from hyperbench.measure.models.tasks import example
from hyperbench.measure.models.tasks.longbench import prompt_tokens
from hyperbench.store.schema import Point
from tests.helpers.longbench_files import LINES, line, write
from tests.helpers.scored import scored
from tests.helpers.slow import slow
from tests.helpers.tiny_models import language_model

TASK = "hyperbench.measure.models.tasks.longbench.longbench"
SEQ_LEN = 300


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """A tiny Llama."""
    return language_model(max_position_embeddings=1024)


def params(folder: Path, dataset: str, **more: Any) -> dict[str, Any]:
    """The parameters of the task, as a run has them."""
    node = {
        "task": TASK,
        "data": str(folder),
        "dataset": dataset,
        "metrics": ["score", "prompt_tokens", "answer_tokens"],
    }
    return {**node, **benchmark.params_of(node), "model_layers": 3, **more}


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Exact attention."""
    return flash2(q, k, v, is_causal=True)


@pytest.mark.parametrize("family", ["llama", *slow("qwen2", "gpt_neox")])
def test_answers_are_those_that_transformers_generates(family: str) -> None:
    model = language_model(family)
    ids = [(7 * i * i + 3 * i) % 50 for i in range(90)]
    reading = model.read(ids, dict.fromkeys(range(3), exact), generates=True)
    tokens = torch.tensor([ids])
    found = model._model.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=20, pad_token_id=0
    )
    expected = tuple(found[0, len(ids) :].tolist())
    assert len(expected) == 20
    assert model.generate(reading, 20) == expected
    # A reading can be gone on from again, and ends before a token that ends it.
    assert model.generate(reading, 3) == expected[:3]
    assert model.generate(reading, 20, stop_at=[expected[5]]) == expected[: expected.index(expected[5])]
    first = model.generate(reading, 20, stop_at=[expected[0]], at_least=1)
    assert first
    assert first[0] != expected[0]


def test_answers_after_a_pass_that_begins_in_the_middle_are_those_of_the_whole_one() -> None:
    model = language_model()
    ids = [(7 * i * i + 3 * i) % 50 for i in range(90)]
    whole = model.read(ids, dict.fromkeys(range(3), exact), keep=[2], generates=True)
    zero = {2: lambda q, k, v, *, seed: torch.zeros_like(q)}
    expected = model.read(ids, {0: exact, 1: exact, **zero}, generates=True)
    found = model.read(ids, zero, after=whole, generates=True)
    assert model.generate(found, 8) == model.generate(expected, 8) != model.generate(whole, 8)


@pytest.mark.parametrize("dataset", LINES)
def test_a_prompt_is_whole_where_it_fits_and_loses_its_middle_elsewhere(
    model: LanguageModel, tmp_path: Path, dataset: str
) -> None:
    found = benchmark.datasets()[dataset]
    folder = write(tmp_path)
    given = json.loads(line(dataset, 1))
    prompt = found.prompt.format(context=given["context"], input=given["input"])
    whole = model.tokens(prompt)
    made = example(model, 900, params(folder, dataset), 1)
    assert made.ids == whole
    assert made.generates
    room = len(whole) - 100
    cut = example(model, room + found.answer_tokens, params(folder, dataset), 1)
    half = room // 2
    # The words around the cut become one, as text and then as tokens.
    assert cut.ids == model.tokens(model.text(whole[:half]) + model.text(whole[-half:]))
    assert len(cut.ids) == 2 * half - 1
    with pytest.raises(ValueError, match=f"has no room for a prompt and {found.answer_tokens} tokens of answer"):
        example(model, found.answer_tokens + 1, params(folder, dataset), 1)


class Chats:
    """A tokenizer with a chat template, of letters."""

    chat_template = "a template"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """A token for each letter; the first one marks the beginning."""
        return {"input_ids": [1] * add_special_tokens + [ord(char) for char in text]}

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of some tokens."""
        return "".join(chr(token) for token in ids if token != 1)

    def apply_chat_template(self, said: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        """What a user says, between marks."""
        assert (tokenize, add_generation_prompt) == (False, True)
        return f"<user>{said[0]['content']}</user>"


def test_a_chat_template_is_around_what_is_left_and_fits_as_well() -> None:
    model = language_model()
    model.tokenizer = Chats()
    text = "".join(chr(ord("a") + i % 26) for i in range(100))
    assert model.text(prompt_tokens(model, text, 200, chat=True) or ()) == f"<user>{text}</user>"
    assert prompt_tokens(model, text, 200, chat=False) == (1, *map(ord, text))
    # 13 letters are the template's, and one token of the first half marks the beginning.
    cut = model.text(prompt_tokens(model, text, 53, chat=True) or ())
    assert cut == f"<user>{text[:19]}{text[-20:]}</user>"
    assert len(prompt_tokens(model, text, 101, chat=True) or ()) <= 101
    assert prompt_tokens(model, text, 13, chat=True) is None


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ('{"input": "a"', "line 3 of hotpotqa.jsonl is no JSON"),
        ("[" * 100_000, "line 3 of hotpotqa.jsonl is no JSON"),
        ("[1, 2]", "line 3 of hotpotqa.jsonl holds no object"),
        (line("hotpotqa", context=None), "line 3 of hotpotqa.jsonl has no context"),
        (line("hotpotqa", answers=None), "line 3 of hotpotqa.jsonl has no answers"),
        (line("hotpotqa", answers=[]), "line 3 of hotpotqa.jsonl: its answers must be a list of texts, and not empty"),
        (line("hotpotqa", answers=[3]), "its answers must be a list of texts"),
        (line("hotpotqa", input=["a"]), "line 3 of hotpotqa.jsonl: its input must be text"),
        (
            line("hotpotqa").replace('"dataset": "', '"dataset": "\\u001b[2J'),
            r"line 3 of hotpotqa.jsonl is of another dataset: '\x1b[2Jhotpotqa'",
        ),
        (line("hotpotqa", context="\ud800"), "has half a character"),
        ("\udcff", "line 3 of hotpotqa.jsonl is no text in UTF-8"),
    ],
)
def test_a_broken_line_is_one_line_with_its_number(
    model: LanguageModel, tmp_path: Path, broken: str, told: str
) -> None:
    text = f"{line('hotpotqa')}\n\n{broken}\n{line('hotpotqa', 2)}\n"
    (tmp_path / "hotpotqa.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    given = params(tmp_path, "hotpotqa")
    assert given["examples"] == 3
    with pytest.raises(ValueError) as caught:
        example(model, SEQ_LEN, given, 1)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    for number in (0, 2):
        assert example(model, SEQ_LEN, given, number).ids
    with pytest.raises(ValueError, match=r"example 3 is beyond the end of hotpotqa\.jsonl, which has 3"):
        example(model, SEQ_LEN, given, 3)


def test_classes_are_needed_where_answers_are_classes(model: LanguageModel, tmp_path: Path) -> None:
    write(tmp_path, trec=line("trec", all_classes=None))
    with pytest.raises(ValueError, match=r"line 1 of trec\.jsonl: its all_classes must be a list of texts"):
        example(model, SEQ_LEN, params(tmp_path, "trec"), 0)


def test_a_file_that_is_changed_meanwhile_is_not_read(model: LanguageModel, tmp_path: Path) -> None:
    given = params(write(tmp_path), "hotpotqa")
    write(tmp_path, hotpotqa=line("hotpotqa", input="another"))
    with pytest.raises(ValueError, match="was changed since the run began"):
        example(model, SEQ_LEN, given, 0)


def points(folder: Path, dataset: str) -> tuple[Point, Point]:
    """Exact attention, and a method in the last two layers."""
    one = Point(
        "flash2", "hyperbench.measure.methods.exact.flash2", "cpu", "float32", True, 1, 4, 2, SEQ_LEN, 16,
        f"longbench/{dataset}", 0, {}, params(folder, dataset),
    )  # fmt: skip
    hyper = {"block_size": 4, "sample_size": 4, "min_seq_len": 8, "num_probes": 4, "seed": 0, "layers": "last 2"}
    return one, replace(one, method="hyper", target="hyperbench.measure.methods.hyper.hyper", hyper=hyper)


def test_each_example_is_rows_and_a_broken_one_tells_its_reason(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "model_of", lambda point: model)
    write(tmp_path, hotpotqa=f"{line('hotpotqa')}\n{{\n{line('hotpotqa', 2)}\n")
    both = points(tmp_path, "hotpotqa")
    rows, _ = scored(both, (0, 1, 2))
    for point in both:
        of = [row for row in rows if row.point == point]
        assert len(of) == 9
        broken = [row for row in of if row.seed == 1]
        assert {(row.status, row.value) for row in broken} == {("error", None)}
        assert all("line 2 of hotpotqa.jsonl is no JSON" in row.message for row in broken)
        good = {(row.seed, row.metric): row for row in of if row.seed != 1}
        assert good[0, "score"].message.startswith("answer: ")
        assert 0 < (good[0, "answer_tokens"].value or 0) <= 32
        assert good[0, "prompt_tokens"].value == SEQ_LEN - 32 - 1


def test_a_model_that_answers_right_scores_and_its_answer_is_told_without_control_characters(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "model_of", lambda point: model)
    monkeypatch.setattr(model, "text", lambda ids: "\x1b[31mBoris\n\u202e")
    rows, _ = scored(points(write(tmp_path), "hotpotqa")[:1], (0,))
    (found,) = (row for row in rows if row.metric == "score")
    # "x1b31mboris" is another word than "boris": nothing of an answer is lost.
    assert found.value == 0.0
    assert found.message == r"answer: \x1b[31mBoris\n\u202e"
    monkeypatch.setattr(model, "text", lambda ids: "It is Boris")
    rows, _ = scored(points(tmp_path, "hotpotqa")[:1], (0,))
    assert [row.value for row in rows if row.metric == "score"] == pytest.approx([50.0])
