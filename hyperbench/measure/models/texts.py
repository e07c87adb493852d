"""Texts to run a model on: a file, or the one that ships with Python."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: More characters than this for each token that is wanted are not given to a tokenizer.
TOKEN_CHARS = 32
_SOURCES = ("argparse", "typing")


@dataclass(frozen=True)
class Text:
    """A text, what to call it, and what is known of its licence."""

    text: str
    name: str
    licence: str

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_text(file: str | None) -> Text:
    """The text of a file in UTF-8; None is that of Python's own help. Raises ValueError, one line."""
    if file is None:
        return python_help()
    path = Path(file).expanduser()
    try:
        return Text(path.read_text(encoding="utf-8"), path.name, "")
    except OSError as error:
        raise ValueError(f"--text {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--text {file} is no text in UTF-8") from None


def python_help() -> Text:
    """The topics of Python's help: about 700 kB of English with some code."""
    from pydoc_data.topics import topics

    name = f"help topics of Python {platform.python_version()} (pydoc_data.topics)"
    return Text("\n\n".join(topics[key] for key in sorted(topics)), name, "text: PSF-2.0 (Python's documentation)")


@cache
def shipped_texts() -> tuple[Text, ...]:
    """Texts that ship with every Python: its help, and the sources of two modules, comments and all."""
    sources = []
    for name in _SOURCES:
        source = inspect.getsource(importlib.import_module(name))
        told = f"{name}.py of Python {platform.python_version()}"
        sources.append(Text(source, told, "text: PSF-2.0 (Python's standard library)"))
    return (python_help(), *sources)
