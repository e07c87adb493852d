"""One file for tasks that are alike; `example` makes any of them, by the function that its YAML file names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperbench.measure.methods.method import imported
from hyperbench.measure.models.language_model import LanguageModel
from hyperbench.measure.models.tasks.example import Example
from hyperbench.store.schema import TASK


def example(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """An example of a task, the same for a number, of `seq_len` tokens. Raises ValueError, one line, if it has none."""
    made = imported(str(params[TASK]), f"input.{TASK}")(model, seq_len, params, number)
    if not isinstance(made, Example):
        raise ValueError(f"input.{TASK}={params[TASK]} must return an Example, not a {type(made).__name__}")
    return made
