"""Options that several commands share, and folders as a command line names them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperbench.config import paths


def folder(text: str) -> Path:
    """A folder as it is named on the command line. Raises typer.BadParameter on one that cannot be."""
    try:
        return paths.folder(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", parser=folder, help="Folder of the run; default: the newest under results/runs."
    ),
]
RunDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--run",
        metavar="DIR",
        parser=folder,
        help="Folder of a run, or of several; may be given again; default: the reference runs, else the newest.",
    ),
]
Baseline = Annotated[str, typer.Option(metavar="METHOD", help="Method that speedups are over.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
OutDir = Annotated[Path | None, typer.Option("--out", metavar="DIR", parser=folder, help="Folder to write to.")]
Resume = Annotated[bool, typer.Option("--resume", help="Measure only what this run's folder lacks.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Replace the run in out=DIR.")]
