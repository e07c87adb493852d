"""The command line: the options of each command; its body calls one function of `commands/` and leaves with its code.

Nothing heavy is imported before a command runs, so that `--help` and completion answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hyperbench import __version__
from hyperbench.commands import exit_codes, listing, streams
from hyperbench.options import AsJson, Baseline, Fresh, OutDir, Resume, RunDir, RunDirs, folder

app = typer.Typer(
    name="hyperbench",
    help="Time and error of HyperAttention, and of any approximate attention, against exact attention.",
    epilog="Start with: hyperbench run sweep=smoke, then hyperbench plot. Every command has --help.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hyperbench {__version__}")
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
    resume: Resume = False,
    fresh: Fresh = False,
    retry_failed: Annotated[bool, typer.Option(help="With --resume: measure failed points again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a sweep: times of every pass, and the error alongside them.

    Examples:
      hyperbench run sweep=smoke
      hyperbench run sweep=seq_len is_causal=true out=results/runs/mine
      hyperbench run shape.seq_len=4096,8192 method.hyper.block_size=128,256
      hyperbench run method=\\[flash2,hyper,uniform] input=gaussian,clustered_values
      hyperbench run sweep=fig4 --dry-run

    `hyperbench list keys` shows every key. A run that was killed goes on with the same command and --resume. Ctrl-C
    ends it after the current sample, a second one at once. out=DIR names the folder; default:
    results/runs/<sweep>-<device>-<time>.
    """
    from hyperbench.commands import run as command

    options = command.Options(dry_run, resume, fresh, retry_failed, as_json)
    raise typer.Exit(command.run(overrides or [], options))


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
    from hyperbench.commands import reading

    raise typer.Exit(reading.plot(run_dir, figures, formats, out, baseline, open_in_browser=open_, as_json=as_json))


@app.command()
def show(
    filters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Part of the run to show; default: all of it."),
    ] = None,
    run_dir: RunDir = None,
    baseline: Baseline = "flash2",
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="speed|error|method", help="Order of tables that have a row per method, and ask for them."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a run's verdicts and tables: medians with intervals, speedups, errors, and what failed and why.

    Examples:
      hyperbench show
      hyperbench show input=gaussian is_causal=true --sort error

    From three methods beside the baseline on, tables have a row per method, the fastest first.
    """
    from hyperbench.commands import reading

    raise typer.Exit(reading.show(run_dir, filters, baseline, sort, as_json=as_json))


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
    from hyperbench.commands import reading

    raise typer.Exit(reading.export(run_dir, fmt, out, baseline, as_json=as_json))


@app.command()
def claims(
    run_dirs: RunDirs = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if a claim does not hold.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hold what was measured against what the paper claims: holds, does not hold, or not measured here, and why."""
    from hyperbench.commands import reading

    raise typer.Exit(reading.claims(run_dirs, strict=strict, as_json=as_json))


@app.command()
def compare(
    run_a: Annotated[
        Path, typer.Argument(metavar="A", parser=folder, help="Folder of the run that is compared with (before).")
    ],
    run_b: Annotated[
        Path | None, typer.Argument(metavar="B", parser=folder, help="Folder of the other run (after).")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(metavar="M1,M2", help="Compare method M1 of A with M2 of B, or of A itself.")
    ] = None,
    fail_on_regression: Annotated[
        str | None, typer.Option(metavar="PCT", help="Exit 1 if B is slower by more than PCT %, or lacks a time.")
    ] = None,
    fail_on_error: Annotated[
        bool, typer.Option("--fail-on-error", help="Exit 1 if an error of B is worse beyond its interval, or lost.")
    ] = False,
    threshold: Annotated[
        str | None, typer.Option(metavar="PCT", help="Smaller differences count as none (never below the A/A floor).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, or two methods of one: same, faster, slower or ambiguous, and why; and their errors.

    Examples:
      hyperbench compare results/runs/before results/runs/after
      hyperbench compare results/runs/mine --methods flash2,hyper
      hyperbench compare main branch --fail-on-regression 5

    Rounds are compared, never pooled samples; without at least 3 a side there is no verdict, and more of them see
    smaller changes (protocol=strict). The threshold is 1 %, or what a machine differs from itself by (hyperbench
    doctor) if that is more.
    """
    from hyperbench.commands import compare as command

    raise typer.Exit(
        command.compare(
            run_a, run_b, methods, fail_on_regression, threshold, fail_on_error=fail_on_error, as_json=as_json
        )
    )


@app.command()
def capture(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", parser=folder, help="The .safetensors file to write.")],
    layers: Annotated[str, typer.Option(metavar="L,L,...", help="Layers to record, the first one is 0.")],
    model: Annotated[
        str | None, typer.Option(metavar="DIR_OR_NAME", help="A Hugging Face model; default: SmolLM2-135M.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="A text in UTF-8; default: the help that ships with Python.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens of the text; default: 4096.")] = None,
    heads: Annotated[str | None, typer.Option(metavar="H,H,...", help="Query heads to keep; default: all.")] = None,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32, or int8 with a scale a row.")] = "float16",
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Licences of model and text, to record.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record q, k and v of a language model on a text, for input=captured.

    Examples:
      hyperbench capture --layers 0,8,16 --out smollm2.safetensors
      hyperbench capture --model my/folder --text book.txt --layers 3 --max-tokens 8192 --out book.safetensors
      hyperbench run input=captured input.path=book.safetensors shape.seq_len=8192

    Needs transformers: pip install 'hyperbench\\[lm]'. docs/inputs.md tells what is recorded.
    """
    from hyperbench.commands import capture as command

    options = command.Options(model, text, layers, out, max_tokens, heads, dtype, licence)
    raise typer.Exit(command.capture(options, as_json=as_json))


@app.command()
def tune(
    max_error: Annotated[str, typer.Option(metavar="E", help="Relative error of the output that is good enough.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="The input, shape and mask to tune for; KEY=A,B of the method makes another grid of settings.",
            autocompletion=listing.complete_override,
        ),
    ] = None,
    input_: Annotated[str | None, typer.Option("--input", metavar="NAME", help="The same as input=NAME.")] = None,
    check_input: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Input of the check, such as input.layer=8; default: another seed."),
    ] = None,
    resume: Resume = False,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Find the fastest setting of hyper whose error stays below a limit, on an input and shape.

    Examples:
      hyperbench tune --max-error 0.1 --input clustered_values shape.seq_len=8192
      hyperbench tune --max-error 0.3 --input smollm2 input.layer=4 --check-input input.layer=13 is_causal=true
      hyperbench tune --max-error 0.1 --input clustered_values method.hyper.block_size=64,128 out=DIR --resume

    The setting is then measured again on inputs and draws of other seeds, and that error is told beside the first.
    """
    from hyperbench.commands import run as run_command
    from hyperbench.commands import tune as command

    words = [*(overrides or []), *([f"input={input_}"] if input_ is not None else [])]
    options = run_command.Options(resume=resume, fresh=fresh, as_json=as_json)
    raise typer.Exit(command.tune(words, max_error, check_input or [], options))


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(metavar="|".join(listing.KINDS), help="What to list.", autocompletion=listing.complete_kind)
    ],
    as_json: AsJson = False,
) -> None:
    """List what there is to choose from: methods, sweeps, figures, inputs, protocols, devices, or every key."""
    raise typer.Exit(listing.list_(what, as_json=as_json))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Examine this machine: devices, libraries, which methods can run and why others cannot, timer and noise."""
    from hyperbench.commands import doctor as command

    raise typer.Exit(command.doctor(as_json=as_json))


def main() -> None:
    """Run the command line; whatever a user can cause ends in one line on stderr and an exit code (see exit_codes)."""
    streams.make_safe()
    exit_codes.leave_with(lambda: app(standalone_mode=False))
