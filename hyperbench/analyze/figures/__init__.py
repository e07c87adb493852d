"""One file a figure; each is found by its name.

A figure is a module of this package with a docstring, whose first line describes it, and a function
`build(view: View) -> plotly.graph_objects.Figure` that raises DoesNotFitError where the run does not fit it.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hyperbench.config.catalog import nearest


def available() -> dict[str, str]:
    """The name of every figure with one line on what it shows; no figure is imported."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.stem] = doc.partition("\n")[0].strip()
    return found


def builder(name: str) -> Callable[[Any], Any]:
    """The `build` function of a figure. Raises ValueError on an unknown name, with the nearest one."""
    names = available()
    if name not in names:
        raise ValueError(f"unknown figure {name!r}; allowed: {', '.join(names)}{nearest(name, names)}")
    build: Callable[[Any], Any] = importlib.import_module(f"{__name__}.{name}").build
    return build
