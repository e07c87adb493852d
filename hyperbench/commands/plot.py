"""`hyperbench plot`: the figures of a run."""

from __future__ import annotations

from pathlib import Path

import typer

from hyperbench.analyze.plot import plot_run
from hyperbench.commands.output import chosen_run, print_json, print_lines


def plot(
    run_dir: Path | None,
    figures: list[str] | None,
    formats: str,
    out: Path | None,
    baseline: str,
    *,
    open_in_browser: bool,
    as_json: bool,
) -> int:
    """Draw figures and print their paths; 1 if one lacks a format that was asked for, or if there is none.

    Raises ValueError on what cannot be drawn.
    """
    paths, messages, unwritten = plot_run(chosen_run(run_dir), figures, formats, out, baseline)
    if as_json:
        print_json({"paths": [str(path) for path in paths], "messages": [*messages, *unwritten]})
    else:
        print_lines([*messages, *unwritten, *paths])
    if open_in_browser:
        for page in (path for path in paths if path.suffix == ".html"):
            typer.launch(str(page))
    return 0 if paths and not unwritten else 1
