"""A comparison in the terminal and as plain data, and why a check for regressions fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.compare.compare import Comparison, Row
from hyperbench.analyze.compare.compared_run import ComparedRun
from hyperbench.analyze.format import (
    FLAG_MEANINGS,
    PASS_LABELS,
    counted,
    is_null,
    json_value,
    machine_of,
    milliseconds,
    plain,
    printable,
    short,
    significant,
)
from hyperbench.analyze.text_table import TextTable, print_table
from hyperbench.stats.rounds import MIN_ROUNDS, Judgement, Reason, Verdict
from hyperbench.store.schema import Point

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
_FIELDS = (
    "is_causal", "seq_len", "device", "dtype", "batch", "heads", "kv_heads", "head_dim", "input", "seed"
)  # fmt: skip
_NUMBERS = ("seq_len", "batch", "heads", "kv_heads", "head_dim", "seed")


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what is compared, what differs about it, a table of the verdicts, the points left over, and one line."""
    from rich.text import Text

    def say(lines: Iterable[str], style: str) -> None:
        for line in lines:
            console.print(Text(line, style=style))

    runs = (("A", comparison.a), ("B", comparison.b))
    dims = _dims(comparison)
    reasons = {row.judgement.reason for row in comparison.rows}
    say((f"{name}  {_described(run)}" for name, run in runs), "bold")
    say((f"warning: {warning}" for warning in comparison.warnings), "yellow")
    if comparison.rows:
        print_table(_table(comparison, dims), console)
        console.print()
    meanings = (f"{r}: {_MEANINGS[r]}{_rounds_note(comparison, r)}" for r in Reason if r in _MEANINGS and r in reasons)
    say(meanings, "dim")
    details = (f"{_label(row, dims)}: {short(printable(row.detail))}" for row in comparison.rows if row.detail)
    flags = (line for name, run in runs for line in _flagged(name, run))
    say([*details, *flags, *_leftover(comparison, dims)], "yellow")
    say([_method_note(comparison)], "dim")
    say([comparison.headline()], "bold")


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
        "unmatched": [_row_data(row) for row in comparison.unmatched],
    }
    return dict(json_value(data))


def failures_of(comparison: Comparison, percent: float) -> list[str]:
    """List why a check for regressions of more than `percent` fails; an empty list where it passes.

    A point that is slower beyond it, a timing that B lacks, a ratio beyond it that could not be judged (the rounds of a
    slow call are few), and a comparison in which nothing could be judged: a check that cannot see a regression must not
    pass.
    """
    dims, limit = _dims(comparison), 1.0 + percent / 100.0
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
        lines.append(f"{_label(row, dims)}: {told}")
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
    methods = (comparison.a.method, comparison.b.method)
    names = [printable(m) for m in methods] if all(methods) and methods[0] != methods[1] else ["A", "B"]
    heads = ("pass", *names, f"{names[1]}/{names[0]}", "95 % interval", "verdict", "reason")
    rows = tuple(
        (
            *(_cell(row, dim) for dim in dims),
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
    is_number = (*(dim in _NUMBERS for dim in dims), False, True, True, True, True, False, False)
    return TextTable("B against A", (*map(_head, dims), *heads), is_number, rows)


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
        lines.setdefault(f"{where}: {_point_label(row, dims)}", []).append(PASS_LABELS[row.pass_])
    return [f"{line}, {', '.join(passes)}" for line, passes in lines.items()]


def _label(row: Row, dims: Sequence[str]) -> str:
    return f"{_point_label(row, dims)}, {PASS_LABELS[row.pass_]}"


def _point_label(row: Row, dims: Sequence[str]) -> str:
    names = [d for d in dims if d not in ("method", "seq_len")]
    told = [row.point.method] if not row.is_matched or "method" in dims else []
    told.append(f"n={row.point.seq_len:,}")
    told += [f"{_head(name)}={cell}" for name in names if (cell := _cell(row, name))]
    return printable(" ".join(told))


def _dims(comparison: Comparison) -> list[str]:
    """The fields that tell rows apart: method and length always, the others where they vary within a run."""
    rows = (*comparison.rows, *comparison.unmatched)
    runs = [[_flat(row.point_a) for row in rows if row.point_a], [_flat(row.point_b) for row in rows if row.point_b]]
    flats = [flat for run in runs for flat in run]
    hidden = {"method", "seq_len"}
    if all(flat["heads"] == flat["kv_heads"] for flat in flats):
        hidden.add("kv_heads")
    names = [name for name in dict.fromkeys(name for flat in flats for name in flat) if name not in hidden]
    methods = [] if comparison.a.method != comparison.b.method else ["method"]
    return [*methods, "seq_len", *(name for name in names if any(_varies(run, name) for run in runs))]


def _varies(flats: Iterable[dict[str, Any]], name: str) -> bool:
    """True if a field takes several values; a method's own parameter: within one method."""
    values: dict[Any, set[str]] = {}
    for flat in flats:
        values.setdefault(None if name in _FIELDS else flat["method"], set()).add(plain(flat.get(name)))
    return any(len(found) > 1 for found in values.values())


def _flat(point: Point) -> dict[str, Any]:
    """The fields of a point by name, its method's and its input's parameters among them."""
    fields = {name: getattr(point, name) for name in ("method", *_FIELDS)}
    return {**fields, **{f"input.{k}": v for k, v in point.input_params.items()}, **{
        k if k not in fields else f"{point.method}.{k}": v for k, v in point.hyper.items()
    }}  # fmt: skip


def _cell(row: Row, name: str) -> str:
    for point in (row.point_b, row.point_a):
        value = _flat(point).get(name) if point is not None else None
        if value is not None:
            return f"{value:,}" if name == "seq_len" else printable(plain(value))
    return ""


def _head(name: str) -> str:
    return {"seq_len": "n", "is_causal": "causal"}.get(name, printable(name))


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
        **{name: getattr(row.point, name) for name in _FIELDS},
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
