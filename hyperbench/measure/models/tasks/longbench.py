"""LongBench: a prompt from a line of its files, the answer that a model generates to it, and the answer's score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hyperbench.config import longbench as benchmark
from hyperbench.config.longbench import CHAT, DATASET, Dataset
from hyperbench.measure.models.language_model import LanguageModel, Reading
from hyperbench.measure.models.tasks import answers
from hyperbench.measure.models.tasks.example import Example, Scores

_BOM = b"\xef\xbb\xbf"
_SHOWN = 40


def longbench(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """A question of a dataset; its prompt and its answer have `seq_len` tokens at most.

    Raises ValueError, one line, on a line that is broken or missing, and where the prompt has no room.
    """
    name = str(params[DATASET])
    dataset = benchmark.datasets()[name]
    place, raw = benchmark.line(params, number)
    where = f"line {place} of {name}.jsonl"
    given = fields(raw, where, name, dataset)
    prompt = dataset.prompt.format(context=given["context"], input=given["input"])
    room = seq_len - dataset.answer_tokens
    chat = dataset.chat and bool(params.get(CHAT, True))
    ids = prompt_tokens(model, prompt, room, chat=chat)
    if ids is None:
        raise ValueError(
            f"shape.seq_len={seq_len} has no room for a prompt and {dataset.answer_tokens} tokens of answer"
        )
    breaks = model.tokens("\n")[-1:] if dataset.stop_at_line else ()

    def score(reading: Reading) -> Scores:
        found = model.generate(reading, dataset.answer_tokens, stop_at=breaks, at_least=len(breaks))
        answer = model.text(found)
        value = answers.score(dataset, answer, given["answers"], given["all_classes"])
        return {
            "score": (value, f"answer: {_printable(answer)}"),
            "prompt_tokens": float(len(ids)),
            "answer_tokens": float(len(found)),
        }

    return Example(ids, score, generates=True)


def fields(raw: bytes, where: str, name: str, dataset: Dataset) -> dict[str, Any]:
    """The fields of a line that are used. Raises ValueError, one line that says where, on one that is broken."""
    try:
        data = json.loads(raw.removeprefix(_BOM).decode())
    except UnicodeDecodeError:
        raise ValueError(f"{where} is no text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{where} holds no object with input, context and answers")
    if data.get("dataset", name) != name:
        raise ValueError(f"{where} is of another dataset: {str(data['dataset'])[:_SHOWN]!r}")
    lists = ("answers", "all_classes") if dataset.metric == "classification" else ("answers",)
    for key in ("input", "context", *lists):
        if key not in data:
            raise ValueError(f"{where} has no {key}")
        texts = data[key] if key in lists else [data[key]]
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            kind = "a list of texts, and not empty" if key in lists else "text"
            raise ValueError(f"{where}: its {key} must be {kind}")
        if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
            raise ValueError(f"{where}: its {key} has half a character (a lone surrogate)")
    return {"all_classes": (), **{key: data[key] for key in ("input", "context", *lists)}}


def prompt_tokens(model: LanguageModel, prompt: str, room: int, *, chat: bool) -> tuple[int, ...] | None:
    """The tokens of a prompt, at most `room`; its middle is left out where it is longer. None if nothing is left.

    As published: the first and the last half of its tokens as text, in the chat template of the model, once more as
    tokens. There these may be more again; here as many fewer are taken.
    """
    whole = model.encoded(prompt)
    most = room
    while most >= 2:
        half = most // 2
        kept = prompt if len(whole) <= most else model.text(whole[:half]) + model.text(whole[-half:])
        ids = model.encoded(kept, chat=chat)
        if len(ids) <= room:
            return ids
        most = min(most, len(whole)) - (len(ids) - room)
    return None


def _printable(text: str) -> str:
    """A text on one line; what a terminal would act on is written as Python writes it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
