"""Folders as they are named on a command line; `~` is expanded here, once, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from hyperbench.config.catalog import ConfigError


def folder(text: str) -> Path:
    """The folder that a text names, `~` being the home folder. Raises ConfigError on the home of an unknown user."""
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        name = text.partition("/")[0]
        raise ConfigError(f"{text!r}: there is no home folder {name}; a folder of that name here is ./{text}")
    if "\0" in text:
        raise ConfigError(f"{text!r} is no path: it has a null character")
    path = Path(expanded)
    # pathlib leaves out the dot of ./~name, and others would then expand it again.
    return path.absolute() if str(path).startswith("~") else path
