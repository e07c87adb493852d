"""A comparison in the terminal and as plain data, and why a check for regressions fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.compare.compare import Comparison, Row
from hyperbench.analyze.compare.compared_run import ComparedRun
from hyperbench.analyze.compare.errors import error_data, error_lines, error_pairs, error_table
from hyperbench.analyze.compare.labels import FIELDS, are_numbers, cell, dims_of, head, label, point_label, side_names
from hyperbench.analyze.format import (
    FLAG_MEANINGS,
    PASS_LABELS,
    counted,
    is_null,
    json_value,
    machine_of,
    milliseconds,
    printable,
    short,
    significant,
)
from hyperbench.analyze.text_table import TextTable, print_table
from hyperbench.stats.rounds import MIN_ROUNDS, Judgement, Reason, Verdict

if TYPE_CHECKING:
    from rich.console import Console

_MEANINGS = {
    Reason.INTERVAL_STRADDLES_THRESHOLD: "the interval reaches over a threshold: more rounds would narrow it",
    Reason.TOO_FEW_ROUNDS: f"fewer than {MIN_ROUNDS} rounds a side, and samples of one process are no substitute: "
    "measure with protocol.rounds=5",
    Reason.UNEQUAL_ROUNDS: "the two sides were not measured in as many (in one run: not in the same) rounds",
    Reason.ZERO_VARIANCE: "the rounds do not differ at all, which no clock of a machine does",
    Reason.ZERO_TIME: "a median of zero has no ratio",
    Reason.DIFFERENT_PROTOCOL: "times of different protocols are not comparable, nor are those of other settings that "
    "change what is timed",
    Reason.THROTTLED: "the clocks of one side were throttled",
    Reason.NO_TIMING: "neither side has a time",
    Reason.NO_TIMING_IN_A: "A has no time",
    Reason.NO_TIMING_IN_B: "B has no time",
}
#: The rounds were enough to judge, be it that more of them are wanted.
_JUDGED = (Reason.INTERVAL_WITHIN_THRESHOLD, Reason.INTERVAL_BEYOND_THRESHOLD, Reason.INTERVAL_STRADDLES_THRESHOLD)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what is compared, what differs about it, tables of times and errors, the points left over, and one line."""
    from rich.text import Text

    def say(lines: Iterable[str], style: str) -> None:
        for line in lines:
            console.print(Text(line, style=style))

    runs = (("A", comparison.a), ("B", comparison.b))
    dims = dims_of(comparison)
    reasons = {row.judgement.reason for row in comparison.rows}
    say((f"{name}  {_described(run)}" for name, run in runs), "bold")
    say((f"warning: {warning}" for warning in comparison.warnings), "yellow")
    if comparison.rows:
        print_table(_table(comparison, dims), console)
        console.print()
    meanings = (f"{r}: {_MEANINGS[r]}{_rounds_note(comparison, r)}" for r in Reason if r in _MEANINGS and r in reasons)
    say(meanings, "dim")
    details = (f"{label(row, dims)}: {short(printable(row.detail))}" for row in comparison.rows if row.detail)
    flags = (line for name, run in runs for line in _flagged(name, run))
    say([*details, *flags, *_leftover(comparison, dims)], "yellow")
    pairs = error_pairs(comparison)
    if pairs:
        print_table(error_table(comparison, pairs), console)
        console.print()
    say(error_lines(comparison, pairs)[:-1], "yellow")
    say([_method_note(comparison)], "dim")
    say([*error_lines(comparison, pairs)[-1:], comparison.headline()], "bold")


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain data that JSON can hold."""
    data = {
        "a": _run_data(comparison.a),
        "b": _run_data(comparison.b),
        "paired": comparison.paired,
        "threshold": comparison.threshold,
        "warnings": list(comparison.warnings),
        "verdict": comparison.headline(),
        "counts": {str(verdict): count for verdict, count in comparison.counts.items()},
        "points": [_row_data(row) for row in comparison.rows],
        "errors": error_data(error_pairs(comparison)),
        "unmatched": [_row_data(row) for row in comparison.unmatched],
    }
    return dict(json_value(data))


def failures_of(comparison: Comparison, percent: float) -> list[str]:
    """List why a check for regressions of more than `percent` fails; an empty list where it passes.

    A point that is slower beyond it, a timing that B lacks, a ratio beyond it that could not be judged (the rounds of a
    slow call are few), and a comparison in which nothing could be judged: a check that cannot see a regression must not
    pass.
    """
    dims, limit = dims_of(comparison), 1.0 + percent / 100.0
    lines = []
    for row in (*comparison.rows, *comparison.unmatched):
        found = row.judgement
        if row.lost_in_b:
            told = f"lost in B ({'missing' if row.point_b is None else short(printable(row.detail))})"
        elif found.verdict is Verdict.SLOWER and (found.low or 0.0) > limit:
            told = f"slower, {significant(found.ratio, 4)} ({_interval(found)})"
        elif found.reason not in _JUDGED and (found.ratio or 0.0) > limit:
            told = f"{significant(found.ratio, 4)} times as long, and it cannot be judged ({found.reason})"
        else:
            continue
        lines.append(f"{label(row, dims)}: {told}")
    if not lines and len(unjudged(comparison)) == len(comparison.rows):
        lines.append("no point could be judged, so a regression would not be seen")
    return lines


def unjudged(comparison: Comparison) -> list[Row]:
    """The matched rows on which the rounds allow no judgement at all, of either kind."""
    return [row for row in comparison.rows if row.judgement.reason not in _JUDGED]


def unjudged_note(comparison: Comparison) -> str:
    """The number of passes that could not be judged, in a line; "" if all could."""
    count = len(unjudged(comparison))
    return f"{count} of {len(comparison.rows)} passes could not be judged; see their reasons" if count else ""


def _rounds_note(comparison: Comparison, reason: Reason) -> str:
    """The numbers of rounds on either side, for a reason that is about them."""
    if reason not in (Reason.TOO_FEW_ROUNDS, Reason.UNEQUAL_ROUNDS):
        return ""
    rows = [row for row in comparison.rows if row.judgement.reason is reason]
    counts = dict.fromkeys((row.rounds_a, row.rounds_b) for row in rows)
    return f" (timed rounds here: {', '.join(f'{a} of A and {b} of B' for a, b in counts)})"


def _table(comparison: Comparison, dims: Sequence[str]) -> TextTable:
    names = side_names(comparison)
    heads = ("pass", *names, f"{names[1]}/{names[0]}", "95 % interval", "verdict", "reason")
    rows = tuple(
        (
            *(cell(row, dim) for dim in dims),
            PASS_LABELS[row.pass_],
            milliseconds(row.a_ms),
            milliseconds(row.b_ms),
            significant(row.judgement.ratio, 4),
            _interval(row.judgement),
            str(row.judgement.verdict),
            str(row.judgement.reason),
        )
        for row in comparison.rows
    )
    is_number = (*are_numbers(dims), False, True, True, True, True, False, False)
    return TextTable("B against A", (*map(head, dims), *heads), is_number, rows)


def _described(run: ComparedRun) -> str:
    parts = [
        str(run.path),
        *([f"method {run.method}"] if run.method else []),
        machine_of(run.environment),
        f"protocol {', '.join(run.protocols) or 'unknown'}, {counted(run.num_rounds, 'round')}",
        f"commit {str(run.environment.get('commit') or '')[:10] or 'not recorded'}",
    ]
    return "  ·  ".join(printable(part) for part in parts)


def _method_note(comparison: Comparison) -> str:
    floor = max(comparison.a.aa_floor or 0.0, comparison.b.aa_floor or 0.0)
    why = f"; A/A floor {floor:.2%}" if floor else ""
    if floor == comparison.threshold:
        why = f" (the A/A floor: {floor:.2%})"
    unknown = [name for name, run in (("A", comparison.a), ("B", comparison.b)) if run.aa_floor is None]
    if unknown:
        why += f"; no A/A floor is known of {' and '.join(unknown)}"
    how = "pairs of rounds" if comparison.paired else "rounds"
    return (
        f"Times: geometric means of the rounds' medians; the ratio is of times, its interval bootstrapped over {how}; "
        f"threshold ±{comparison.threshold:.2%}{why}."
    )


def _flagged(name: str, run: ComparedRun) -> list[str]:
    """A line for each flag of a run, with how many of its timings have it and what it means."""
    total = len(list(run.all_timings()))
    return [
        f"flags of {name}: {flag} at {count} of {total} timings: {FLAG_MEANINGS[flag]}"
        for flag, count in sorted(_flags(run).items())
    ]


def _flags(run: ComparedRun) -> Counter[str]:
    return Counter(flag for timing in run.all_timings() for flag in timing.flags)


def _leftover(comparison: Comparison, dims: Sequence[str]) -> list[str]:
    """Points without partner, a line each with their passes."""
    lines: dict[str, list[str]] = {}
    for row in comparison.unmatched:
        where = "only in A" if row.judgement.reason is Reason.MISSING_IN_B else "only in B"
        lines.setdefault(f"{where}: {point_label(row, dims)}", []).append(PASS_LABELS[row.pass_])
    return [f"{line}, {', '.join(passes)}" for line, passes in lines.items()]


def _interval(found: Judgement) -> str:
    return "" if is_null(found.low) else f"{significant(found.low, 4)} to {significant(found.high, 4)}"


def _run_data(run: ComparedRun) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "method": run.method,
        **{key: run.environment.get(key) for key in ("run_id", "machine", "commit")},
        "protocols": run.protocols,
        "rounds": run.num_rounds,
        "aa_floor": run.aa_floor,
        "flags": dict(_flags(run)),
    }


def _row_data(row: Row) -> dict[str, Any]:
    points = {"a": row.point_a, "b": row.point_b}
    found = row.judgement
    return {
        **{
            f"{name}_{run}": getattr(point, name) if point else None
            for name in ("point_id", "method")
            for run, point in points.items()
        },
        **{name: getattr(row.point, name) for name in FIELDS},
        "input_params": row.point.input_params,
        **{f"hyper_{run}": point.hyper if point else None for run, point in points.items()},
        "pass": str(row.pass_),
        "verdict": str(found.verdict),
        "reason": str(found.reason),
        "ratio": found.ratio,
        "ratio_low": found.low,
        "ratio_high": found.high,
        **{name: getattr(row, name) for name in ("a_ms", "b_ms", "rounds_a", "rounds_b", "detail", "lost_in_b")},
    }
