"""An example of a task: its tokens, and the scores of a pass over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperbench.measure.models.language_model import LanguageModel, Reading
from hyperbench.measure.models.texts import TOKEN_CHARS, read_text, shipped_texts

#: Metric -> value, or the value and a message for its row.
Scores = dict[str, float | tuple[float, str]]


@dataclass(frozen=True)
class Example:
    """Tokens for the model, and `score`, which gives the scores of a pass over them.

    Where it `generates`, the pass keeps keys and values.
    """

    ids: tuple[int, ...]
    score: Callable[[Reading], Scores]
    generates: bool = False


def piece_of(model: LanguageModel, params: Mapping[str, Any], length: int, number: int) -> tuple[int, ...]:
    """So many tokens of the text of a task: texts in turns, and of each one piece after the other.

    Raises ValueError where a text is too short.
    """
    given = params.get("text")
    texts = shipped_texts() if given is None else (read_text(given),)
    text, place = texts[number % len(texts)], number // len(texts)
    needed = (place + 1) * length
    # Tokens depend on what is near them: those of a part are the first ones of the whole.
    ids = model.tokens(text.text[: needed * TOKEN_CHARS])
    if len(ids) < needed:
        raise ValueError(f"example {number} needs {needed:,} tokens of {text.name}, which has {len(ids):,}")
    return ids[needed - length : needed]
