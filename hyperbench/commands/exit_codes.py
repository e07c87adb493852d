"""Exit codes: whatever a user can cause ends in one line on stderr and one of them.

0: done. 1: some points failed, a check did not hold, or something could not be written. 2: bad usage or configuration.
130: interrupted. A reader that leaves (`| head`) changes none of them: see `streams`.
With HYPERBENCH_TRACEBACK=1 errors keep their traceback.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from hyperbench.analyze.format import printable
from hyperbench.store.files import DamageWarning, DiskError

INTERRUPTED = 130
_TRACEBACK_VARIABLE = "HYPERBENCH_TRACEBACK"
#: The base of the command-line parser's own errors, wherever Typer keeps its parser.
_CommandLineError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def leave_with(program: Callable[[], Any]) -> NoReturn:
    """Run the program and leave with what it returns as the exit code, or with the line and the code of its error."""
    gc.set_threshold(1_000_000)  # tables of very many rows are no garbage, and it takes long to find that out
    if os.environ.get(_TRACEBACK_VARIABLE):
        sys.exit(program())
    warnings.showwarning = _showing(warnings.showwarning)
    try:
        code = program()
        sys.stdout.flush()
        sys.exit(code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", INTERRUPTED)
    except _CommandLineError as error:
        _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    except ValueError as error:
        _fail(str(error), 1 if isinstance(error, DiskError) else 2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _fail(f"{name}{error.strerror or error}", 1)


def _showing(usual: Callable[..., None]) -> Callable[..., None]:
    """A way to show warnings: those of damaged files in one line for the user, others as usual."""

    def show(message: Warning | str, *others: Any) -> None:
        if isinstance(message, DamageWarning):
            print(f"warning: {printable(message)}", file=sys.stderr)
        else:
            usual(message, *others)

    return show


def _fail(message: str, code: int) -> NoReturn:
    print(f"hyperbench: {printable(message)}", file=sys.stderr)
    sys.exit(code)
