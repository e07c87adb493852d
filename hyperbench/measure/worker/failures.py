"""Statuses and messages of the rows of code that raised an exception."""

from __future__ import annotations

import torch

from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.store.schema import Status

_OOM_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory")
_MESSAGE_CHARS = 300


def classify(error: Exception) -> tuple[Status, str]:
    """The status and the one-line message of a failed call."""
    # Half of a surrogate pair, as in the name of a file that is no text, is nothing that a table can hold.
    text = " ".join(str(error).encode(errors="replace").decode().split()) or "no message"
    if isinstance(error, IncorrectError):
        return Status.INCORRECT, text
    if isinstance(error, NotImplementedError):
        return Status.UNSUPPORTED, text[:_MESSAGE_CHARS]
    message = f"{type(error).__name__}: {text}"[:_MESSAGE_CHARS]
    ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if ran_out or any(word in text.lower() for word in _OOM_WORDS):
        return Status.OOM, message
    return Status.ERROR, message


def poisons_device(status: Status, device: str) -> bool:
    """True if the process must not be trusted after such a failure: an error on CUDA may break all later calls."""
    return device == "cuda" and status is Status.ERROR
