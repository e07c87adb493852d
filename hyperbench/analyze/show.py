"""A run in the terminal, and the same as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import FLAG_MEANINGS, counted, flags_in, is_null, json_value, short
from hyperbench.analyze.joins import records
from hyperbench.analyze.stage_table import missing_stages
from hyperbench.analyze.text_table import FLAGGED, print_table, speedup_note, stage_tables, time_tables
from hyperbench.analyze.view import View, causal_in_q, causality_notes, error_columns, make_view, provenance, reason
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


def show_run(run_dir: Path, console: Console, baseline: str = "flash2") -> None:
    """Read and print a run. Raises ValueError on a missing or damaged one."""
    print_run(load_run(Path(run_dir)), console, baseline)


def print_run(run: Run, console: Console, baseline: str = "flash2") -> None:
    """Print a run: where it was measured, a table per masking, and what could not be measured and why."""
    from rich.text import Text

    view = make_view(run, baseline)
    console.print(Text(str(run.path), style="bold"))
    if view.timings.empty:
        console.print("This run holds no measurement yet.")
        return
    console.print(Text("  ·  ".join(provenance(view)), style="dim"))
    for table in [*time_tables(view, methods_per_table=max(1, (console.width - 40) // 42)), *stage_tables(view)]:
        print_table(table, console)
    for line in [*view.differing, *causality_notes(view.timings), *_flagged(view), *_missing(view)]:
        console.print(Text(line, style="yellow"))
    console.print(
        Text(
            f"Times are medians, ± the wider side of the 95 % interval (of all samples below 6, none for one); "
            f"{speedup_note(view)}; error: relative Frobenius.",
            style="dim",
        )
    )


def run_summary(run_dir: Path, baseline: str = "flash2") -> dict[str, Any]:
    """A run as plain data that JSON can hold: environment, counts by status, a row per point and pass, and a row
    per point and stage.

    Raises ValueError on a missing or damaged run.
    """
    run = load_run(Path(run_dir))
    view = make_view(run, baseline)
    frame = view.timings
    errors = error_columns(frame)
    keys = (*_KEYS, *method_parameters(frame), *input_parameters(frame))
    return {
        "run": str(run.path),
        "environment": json_value(run.environment),
        "baseline": baseline,
        "methods": [str(m) for m in frame["method"].unique()],
        "differing": list(view.differing),
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
            }
            for row in records(frame)
        ],
        "stages": [{key: json_value(row[key]) for key in _STAGE_KEYS} for row in records(view.stages)],
    }


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
