"""`hyperbench compare`: two runs, or two methods of one, and the check for regressions."""

from __future__ import annotations

import math
from pathlib import Path

from hyperbench.analyze.compare.compare import compare as compare_runs
from hyperbench.analyze.compare.errors import error_failures, error_pairs
from hyperbench.analyze.compare.report import comparison_data, failures_of, print_comparison, unjudged, unjudged_note
from hyperbench.commands.output import print_json, stdout


def compare(
    run_a: Path,
    run_b: Path | None,
    methods: str | None,
    fail_on: str | None,
    threshold: str | None,
    *,
    fail_on_error: bool = False,
    as_json: bool,
) -> int:
    """Print the comparison; 1 if a check for regressions, or of errors, was asked for and does not hold.

    Raises ValueError on an option that is not allowed, an unreadable folder, or a method that is not there.
    """
    limit = _percent("--fail-on-regression", fail_on)
    least = _percent("--threshold", threshold)
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    comparison = compare_runs(run_a, run_b, names, None if least is None else least / 100.0)
    failures = [] if limit is None else failures_of(comparison, limit)
    worse = error_failures(comparison, error_pairs(comparison)) if fail_on_error else []
    if as_json:
        check = {} if limit is None else {"fail_on_regression": limit, "failures": failures}
        check |= {"fail_on_error": True, "error_failures": worse} if fail_on_error else {}
        print_json({**comparison_data(comparison), "unjudged": len(unjudged(comparison)), **check})
        return 1 if failures or worse else 0
    from rich.text import Text

    console = stdout()
    print_comparison(comparison, console)
    if limit is not None and unjudged_note(comparison):
        console.print(Text(unjudged_note(comparison), style="yellow"))
    for line in [
        *(f"--fail-on-regression {limit:g}: {line}" for line in failures),
        *(f"--fail-on-error: {w}" for w in worse),
    ]:
        console.print(Text(line, style="bold red"))
    return 1 if failures or worse else 0


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
