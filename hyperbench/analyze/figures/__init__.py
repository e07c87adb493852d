"""One file a figure, here or in a folder below; each is found by its name.

A figure is a module with a docstring, whose first line describes it, and a function
`build(view: View) -> plotly.graph_objects.Figure` that raises DoesNotFitError where the run does not fit it.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperbench.config.catalog import nearest

_FOLDER = Path(__file__).parent


def available() -> dict[str, str]:
    """The name of every figure with one line on what it shows; no figure is imported."""
    found = {}
    for path in sorted(_FOLDER.rglob("[!_]*.py"), key=lambda path: path.stem):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = doc.partition("\n")[0].strip()
    return found


def builder(name: str) -> Callable[[Any], Any]:
    """The `build` function of a figure. Raises ValueError on an unknown name, with the nearest one."""
    names = available()
    if name not in names:
        raise ValueError(f"unknown figure {name!r}; allowed: {', '.join(names)}{nearest(name, names)}")
    (path,) = _FOLDER.rglob(f"{name}.py")
    parts = path.relative_to(_FOLDER).with_suffix("").parts
    build: Callable[[Any], Any] = importlib.import_module(".".join([__name__, *parts])).build
    return build
