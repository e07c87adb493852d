"""What `hyperbench run` prints beside its progress: the points of a dry run, and the result in short."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from hyperbench.analyze.show import print_run
from hyperbench.commands.progress import duration
from hyperbench.measure.cpu_load import CpuTimes, busy_warning, read_cpu_times
from hyperbench.measure.runner.outcome import GOOD_STATUSES, PRODUCTIVE, Outcome
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.store.provenance import available_cpus
from hyperbench.store.tables import can_write_parquet


def print_grid(prepared: Prepared, console: Console) -> None:
    """One line that says which grid was taken and why."""
    config = prepared.config
    points = prepared.points
    lengths = sorted({point.seq_len for point in points})
    span = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
    heads = "/".join(str(h) for h in sorted({point.heads for point in points}))
    dtypes = "/".join(sorted({point.dtype for point in points}))
    console.print(
        f"sweep {config.sweep} on {config.device.name} ({config.device.reason}): {len(points)} points,"
        f" seq_len {span}, heads {heads}, {dtypes}, protocol {config.protocol.name}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def print_warnings(begun: CpuTimes, console: Console) -> None:
    """What stands in the way of good times on this machine, by what others did since a moment before the run."""
    warning = busy_warning(begun, read_cpu_times(), available_cpus())
    if warning:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def dry_run(prepared: Prepared) -> dict[str, Any]:
    """The points of a run and its estimated time, as plain data."""
    estimates = prepared.estimates_s()
    points = [
        {"point_id": point.point_id, **point.as_dict(), "estimate_s": round(seconds, 3)}
        for point, seconds in zip(prepared.points, estimates, strict=True)
    ]
    config = prepared.config
    return {
        "sweep": config.sweep,
        "device": config.device.name,
        "device_reason": config.device.reason,
        "protocol": config.protocol.name,
        "passes": list(config.passes),
        "stages": len(prepared.points) if config.stages else 0,
        "axes": config.axes,
        "estimate_s": round(sum(estimates), 3),
        "points": points,
    }


def print_dry_run(prepared: Prepared, console: Console) -> None:
    """The points as a table, and the estimated time."""
    table = Table(box=None, header_style="bold")
    for name in ("method", "input", "causal", "batch", "heads", "kv", "n", "d", "dtype", "parameters", "about"):
        table.add_column(name, justify="right" if name in ("batch", "heads", "kv", "n", "d", "about") else "left")
    for p, seconds in zip(prepared.points, prepared.estimates_s(), strict=True):
        hyper = " ".join(f"{name}={value}" for name, value in p.hyper.items())
        shape = (str(p.batch), str(p.heads), str(p.kv_heads), f"{p.seq_len:,}", str(p.head_dim))
        table.add_row(p.method, p.input, "yes" if p.is_causal else "no", *shape, p.dtype, hyper, duration(seconds))
    console.print(table)
    points = f"{len(prepared.points)} points"
    if prepared.config.stages:
        points += f", stages of the forward pass at {len(prepared.points)} of them"
    guessed = f" on a usual machine: {prepared.busy}" if prepared.busy else ""
    console.print(f"{points}, estimated time {duration(sum(prepared.estimates_s()))}{guessed}", highlight=False)


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """How a run ended, as plain data."""
    stages = {"stages_now": {str(k): n for k, n in outcome.stage_statuses.items()}} if outcome.stage_statuses else {}
    return {
        "run": str(outcome.run.path),
        "rows": {str(k): int(v) for k, v in outcome.run.passes["status"].value_counts().items()},
        "measured_now": {str(status): count for status, count in outcome.statuses.items()},
        **stages,
        **outcome.time,
        "interrupted": outcome.interrupted,
    }


def has_failures(outcome: Outcome) -> bool:
    """True if a run holds rows that should have worked; `unsupported` is an answer, not a failure."""
    run = outcome.run
    return not {*run.timings["status"], *run.errors["status"]} <= {str(s) for s in GOOD_STATUSES}


def print_outcome(outcome: Outcome, console: Console) -> None:
    """The run's tables, and what to do next."""
    print_run(outcome.run, console)
    if not can_write_parquet():
        console.print("the tables are .csv alone: .parquet needs pyarrow, which is not installed here", soft_wrap=True)
    if outcome.time:
        console.print(overhead_line(outcome.time), highlight=False, soft_wrap=True)
    if outcome.interrupted:
        console.print("interrupted; what was finished is kept: the same command with --resume goes on", soft_wrap=True)
    following = f"next: hyperbench plot --run {shlex.quote(str(outcome.run.path))}"
    console.print(following, highlight=False, markup=False, soft_wrap=True)


def overhead_line(time: dict[str, Any]) -> str:
    """The share of a session's time that was not spent on warm-up, samples and errors, and where it went instead."""
    rest = {part: seconds for part, seconds in time["spent_s"].items() if part not in PRODUCTIVE and seconds >= 0.1}
    listed = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in rest.items())
    return f"overhead of the harness: {time['overhead']:.0%} of {duration(time['wall_s'])}" + (
        f" ({listed})" if listed else ""
    )
