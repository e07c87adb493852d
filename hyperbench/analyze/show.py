"""A run in the terminal, and the same as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.authors import authors_digests, view_beside
from hyperbench.analyze.causality import causal_in_q, causality_notes
from hyperbench.analyze.format import is_null, json_value, short
from hyperbench.analyze.joins import flags_in, records
from hyperbench.analyze.stage_table import missing_stages
from hyperbench.analyze.text_table import FLAGGED, Digest, digests, stage_digests
from hyperbench.analyze.view import View, error_columns, make_view, provenance, reason
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Flag

if TYPE_CHECKING:
    from rich.console import Console

_KEYS = (
    "point_id", "method", "implementation", "device", "dtype", "is_causal", "batch", "heads", "kv_heads", "seq_len",
    "head_dim", "block_size", "sample_size", "num_projections", "min_seq_len", "sampling", "pairing", "input", "seed",
    "pass", "protocol", "status", "n_samples", "median_ms", "ci_low_ms", "ci_high_ms", "p20_ms", "first_call_ms",
    "host_ms", "memory_before_bytes", "peak_memory_bytes", "flags", "baseline_median_ms", "baseline_status",
    "speedup", "speedup_low", "speedup_high", "message",
)  # fmt: skip
#: What a flag says of a time, for people; the flags themselves are `hyperbench.store.schema.Flag`.
FLAG_MEANINGS: dict[str, str] = {
    Flag.BIMODAL: "the samples fall into two groups apart from each other, and the median is one of them or between",
    Flag.DRIFT: "the samples get slower or faster with time, and the median is that of the time they were taken in",
    Flag.HOST_BOUND: "the host takes longer to launch the call than the device to do it: by itself it takes as long as "
    "its launch",
    Flag.BUSY_MACHINE: "other processes used the cores meanwhile",
    Flag.THROTTLED: "the clocks of the device were held down meanwhile",
    Flag.ABOVE_PEAK: "more operations per second than the device can do: not all of the work was timed",
}
_STAGE_KEYS = (
    "point_id", "method", "is_causal", "seq_len", "stage", "status", "n_samples", "median_ms", "ci_low_ms",
    "ci_high_ms", "host_ms", "flags", "share", "sum_ms", "forward_ms", "message",
)  # fmt: skip


def show_run(run_dir: Path, console: Console, baseline: str = "flash2", beside: Path | None = None) -> None:
    """Print a run: where it was measured, a table per masking, and what could not be measured and why.

    A run of protocol=paper is printed beside another one, `beside`. Raises ValueError on a missing or damaged run, and
    on a run of protocol=paper alone.
    """
    from rich.text import Text

    run = load_run(Path(run_dir))
    view = make_view(run, baseline)
    other = None if view.timings.empty else view_beside(run, view, beside)
    console.print(Text(str(run.path), style="bold"))
    if view.timings.empty:
        console.print("This run holds no measurement yet.")
        return
    console.print(Text("  ·  ".join(provenance(view)), style="dim"))
    if other is not None:
        console.print(Text(f"beside {beside}", style="bold"))
        console.print(Text("  ·  ".join(provenance(other)), style="dim"))
        for digest in authors_digests(view, other):
            print_digest(digest, console)
        for line in [*_flagged(other), *_missing(view), *_missing(other)]:
            console.print(Text(line, style="yellow"))
        return
    for digest in [*digests(view, methods_per_table=max(1, (console.width - 40) // 42)), *stage_digests(view)]:
        print_digest(digest, console)
    for line in [*causality_notes(view.timings), *_flagged(view), *_missing(view), *_missing_stages(view)]:
        console.print(Text(line, style="yellow"))
    console.print(
        Text(
            f"Times are medians, ± the wider side of the 95 % interval (of all samples below 6, none for one); "
            f"speedup over {baseline}; error: relative Frobenius.",
            style="dim",
        )
    )


def run_summary(run_dir: Path, baseline: str = "flash2", beside: Path | None = None) -> dict[str, Any]:
    """A run as plain data that JSON can hold: environment, counts by status, a row per point and pass, and a row
    per point and stage.

    A run of protocol=paper holds another run's data as `beside`. Raises ValueError as `show_run` does.
    """
    run = load_run(Path(run_dir))
    view = make_view(run, baseline)
    other = None if view.timings.empty else view_beside(run, view, beside)
    frame = view.timings
    errors = error_columns(frame)
    rows = []
    for record in records(frame):
        row = {key: json_value(record[key]) for key in _KEYS}
        row["causal_in_q"] = causal_in_q(record)
        rows.append({**row, "errors": {metric: json_value(record[metric]) for metric in errors}})
    return {
        "run": str(run.path),
        "environment": json_value(run.environment),
        "origins": view.origins,
        "baseline": baseline,
        "methods": [str(m) for m in frame["method"].unique()],
        "points": int(frame["point_id"].nunique()),
        "statuses": {str(k): int(v) for k, v in frame["status"].value_counts().items()},
        "rows": rows,
        "stages": [{key: json_value(record[key]) for key in _STAGE_KEYS} for record in records(view.stages)],
        **({} if other is None or beside is None else {"beside": run_summary(beside, baseline)}),
    }


def print_digest(digest: Digest, console: Console) -> None:
    """A table where it fits the terminal; else a paragraph for each of its rows, so that no cell is cut."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name, is_number in zip(digest.columns, digest.is_number, strict=True):
        table.add_column(Text(name), justify="right" if is_number else "left", no_wrap=True)
    for row in digest.rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(Text(f"\n{digest.title}", style="bold"))
    unlimited = console.options.update(max_width=10_000)
    if Measurement.get(console, unlimited, table).maximum <= console.width:
        console.print(table)
        return
    for row in digest.rows:
        cells = [f"{name} {cell}" for name, cell in zip(digest.columns, row, strict=True) if cell]
        console.print(Text(" · ".join(cells)), overflow="fold")


def _flagged(view: View) -> list[str]:
    """A line per flag: of which methods times, or times of stages, are marked, how many, and what it means."""
    counts: dict[str, dict[str, int]] = {}
    for what, frame in (("", view.timings), ("stages of ", view.stages)):
        for row in records(frame):
            for flag in flags_in([row["flags"]]):
                of_flag, name = counts.setdefault(flag, {}), f"{what}{row['method']}"
                of_flag[name] = of_flag.get(name, 0) + 1
    return [
        f"{FLAGGED} {flag}: "
        + ", ".join(f"{method} ({n} {'row' if n == 1 else 'rows'})" for method, n in found.items())
        + (f": {FLAG_MEANINGS[flag]}" if flag in FLAG_MEANINGS else "")
        for flag, found in counts.items()
    ]


def _missing(view: View) -> list[str]:
    lines: dict[str, int] = {}
    for row in records(view.timings):
        if is_null(row["median_ms"]):
            line = f"{row['method']}: {short(reason(row))}"
            lines[line] = lines.get(line, 0) + 1
    return [f"{line} ({count} {'row' if count == 1 else 'rows'})" for line, count in lines.items()]


def _missing_stages(view: View) -> list[str]:
    methods = {row["point_id"]: row["method"] for row in records(view.stages)}
    lines: dict[str, int] = {}
    for point, reasons in missing_stages(view.stages).items():
        line = f"stages of {methods[point]}: {short(reasons[0])}"
        lines[line] = lines.get(line, 0) + 1
    return [f"{line} ({count} {'point' if count == 1 else 'points'})" for line, count in lines.items()]
