"""`hyperbench run`: measure a sweep, show how it gets on, and print the result in short."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from hyperbench.analyze.show import print_run
from hyperbench.analyze.verdict.report import verdict_data, verdicts
from hyperbench.analyze.view import make_view
from hyperbench.commands import exit_codes, progress
from hyperbench.commands.output import print_json, stderr, stdout
from hyperbench.commands.progress import duration
from hyperbench.measure.cpu_load import CpuTimes, busy_warning, read_cpu_times
from hyperbench.measure.runner import open_run, prepare, session
from hyperbench.measure.runner.locks import DeviceLock, device_key
from hyperbench.measure.runner.outcome import GOOD_STATUSES, PRODUCTIVE, Outcome
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.store import run_folder
from hyperbench.store.provenance import available_cpus
from hyperbench.store.run_folder import Run
from hyperbench.store.tables import can_write_parquet


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    dry_run: bool = False
    resume: bool = False
    fresh: bool = False
    retry_failed: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.fresh:
            raise typer.BadParameter("--resume continues a run and --fresh replaces it: give one of them")
        if self.retry_failed and not self.resume:
            raise typer.BadParameter("--retry-failed goes with --resume")


def run(words: list[str], options: Options) -> int:
    """Measure what the words of a command line ask for, and return the exit code.

    Raises ValueError or OSError, one line, on anything that cannot be run.
    """
    begun = read_cpu_times()
    prepared = prepare.prepare(words)
    console, notes = stdout(), stderr()
    for line in prepared.missing:
        text = f"warning: {line}; its rows say so, and the other methods are measured"
        notes.print(text, highlight=False, markup=False, soft_wrap=True)
    for line in prepared.left_out:
        notes.print(line, highlight=False, markup=False, soft_wrap=True)
    if options.dry_run:
        if options.as_json:
            print_json(dry_run_data(prepared))
        else:
            print_grid(prepared, console)
            print_dry_run(prepared, console)
        return 0
    if not options.as_json:
        print_grid(prepared, notes)
    outcome = measure(prepared, options, prepared.config.out, begun)
    if options.as_json:
        print_json(outcome_data(outcome.run, outcome))
    else:
        print_outcome(outcome.run, outcome, console)
    if outcome.interrupted:
        return exit_codes.INTERRUPTED
    return 1 if has_failures(outcome.run) else 0


def measure(prepared: Prepared, options: Options, out: Path | None, begun: CpuTimes) -> Outcome:
    """Measure in the run's folder what it lacks, the device locked, and show how that gets on.

    `begun` is the use of the cores when the preparation began. Raises ValueError or OSError, one line, on anything that
    cannot be run.
    """
    notes = stderr()
    with DeviceLock(device_key(prepared.config.device.name, prepared.facts)) as lock:
        if lock.note:
            notes.print(f"warning: {lock.note}", highlight=False, markup=False, soft_wrap=True)
        begins = options.resume and out is not None and not run_folder.is_run_folder(out)
        journal = open_run.open_folder(prepared, out, resume=options.resume, fresh=options.fresh)
        if begins and not options.as_json:
            notes.print(f"{out} holds no run yet: a new one begins", highlight=False, markup=False, soft_wrap=True)
        busy = busy_warning(begun, read_cpu_times(), available_cpus())
        if busy and not options.as_json:
            notes.print(f"warning: {busy}", highlight=False, markup=False, soft_wrap=True)
        with progress.listener(notes, quiet=options.as_json) as shown:
            return session.measure(prepared, journal, shown, retry_failed=options.retry_failed, start=shown.start)


def print_grid(prepared: Prepared, console: Console) -> None:
    """Print in one line which grid was taken and why."""
    config = prepared.config
    points = prepared.points
    lengths = sorted({point.seq_len for point in points})
    span = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
    heads = "/".join(str(h) for h in sorted({point.heads for point in points}))
    dtypes = "/".join(sorted({point.dtype for point in points}))
    console.print(
        f"sweep {config.sweep} on {config.device.name} ({config.device.reason}): {len(points)} points,"
        f" seq_len {span}, heads {heads}, {dtypes}, protocol {config.protocol.name}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip


def dry_run_data(prepared: Prepared) -> dict[str, Any]:
    """The points of a run and its estimated time, as plain data."""
    estimates = prepared.estimates_s()
    points = [
        {"point_id": point.point_id, **point.as_dict(), "estimate_s": round(seconds, 3)}
        for point, seconds in zip(prepared.points, estimates, strict=True)
    ]
    config = prepared.config
    return {
        "sweep": config.sweep, "device": config.device.name, "device_reason": config.device.reason,
        "protocol": config.protocol.name, "passes": list(config.passes),
        "stages": len(prepared.points) if config.stages else 0, "axes": config.axes,
        "estimate_s": round(sum(estimates), 3), "points": points,
    }  # fmt: skip


def print_dry_run(prepared: Prepared, console: Console) -> None:
    """Print the points as a table, and the estimated time."""
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


def outcome_data(run: Run, outcome: Outcome) -> dict[str, Any]:
    """The end of a run as plain data."""
    stages = {"stages_now": {str(k): n for k, n in outcome.stage_statuses.items()}} if outcome.stage_statuses else {}
    counts = {str(status): int(count) for status, count in run.scores["status"].value_counts().items()}
    scores = {"scores": counts} if counts else {}
    found: dict[str, Any]
    try:
        found = {"verdicts": verdict_data(verdicts(make_view(run)))}
    except ValueError as error:
        # What was measured is no less finished for it.
        found = {"verdicts": [], "no_verdicts": str(error)}
    return {
        "run": str(run.path),
        "rows": {str(k): int(v) for k, v in run.passes["status"].value_counts().items()},
        "measured_now": {str(status): count for status, count in outcome.statuses.items()},
        **stages,
        **scores,
        **found,
        **outcome.time,
        "interrupted": outcome.interrupted,
    }


def has_failures(run: Run) -> bool:
    """True if a run holds rows that should have worked; `unsupported` is an answer, not a failure."""
    return not {*run.timings["status"], *run.errors["status"], *run.scores["status"]} <= {str(s) for s in GOOD_STATUSES}


def print_outcome(run: Run, outcome: Outcome, console: Console) -> None:
    """Print the run's tables, and what to do next."""
    try:
        print_run(run, console)
    except ValueError as error:
        # What was measured is no less finished for it.
        console.print(f"the tables cannot be printed: {error}", highlight=False, markup=False, soft_wrap=True)
    if not can_write_parquet():
        console.print("the tables are .csv alone: .parquet needs pyarrow, which is not installed here", soft_wrap=True)
    if outcome.time:
        console.print(overhead_line(outcome.time), highlight=False, soft_wrap=True)
    if outcome.interrupted:
        console.print("interrupted; what was finished is kept: the same command with --resume goes on", soft_wrap=True)
    following = f"next: hyperbench plot --run {shlex.quote(str(run.path))}"
    console.print(following, highlight=False, markup=False, soft_wrap=True)


def overhead_line(time: dict[str, Any]) -> str:
    """The share of a session's time that was not spent on warm-up, samples and errors, and where it went instead."""
    rest = {part: spent_s for part, spent_s in time["spent_s"].items() if part not in PRODUCTIVE and spent_s >= 0.1}
    listed = ", ".join(f"{part} {spent_s:.1f} s" for part, spent_s in rest.items())
    overhead = f"overhead of the harness: {time['overhead']:.0%} of {duration(time['wall_s'])}"
    return f"{overhead} ({listed})" if listed else overhead
