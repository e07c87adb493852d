"""`hyperbench show`: the tables of a run."""

from __future__ import annotations

from pathlib import Path

from hyperbench.analyze.show import run_summary, show_run
from hyperbench.commands.output import chosen_run, print_json, stdout


def show(run_dir: Path | None, baseline: str, *, as_json: bool) -> int:
    """Print a run. Raises ValueError on a damaged run or an unknown baseline."""
    folder = chosen_run(run_dir)
    if as_json:
        print_json(run_summary(folder, baseline))
    else:
        show_run(folder, stdout(), baseline)
    return 0
