"""`hyperbench export`: the tables of a run as files for other programs and for papers."""

from __future__ import annotations

from pathlib import Path

from hyperbench.analyze.export import export_run
from hyperbench.commands.output import chosen_run, print_json, print_lines


def export(run_dir: Path | None, kind: str, out: Path | None, baseline: str, *, as_json: bool) -> int:
    """Write the files and print their paths. Raises ValueError on what cannot be exported."""
    paths = [str(path) for path in export_run(chosen_run(run_dir), kind, out, baseline)]
    if as_json:
        print_json({"paths": paths})
    else:
        print_lines(paths)
    return 0
