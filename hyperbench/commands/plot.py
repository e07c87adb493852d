"""`hyperbench plot`: the figures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from hyperbench.analyze.plot import plot_run
from hyperbench.commands.output import chosen_run, print_json


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    formats: str = "html"
    out: Path | None = None
    baseline: str = "flash2"
    open_in_browser: bool = False
    as_json: bool = False


def plot(run_dir: Path | None, figures: list[str] | None, options: Options) -> int:
    """Draw figures and print their paths; 1 if there is none. Raises ValueError on what cannot be drawn."""
    result = plot_run(chosen_run(run_dir), figures, [options.formats], options.out, options.baseline)
    if options.as_json:
        print_json({"paths": [str(path) for path in result.paths], "messages": result.messages})
    else:
        for line in [*result.messages, *map(str, result.paths)]:
            typer.echo(line)
    if options.open_in_browser:
        for page in (path for path in result.paths if path.suffix == ".html"):
            typer.launch(str(page))
    return 0 if result.paths else 1
