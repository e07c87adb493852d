"""What `hyperbench compare` does between its options and its exit code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.compare.compare import Comparison, compare
from hyperbench.analyze.compare.report import comparison_data, failures_of, print_comparison, unjudged, unjudged_note

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Options:
    """What was asked for: two methods or none, and percentages or none."""

    methods: tuple[str, ...] | None
    fail_on_regression: float | None
    threshold: float | None


def checked(methods: str | None, fail_on_regression: str | None, threshold: str | None) -> Options:
    """The options as typed. Raises ValueError, naming option and value, on one that is not allowed."""
    names = None if methods is None else tuple(name.strip() for name in methods.split(","))
    if names is not None and (len(names) != 2 or not all(names)):
        raise ValueError(f"--methods={methods} must name two methods: --methods flash2,hyper")
    return Options(names, _percent("--fail-on-regression", fail_on_regression), _percent("--threshold", threshold))


def _percent(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={text} must be a number of percent, at least 0: {name} 5")
    return value


def compared(run_a: Path, run_b: Path | None, options: Options) -> Comparison:
    """Read and compare. Raises ValueError on an unreadable folder or a method that is not there."""
    threshold = None if options.threshold is None else options.threshold / 100.0
    return compare(run_a, run_b, options.methods, threshold)


def data(comparison: Comparison, options: Options) -> dict[str, Any]:
    """The comparison as plain data that JSON can hold."""
    limit = options.fail_on_regression
    failures = {} if limit is None else {"fail_on_regression": limit, "failures": failures_of(comparison, limit)}
    return {**comparison_data(comparison), "unjudged": len(unjudged(comparison)), **failures}


def print_text(comparison: Comparison, options: Options, console: Console) -> None:
    """Print the comparison, and why a check for regressions fails."""
    from rich.text import Text

    print_comparison(comparison, console)
    if options.fail_on_regression is not None and unjudged_note(comparison):
        console.print(Text(unjudged_note(comparison), style="yellow"))
    for line in _failures(comparison, options):
        console.print(Text(f"--fail-on-regression {options.fail_on_regression:g}: {line}", style="bold red"))


def fails(comparison: Comparison, options: Options) -> bool:
    """Whether a check for regressions was asked for and does not hold."""
    return bool(_failures(comparison, options))


def _failures(comparison: Comparison, options: Options) -> list[str]:
    limit = options.fail_on_regression
    return [] if limit is None else failures_of(comparison, limit)
