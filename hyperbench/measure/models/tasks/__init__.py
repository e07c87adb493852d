"""One file for tasks that are alike; `example` makes any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperbench.measure.models.language_model import LanguageModel
from hyperbench.measure.models.tasks import facts, reading
from hyperbench.measure.models.tasks.example import Example
from hyperbench.store.schema import TASK

_MAKERS = {
    "perplexity": reading.perplexity,
    "copy": reading.copy,
    "passkey": facts.passkey,
    "key_value": facts.key_value,
    "variable_tracking": facts.variable_tracking,
}


def example(model: LanguageModel, seq_len: int, params: Mapping[str, Any], number: int) -> Example:
    """An example of a task, the same for a number, of `seq_len` tokens. Raises ValueError, one line, if it has none."""
    return _MAKERS[str(params[TASK])](model, seq_len, params, number)
