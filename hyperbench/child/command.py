"""Command lines and environments of child processes: the parent's packages, and no code of the current folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from hyperbench.child.code import package_files

_START = str(Path(__file__).resolve().with_name("start.py"))


def python(*words: str) -> list[str]:
    """The command line of a Python that sees what this one sees, but for the current folder or a script's own."""
    flags = {"-E": sys.flags.ignore_environment, "-s": sys.flags.no_user_site}
    return [sys.executable, "-P", *(flag for flag, is_set in flags.items() if is_set), *words]


def module(name: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this process's own hyperbench; the child dies with this process."""
    places = {package: str(Path(file).parent) for package, file in package_files().items()}
    return python(_START, str(os.getpid()), json.dumps(places), name, *arguments)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: that of this process and some more variables.

    Entries of PYTHONPATH that stand for the current folder, such as the empty one in `PYTHONPATH=:/some/folder`, are
    left out; a folder that is named in full stays.
    """
    found = {**os.environ, **(more or {})}
    folders = found.pop("PYTHONPATH", "").split(os.pathsep)
    kept = [folder for folder in folders if os.path.isabs(folder) or os.path.realpath(folder) != os.getcwd()]
    if kept:
        found["PYTHONPATH"] = os.pathsep.join(kept)
    return found
