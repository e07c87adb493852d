"""A run in the terminal, and the same as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.caveats import causal_in_q, caveats
from hyperbench.analyze.format import FLAG_MEANINGS, counted, flags_in, is_null, json_value, short
from hyperbench.analyze.joins import records
from hyperbench.analyze.measures import measure_columns
from hyperbench.analyze.scores.sensitivity import order_lines
from hyperbench.analyze.scores.summary import scored
from hyperbench.analyze.scores.text import notes, origin, score_tables, settings_lines
from hyperbench.analyze.stage_table import missing_stages
from hyperbench.analyze.text_table import (
    FLAGGED,
    kinds_note,
    print_table,
    run_tables,
    sorted_rows,
    speedup_note,
    stage_tables,
)
from hyperbench.analyze.verdict.report import verdict_data, verdict_lines, verdicts
from hyperbench.analyze.view import View, error_columns, make_view, provenance, reason
from hyperbench.store.parameters import input_parameters, method_parameters
from hyperbench.store.run_folder import Run, load_run

if TYPE_CHECKING:
    from rich.console import Console

_KEYS = (
    "point_id", "method", "implementation", "device", "dtype", "is_causal", "batch", "heads", "kv_heads", "seq_len",
    "head_dim", "input", "seed", "pass", "protocol", "status", "n_samples", "median_ms", "ci_low_ms", "ci_high_ms",
    "p20_ms", "first_call_ms", "setup_ms", "host_ms", "memory_before_bytes", "peak_memory_bytes", "resident_peak_bytes",
    "flags", "baseline_median_ms", "baseline_status", "speedup", "speedup_low", "speedup_high", "speedup_rounds",
    "message",
)  # fmt: skip
_STAGE_KEYS = (
    "point_id", "method", "is_causal", "seq_len", "stage", "status", "n_samples", "median_ms", "ci_low_ms",
    "ci_high_ms", "host_ms", "flags", "share", "sum_ms", "forward_ms", "message",
)  # fmt: skip

#: Rows of JSON are put in order within these.
_SORTED_WITHIN = ("is_causal", "pass", "seq_len", "input")


def show_run(
    run_dir: Path,
    console: Console,
    baseline: str = "flash2",
    where: Mapping[str, Sequence[str]] | None = None,
    sort: str | None = None,
) -> None:
    """Read and print a run, or the rows of it that match filters, verdicts first.

    `sort`: in tables with a row per method, whose order it is ("speed", "error" or "method"). Raises ValueError on a
    missing or damaged run, and on a filter that matches nothing.
    """
    run = load_run(Path(run_dir))
    view = make_view(run, baseline, where)
    _print_head(run, view, console)
    _print_scores(view, console)
    if not view.timings.empty:
        _print_verdicts(view, console)
        _print_tables(view, console, sort)


def print_run(run: Run, console: Console, baseline: str = "flash2") -> None:
    """Print a run that has ended: where it was measured, a table per masking, what is missing and why, the verdicts."""
    view = make_view(run, baseline)
    _print_head(run, view, console)
    _print_scores(view, console)
    if not view.timings.empty:
        _print_tables(view, console)
        _print_verdicts(view, console)


def _print_head(run: Run, view: View, console: Console) -> None:
    from rich.text import Text

    console.print(Text(str(run.path), style="bold"))
    if not view.timings.empty:
        console.print(Text("  ·  ".join(provenance(view)), style="dim"))
    elif run.scores.empty:
        console.print("This run holds no measurement yet.")
    else:
        console.print(Text("  ·  ".join(origin(run.scores, run.environment)), style="dim"))


def _print_scores(view: View, console: Console) -> None:
    from rich.text import Text

    if view.scores is None or view.scores.empty:
        return
    for table in score_tables(view.scores, view.baseline):
        print_table(table, console)
    for line in (
        *settings_lines(view.scores, view.baseline),
        *order_lines(view.scores, view.baseline),
        *(f"{n}." for n in notes(view.scores, view.baseline)),
    ):
        console.print(Text(line, style="dim"))


def _print_verdicts(view: View, console: Console) -> None:
    from rich.text import Text

    for line in verdict_lines(verdicts(view)):
        console.print(Text(line, style="bold"))


def _print_tables(view: View, console: Console, sort: str | None = None) -> None:
    from rich.text import Text

    tables = run_tables(view, sort, methods_per_table=max(1, (console.width - 40) // 42))
    for table in [*tables, *stage_tables(view)]:
        print_table(table, console)
    for line in [*view.differing, *caveats(view.timings), *_flagged(view), *_missing(view)]:
        console.print(Text(line, style="yellow"))
    notes = [
        "Times are medians, ± the wider side of the 95 % interval (of all samples below 6, none for one)",
        speedup_note(view),
        "error: relative Frobenius",
        kinds_note(view),
    ]
    console.print(Text(f"{'; '.join(filter(None, notes))}.", style="dim"))


def run_summary(
    run_dir: Path,
    baseline: str = "flash2",
    where: Mapping[str, Sequence[str]] | None = None,
    sort: str | None = None,
) -> dict[str, Any]:
    """A run as plain data that JSON can hold: environment, verdicts, counts by status, a row per point and pass, and a
    row per point and stage.

    Filters and order as those of `show_run`; without an order the rows stand as in the run. Raises ValueError as that
    does.
    """
    run = load_run(Path(run_dir))
    view = make_view(run, baseline, where)
    frame = view.timings
    errors, measures = error_columns(frame), measure_columns(frame)
    keys = (*_KEYS, *method_parameters(frame), *input_parameters(frame))
    return {
        "run": str(run.path),
        "environment": json_value(run.environment),
        "baseline": baseline,
        "methods": [str(m) for m in frame["method"].unique()],
        "differing": list(view.differing),
        "verdicts": verdict_data(verdicts(view)),
        "points": int(frame["point_id"].nunique()),
        "statuses": {str(k): int(v) for k, v in frame["status"].value_counts().items()},
        "rows": [
            {
                **{key: json_value(row[key]) for key in keys},
                "causal_in_q": causal_in_q(row),
                "errors": {metric: json_value(row[metric]) for metric in errors},
                "error_half_widths": {
                    metric: json_value(width) for metric in errors if not is_null(width := row[f"{metric}_half_width"])
                },
                # Properties of the input, and masses that a plan catches, where they were measured.
                **({"measures": {metric: json_value(row[metric]) for metric in measures}} if measures else {}),
            }
            for row in (records(frame) if sort is None else sorted_rows(frame, sort, _SORTED_WITHIN))
        ],
        **({"scores": _scores(view, baseline)} if not run.scores.empty else {}),
        "stages": [{key: json_value(row[key]) for key in _STAGE_KEYS} for row in records(view.stages)],
    }


def _scores(view: View, baseline: str) -> list[dict[str, Any]]:
    """A row for each point of a task, with its means and their intervals by name."""
    if view.scores is None:
        return []
    keys = ("point_id", "method", "input", "seq_len", "layers")
    return [
        {
            **{key: json_value(one.row.get(key)) for key in keys},
            "parameters": one.parameters,
            "num_layers": one.layers,
            "examples": one.count,
            "missing": one.missing,
            "scores": {name: [json_value(x) for x in mean] for name, mean in one.values.items()},
        }
        for one in scored(view.scores, baseline)
    ]


def _flagged(view: View) -> list[str]:
    """A line per flag: the methods whose times, or times of stages, are marked, how many, and its meaning."""
    counts: dict[str, Counter[str]] = {}
    for what, frame in (("", view.timings), ("stages of ", view.stages)):
        for row in records(frame.loc[frame["flags"].notna(), ["method", "flags"]]):
            for flag in flags_in([row["flags"]]):
                counts.setdefault(flag, Counter())[f"{what}{row['method']}"] += 1
    return [
        f"{FLAGGED} {flag}: {', '.join(_numbered(found, 'row'))}: {FLAG_MEANINGS[flag]}"
        for flag, found in counts.items()
    ]


def _missing(view: View) -> list[str]:
    """A line per reason why a time, or the stages of a point, are missing."""
    methods = dict(zip(view.stages["point_id"], view.stages["method"], strict=True))
    lost = [f"{row['method']}: {short(reason(row))}" for row in records(view.timings[view.timings["median_ms"].isna()])]
    stages = [f"stages of {methods[p]}: {short(reasons[0])}" for p, reasons in missing_stages(view.stages).items()]
    return [*_numbered(Counter(lost), "row"), *_numbered(Counter(stages), "point")]


def _numbered(lines: Mapping[str, int], what: str) -> list[str]:
    return [f"{line} ({counted(n, what)})" for line, n in lines.items()]
