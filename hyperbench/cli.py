"""The command line: each command reads its options, calls one room of the house, and prints what comes back.

Nothing heavy is imported before a command runs, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hyperbench import __version__
from hyperbench.commands import exit_codes, listing

_PIPE_WIDTH = 200

app = typer.Typer(
    name="hyperbench",
    help="Time and error of HyperAttention, and of any approximate attention, against exact attention.",
    epilog="Start with: hyperbench run sweep=smoke, then hyperbench plot. Every command has --help.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunDir = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="Folder of the run; default: the newest under results/runs.")
]
Baseline = Annotated[str, typer.Option(metavar="METHOD", help="Method that speedups are over.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
OutDir = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder to write to.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hyperbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options of the program itself."""


@app.command()
def run(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="sweep=NAME, and any key of the configuration; KEY=A,B makes an axis of the grid.",
            autocompletion=listing.complete_override,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the points and the estimated time.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Measure only what this run's folder lacks.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace the run in out=DIR.")] = False,
    retry_failed: Annotated[bool, typer.Option(help="With --resume: measure failed points again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a sweep: times of every pass, and the error beside them.

    Examples:
      hyperbench run sweep=smoke
      hyperbench run sweep=seq_len is_causal=true out=results/runs/mine
      hyperbench run shape.seq_len=4096,8192 method.hyper.block_size=128,256
      hyperbench run method=[flash2,hyper,uniform] input=gaussian,clustered_values
      hyperbench run sweep=fig4 --dry-run

    `hyperbench list keys` shows every key. A run that was killed goes on with the same command and --resume. Ctrl-C
    ends it after the current sample, a second one at once. out=DIR names the folder; default:
    results/runs/<sweep>-<device>-<time>.
    """
    if resume and fresh:
        raise typer.BadParameter("--resume continues a run and --fresh replaces it: give one of them")
    if retry_failed and not resume:
        raise typer.BadParameter("--retry-failed goes with --resume")
    from hyperbench.commands import progress
    from hyperbench.commands import run_summary as summary
    from hyperbench.measure.cpu_load import read_cpu_times
    from hyperbench.measure.runner import open_run, prepare, session
    from hyperbench.measure.runner.locks import DeviceLock, device_key

    begun = read_cpu_times()
    prepared = prepare.prepare(overrides or [])
    console, notes = _stdout(), Console(stderr=True)
    if dry_run and as_json:
        return _print_json(summary.dry_run(prepared))
    if not as_json:
        summary.print_grid(prepared, console if dry_run else notes)
    if dry_run:
        return summary.print_dry_run(prepared, console)
    out = Path(prepared.config.out) if prepared.config.out is not None else None
    with DeviceLock(device_key(prepared.config.device.name, prepared.facts)) as lock:
        if lock.note:
            notes.print(f"warning: {lock.note}", highlight=False, markup=False, soft_wrap=True)
        folder = open_run.open_folder(prepared, out, resume=resume, fresh=fresh)
        if not as_json:
            summary.print_warnings(begun, notes)
        with progress.listener(notes, quiet=as_json) as shown:
            outcome = session.measure(prepared, folder, shown, retry_failed=retry_failed, start=shown.start)
    if as_json:
        _print_json(summary.outcome_data(outcome))
    else:
        summary.print_outcome(outcome, console)
    if outcome.interrupted:
        raise typer.Exit(exit_codes.INTERRUPTED)
    raise typer.Exit(1 if summary.has_failures(outcome) else 0)


@app.command()
def plot(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIGURE | KEY=VALUE]...",
            help="Figures to make; default: all that fit. KEY=VALUE chooses part of the run (input=gaussian).",
            autocompletion=listing.complete_figure,
        ),
    ] = None,
    run_dir: RunDir = None,
    formats: Annotated[str, typer.Option("--format", metavar="KIND,...", help="html, png, svg, pdf.")] = "html",
    out: OutDir = None,
    baseline: Baseline = "flash2",
    open_: Annotated[bool, typer.Option("--open", help="Open the HTML in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw figures of a run as HTML that opens offline, and as images where an exporter is installed.

    Examples:
      hyperbench plot
      hyperbench plot fig4 --format html,png --run results/runs/mine
      hyperbench plot sweep input=gaussian

    Figures go to figures/ in the run's folder unless --out says otherwise; `hyperbench list figures` shows them.
    """
    from hyperbench.analyze.plot import plot_run

    result = plot_run(_chosen(run_dir), figures, [formats], out, baseline)
    if as_json:
        _print_json({"paths": [str(p) for p in result.paths], "messages": result.messages})
    else:
        for line in [*result.messages, *map(str, result.paths)]:
            typer.echo(line)
    if open_:
        for page in (p for p in result.paths if p.suffix == ".html"):
            typer.launch(str(page))
    if not result.paths:
        raise typer.Exit(1)


@app.command()
def show(run_dir: RunDir = None, baseline: Baseline = "flash2", as_json: AsJson = False) -> None:
    """Print a run's tables: medians with their intervals, speedups, errors, and what failed and why."""
    from hyperbench.analyze.show import run_summary, show_run

    folder = _chosen(run_dir)
    if as_json:
        _print_json(run_summary(folder, baseline))
    else:
        show_run(folder, _stdout(), baseline)


@app.command()
def export(
    fmt: Annotated[str, typer.Option("--format", metavar="KIND", help="csv, parquet, latex or markdown.")] = "csv",
    run_dir: RunDir = None,
    out: OutDir = None,
    baseline: Baseline = "flash2",
    as_json: AsJson = False,
) -> None:
    """Write a run's tables for other programs (csv, parquet) or for a paper (latex, markdown).

    They go to export/ in the run's folder unless --out says otherwise; speedups are over --baseline.
    """
    from hyperbench.analyze.export import export_run

    paths = [str(path) for path in export_run(_chosen(run_dir), fmt, out, baseline)]
    if as_json:
        _print_json({"paths": paths})
    else:
        typer.echo("\n".join(paths))


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(metavar="A", help="Folder of the run that is compared with (before).")],
    run_b: Annotated[Path | None, typer.Argument(metavar="B", help="Folder of the other run (after).")] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="M1,M2", help="Compare method M1 of A with M2 of B, or of A itself.")
    ] = None,
    fail_on_regression: Annotated[
        str | None, typer.Option(metavar="PCT", help="Exit 1 if B is slower by more than PCT %, or lacks a time.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(metavar="PCT", help="Smaller differences count as none (never below the A/A floor).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, or two methods of one: same, faster, slower or ambiguous, and why.

    Examples:
      hyperbench compare results/runs/before results/runs/after
      hyperbench compare results/runs/mine --methods flash2,hyper
      hyperbench compare main branch --fail-on-regression 5

    Rounds are compared, never pooled samples; without at least 3 a side there is no verdict, and more of them see
    smaller changes (protocol=strict). The threshold is 1 %, or what a machine differs from itself by (hyperbench
    doctor) if that is more.
    """
    from hyperbench.commands import compare

    options = compare.checked(methods, fail_on_regression, threshold)
    comparison = compare.compared(run_a, run_b, options)
    if as_json:
        _print_json(compare.data(comparison, options))
    else:
        compare.print_text(comparison, options, _stdout())
    raise typer.Exit(1 if compare.fails(comparison, options) else 0)


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="|".join(listing.KINDS), help="What to list.", autocompletion=listing.complete_kind)
    ],
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from: methods, sweeps, figures, inputs, protocols, devices, or every key."""
    rows = listing.rows(what)
    if as_json:
        _print_json(rows)
    else:
        listing.print_rows(rows, _stdout())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Examine this machine: devices, libraries, which methods can run and why others cannot, timer and noise."""
    from hyperbench.commands import doctor as room

    report = room.examine()
    if as_json:
        _print_json(report)
    else:
        room.print_report(report, _stdout())
    raise typer.Exit(0 if report["ok"] else 1)


def main() -> None:
    """Run the command line; whatever a user can cause ends in one line on stderr and an exit code (see exits)."""
    exit_codes.leave_with(lambda: app(standalone_mode=False))


def _stdout() -> Console:
    """The terminal as it is; a wide page for pipes and files, so that tables are not folded there."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _chosen(run_dir: Path | None) -> Path:
    from hyperbench.store.run_folder import latest_run

    return run_dir if run_dir is not None else latest_run()


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, default=str))
