"""Output that the commands share: a console that fits where it writes, JSON, and the run that is meant."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import letters

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 200


def stdout() -> Console:
    """The terminal as it is; a wide page for pipes and files, so that tables are not folded there."""
    from hyperbench.commands.console import SafeConsole

    return SafeConsole(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def stderr() -> Console:
    """The console of notes and progress."""
    from hyperbench.commands.console import SafeConsole

    return SafeConsole(stderr=True)


def print_lines(lines: Iterable[object]) -> None:
    """Print lines as they are, however long, without characters that a terminal would act on."""
    for line in lines:
        print(letters(str(line)))


def print_json(data: Any) -> None:
    """Print one JSON value."""
    print(json.dumps(data, indent=2, default=str))


def print_pairs(pairs: Iterable[tuple[str, str]], console: Console) -> None:
    """Print two columns, the first in bold."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, text in pairs:
        table.add_row(Text(name, style="bold"), Text(text))
    console.print(table)


def chosen_run(run_dir: Path | None) -> Path:
    """The run that was named, else the newest."""
    from hyperbench.store.run_folder import latest_run

    return run_dir if run_dir is not None else latest_run()
