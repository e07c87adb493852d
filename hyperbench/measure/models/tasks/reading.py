"""Tasks of reading: the perplexity of a text, and that of one that comes again after as much of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperbench.measure.models.language_model import LanguageModel, Reading
from hyperbench.measure.models.tasks.example import Example, Scores, piece_of


def perplexity(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """Mean loss over a piece of a text (natural logarithm; its exponential is the perplexity), and over its thirds."""
    ids = piece_of(model, params, seq_len, number)

    def score(reading: Reading) -> Scores:
        losses = model.losses(reading, ids)
        early, middle, late = (float(part.mean()) for part in losses.tensor_split(3))
        return {"loss": float(losses.mean()), "loss_early": early, "loss_middle": middle, "loss_late": late}

    return Example(ids, score)


def copy(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """A quarter of the tokens, half of them as filler, and the first quarter again: the mean loss of each part.

    A model that attends exactly knows the second reading by heart; an approximation has to find the keys that matter.
    """
    quarter = seq_len // 4
    once = piece_of(model, params, seq_len, number)
    ids = (*once[: seq_len - quarter], *once[:quarter])

    def score(reading: Reading) -> Scores:
        losses, second = model.losses(reading, ids), seq_len - quarter
        return {
            "loss_first": float(losses[: quarter - 1].mean()),
            "loss_between": float(losses[quarter - 1 : second - 1].mean()),
            # The first token of it cannot be known.
            "loss_second": float(losses[second:].mean()),
        }

    return Example(ids, score)
