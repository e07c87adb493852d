"""Tasks of finding: a fact hidden in a text, whose word is to be more likely than others where it is asked for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from hyperbench.measure.models.language_model import LanguageModel, Reading
from hyperbench.measure.models.tasks.example import Example, Scores, piece_of

#: Words that may be hidden; those that the tokenizer knows as one token are used, so many at a time.
_WORDS = (
    "apple", "bridge", "candle", "dragon", "eagle", "forest", "garden", "hammer", "island", "jacket", "kitchen",
    "ladder", "mirror", "needle", "ocean", "pencil", "rabbit", "silver", "tiger", "umbrella", "valley", "window",
    "butter", "castle", "desert", "engine", "feather", "guitar", "honey", "iron", "jungle", "lemon", "marble", "orange",
    "planet", "river", "shadow", "temple", "velvet", "winter",
)  # fmt: skip
_CANDIDATES = 16
_NAMES = ("Alice", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry")


def passkey(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """One word told once, at one of the depths, and asked for at the end."""
    draw = random.Random(f"passkey {number}")
    words = _drawn(model, draw)
    facts = [(_depth(params, number), f"\nThe secret word is {words[0]}. Remember it.\n")]
    return _hidden(model, seq_len, params, number, facts, "\nWhat is the secret word? The secret word is", words)


def key_value(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """A word for each of eight names, told all over the text; that of one name, told at one of the depths, is asked."""
    draw = random.Random(f"key_value {number}")
    words, names = _drawn(model, draw), draw.sample(_NAMES, len(_NAMES))
    places = [_depth(params, number), *(i / (len(names) - 1) for i in range(len(names) - 1))]
    facts = [
        (place, f"\nThe word of {name} is {word}.\n")
        for place, name, word in zip(places, names, words[: len(names)], strict=True)
    ]
    return _hidden(model, seq_len, params, number, facts, f"\nThe word of {names[0]} is", words)


def variable_tracking(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """A word for one name at one of the depths; two names further on that each have the word of the one before.

    Asked is the word of the last name. Another such chain, with another word, lies between.
    """
    draw = random.Random(f"variable_tracking {number}")
    words, names = _drawn(model, draw), draw.sample(_NAMES, 6)
    depth, facts = _depth(params, number), []
    for chain, word, shift in ((names[:3], words[0], 0.0), (names[3:], words[1], 0.02)):
        place = min(depth + shift, 1.0)
        facts.append((place, f"\nThe word of {chain[0]} is {word}.\n"))
        for i, (before, name) in enumerate(itertools.pairwise(chain), start=1):
            facts.append((place + (1.0 - place) * i / 3, f"\nThe word of {name} is the word of {before}.\n"))
    return _hidden(model, seq_len, params, number, facts, f"\nSo the word of {names[2]} is", words)


def _hidden(
    model: LanguageModel,
    seq_len: int,
    params: Mapping[str, Any],
    number: int,
    facts: Sequence[tuple[float, str]],
    question: str,
    words: Sequence[str],
) -> Example:
    """Facts at their places in a text with the question at its end; the first of the words is the answer.

    Scores: `correct` is 1 where it is the likeliest of the words, `rank` its place among them, the best being 1, and
    `margin` the logarithm of its probability over that of the likeliest other one.
    """
    asked = model.tokens(question)
    told = [(place, model.tokens(text)) for place, text in sorted(facts)]
    room = seq_len - len(asked) - sum(len(ids) for _, ids in told)
    if room < 1:
        raise ValueError(f"shape.seq_len={seq_len} has no room for the facts and the question of this task")
    filler, ids, done = piece_of(model, params, room, number), [], 0
    for place, fact in told:
        until = round(place * room)
        ids += [*filler[done:until], *fact]
        done = until
    ids += [*filler[done:], *asked]
    candidates = [model.tokens(f" {word}")[0] for word in words]

    def score(reading: Reading) -> Scores:
        likely = model.next_token(reading)[candidates]
        rank = 1 + int((likely[1:] >= likely[0]).sum())
        margin = float(likely[0] - likely[1:].max())
        return {"correct": float(rank == 1), "rank": float(rank), "margin": margin}

    return Example(tuple(ids), score)


def _depth(params: Mapping[str, Any], number: int) -> float:
    depths = params["depths"]
    return float(depths[number % len(depths)])


def _drawn(model: LanguageModel, draw: random.Random) -> list[str]:
    """Words in a random order, each of which is one token after a space. Raises ValueError where these are too few."""
    single = [word for word in _WORDS if len(model.tokens(f" {word}")) == 1]
    if len(single) < _CANDIDATES:
        raise ValueError(
            f"the tokenizer of {model.name} has a token of its own for {len(single)} words; {_CANDIDATES} are needed"
        )
    return draw.sample(single, _CANDIDATES)
