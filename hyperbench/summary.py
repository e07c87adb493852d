"""What `hyperbench run` prints beside its progress: the points of a dry run, and the result in short."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hyperbench.measure.runner import Outcome
from hyperbench.measure.session import Prepared
from hyperbench.progress import duration
from hyperbench.store import load_run

if TYPE_CHECKING:
    from pandas import DataFrame

_PASSES = ("forward", "backward", "forward_backward")


def print_grid(prepared: Prepared, console: Console) -> None:
    """One line that says which grid was taken and why."""
    config = prepared.config
    cells = prepared.cells
    lengths = sorted({cell.point.seq_len for cell in cells})
    span = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
    heads = "/".join(str(h) for h in sorted({cell.point.heads for cell in cells}))
    dtypes = "/".join(sorted({cell.point.dtype for cell in cells}))
    console.print(
        f"sweep {config.sweep} on {config.device.name} ({config.device.reason}): {len(cells)} points,"
        f" seq_len {span}, heads {heads}, {dtypes}, protocol {config.protocol.name}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def dry_run(prepared: Prepared) -> dict[str, Any]:
    """The points of a run and its estimated time, as plain data."""
    estimates = prepared.estimates_s()
    points = [
        {"point_id": cell.point.point_id, **cell.point.as_dict(), "estimate_s": round(seconds, 3)}
        for cell, seconds in zip(prepared.cells, estimates, strict=True)
    ]
    config = prepared.config
    return {
        "sweep": config.sweep,
        "device": config.device.name,
        "device_reason": config.device.reason,
        "protocol": config.protocol.name,
        "passes": list(config.passes),
        "axes": config.axes,
        "estimate_s": round(sum(estimates), 3),
        "points": points,
    }


def print_dry_run(prepared: Prepared, console: Console) -> None:
    """The points as a table, and the estimated time."""
    table = Table(box=None, header_style="bold")
    for name in ("method", "input", "causal", "batch", "heads", "kv", "n", "d", "dtype", "parameters", "about"):
        table.add_column(name, justify="right" if name in ("batch", "heads", "kv", "n", "d", "about") else "left")
    for cell, seconds in zip(prepared.cells, prepared.estimates_s(), strict=True):
        p = cell.point
        hyper = " ".join(f"{name}={value}" for name, value in p.hyper.items())
        shape = (str(p.batch), str(p.heads), str(p.kv_heads), f"{p.seq_len:,}", str(p.head_dim))
        table.add_row(p.method, p.input, "yes" if p.is_causal else "no", *shape, p.dtype, hyper, duration(seconds))
    console.print(table)
    console.print(
        f"{len(prepared.cells)} points, estimated time {duration(sum(prepared.estimates_s()))}", highlight=False
    )


def outcome_data(folder: Path, outcome: Outcome) -> dict[str, Any]:
    """How a run ended, as plain data."""
    return {
        "run": str(folder),
        "rows": dict(load_run(folder).timings["status"].value_counts()),
        "measured_now": {str(status): count for status, count in outcome.statuses.items()},
        "interrupted": outcome.interrupted,
    }


def print_outcome(folder: Path, console: Console) -> None:
    """Medians of each pass and the error of each point, failures, and what to do next."""
    run = load_run(folder)
    table = Table(box=None, header_style="bold")
    for name in ("n", "causal", "method", "input", "forward ms", "backward ms", "both ms", "error of out"):
        table.add_column(name, justify="left" if name in ("causal", "method", "input") else "right")
    errors = _first_errors(run.errors)
    ids = run.timings.sort_values(["is_causal", "heads", "seq_len"], kind="stable")["point_id"].drop_duplicates()
    for point_id in ids:
        rows = run.timings[run.timings["point_id"] == point_id]
        first = rows.iloc[0]
        cells = [_cell(rows[rows["pass"] == name]) for name in _PASSES]
        causal = "yes" if first["is_causal"] else "no"
        table.add_row(
            f"{first['seq_len']:,}", causal, first["method"], first["input"], *cells, errors.get(point_id, "")
        )
    console.print(table)
    for status, count in run.timings["status"].value_counts().items():
        if status != "ok":
            message = run.timings[run.timings["status"] == status]["message"].iloc[0]
            console.print(f"{count} rows {status}: {message}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"run folder: {folder}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"next: hyperbench plot --run {_quoted(folder)}", highlight=False, markup=False, soft_wrap=True)


def _cell(rows: DataFrame) -> str:
    if rows.empty:
        return ""
    last = rows.iloc[-1]
    return f"{last['median_ms']:.4g}" if last["status"] in ("ok", "throttled") else str(last["status"])


def _first_errors(errors: DataFrame) -> dict[str, str]:
    outputs = errors[(errors["metric"] == "out_rel_fro") & errors["value"].notna()].drop_duplicates("point_id")
    return {row["point_id"]: f"{row['value']:.3g}" for _, row in outputs.iterrows()}


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
