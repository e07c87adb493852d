"""A run in the terminal, and the same as plain data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.digest import digests
from hyperbench.analyze.tables import records
from hyperbench.analyze.text import is_null
from hyperbench.analyze.view import View, error_columns, make_view, provenance, reason
from hyperbench.store import load_run

if TYPE_CHECKING:
    from rich.console import Console

_KEYS = (
    "point_id", "method", "implementation", "device", "dtype", "is_causal", "batch", "heads", "kv_heads", "seq_len",
    "head_dim", "block_size", "sample_size", "num_projections", "min_seq_len", "sampling", "pairing", "input", "seed",
    "pass", "protocol", "status", "n_samples", "median_ms", "ci_low_ms", "ci_high_ms", "peak_memory_bytes",
    "baseline_median_ms", "baseline_status", "speedup", "speedup_low", "speedup_high", "message",
)  # fmt: skip


def show_run(run_dir: Path, console: Console, baseline: str = "flash2") -> None:
    """Print a run: where it was measured, a table per masking, and what could not be measured and why.

    Raises ValueError on a missing or damaged run.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    run = load_run(Path(run_dir))
    view = make_view(run, baseline)
    console.print(Text(str(run.path), style="bold"))
    if view.timings.empty:
        console.print("This run holds no measurement yet.")
        return
    console.print(Text("  ·  ".join(provenance(view)), style="dim"))
    for digest in digests(view, methods_per_table=max(1, (console.width - 40) // 42)):
        table = Table(title=Text(digest.title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
        for name, is_number in zip(digest.columns, digest.is_number, strict=True):
            table.add_column(Text(name), justify="right" if is_number else "left", no_wrap=True)
        for row in digest.rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for line in _missing(view):
        console.print(Text(line, style="yellow"))
    console.print(
        Text(
            f"Times are medians, ± the wider side of the 95 % interval; speedup over {baseline}; "
            "error: relative Frobenius.",
            style="dim",
        )
    )


def run_summary(run_dir: Path, baseline: str = "flash2") -> dict[str, Any]:
    """A run as plain data that JSON can hold: environment, counts by status, and a row per point and pass.

    Raises ValueError on a missing or damaged run.
    """
    run = load_run(Path(run_dir))
    view = make_view(run, baseline)
    frame = view.timings
    errors = error_columns(frame)
    rows = []
    for record in records(frame):
        row = {key: _json(record[key]) for key in _KEYS}
        rows.append({**row, "errors": {metric: _json(record[metric]) for metric in errors}})
    return {
        "run": str(run.path),
        "environment": run.environment,
        "baseline": baseline,
        "methods": [str(m) for m in frame["method"].unique()],
        "points": int(frame["point_id"].nunique()),
        "statuses": {str(k): int(v) for k, v in frame["status"].value_counts().items()},
        "rows": rows,
    }


def _missing(view: View) -> list[str]:
    lines: dict[str, int] = {}
    for row in records(view.timings):
        if is_null(row["median_ms"]):
            line = f"{row['method']}: {reason(row)}"
            lines[line] = lines.get(line, 0) + 1
    return [f"{line} ({count} {'row' if count == 1 else 'rows'})" for line, count in lines.items()]


def _json(value: Any) -> Any:
    """A cell as JSON holds it: null for a missing value, the name of an infinity."""
    if is_null(value):
        return None
    item = value.item() if hasattr(value, "item") else value
    return str(item) if isinstance(item, float) and not math.isfinite(item) else item
