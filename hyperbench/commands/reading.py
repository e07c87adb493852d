"""`hyperbench show`, `plot`, `export` and `claims`: the tables and figures of a run, and what it says of the paper."""

from __future__ import annotations

from pathlib import Path

from hyperbench.commands.output import chosen_run, print_json, print_lines, stdout


def show(run_dir: Path | None, filters: list[str] | None, baseline: str, sort: str | None, *, as_json: bool) -> int:
    """Print a run. Raises ValueError on a damaged run, an unknown baseline or order, or a filter that fits nothing."""
    from hyperbench.analyze.joins import parse_filters
    from hyperbench.analyze.show import run_summary, show_run
    from hyperbench.analyze.text_table import check_sort

    check_sort(sort)
    where = parse_filters(filters or [])
    folder = chosen_run(run_dir)
    if as_json:
        print_json(run_summary(folder, baseline, where, sort))
    else:
        show_run(folder, stdout(), baseline, where, sort)
    return 0


def export(run_dir: Path | None, kind: str, out: Path | None, baseline: str, *, as_json: bool) -> int:
    """Write the files and print their paths. Raises ValueError on what cannot be exported."""
    from hyperbench.analyze.export import export_run

    paths = [str(path) for path in export_run(chosen_run(run_dir), kind, out, baseline)]
    if as_json:
        print_json({"paths": paths})
    else:
        print_lines(paths)
    return 0


def plot(
    run_dir: Path | None,
    figures: list[str] | None,
    formats: str,
    out: Path | None,
    baseline: str,
    *,
    open_in_browser: bool,
    as_json: bool,
) -> int:
    """Draw figures and print their paths; 1 if one lacks a format that was asked for, or if there is none.

    Raises ValueError on what cannot be drawn.
    """
    import typer

    from hyperbench.analyze.plot import plot_run

    paths, messages, unwritten = plot_run(chosen_run(run_dir), figures, formats, out, baseline)
    if as_json:
        print_json({"paths": [str(path) for path in paths], "messages": [*messages, *unwritten]})
    else:
        print_lines([*messages, *unwritten, *paths])
    if open_in_browser:
        for page in (path for path in paths if path.suffix == ".html"):
            typer.launch(str(page))
    return 0 if paths and not unwritten else 1


def claims(run_dirs: list[Path] | None, *, strict: bool, as_json: bool) -> int:
    """Hold runs against the published claims and print the verdicts; 1 if strict and a claim does not hold.

    Raises ValueError on a folder that is no run, a damaged run or a malformed claim.
    """
    from hyperbench.analyze.claims.findings import Verdict
    from hyperbench.analyze.claims.report import chosen_runs, claims_data, judge, print_claims

    runs = chosen_runs(run_dirs)
    judged = judge(runs)
    if as_json:
        print_json(claims_data(judged, runs))
    else:
        print_claims(judged, stdout())
    return int(strict and any(one.verdict is Verdict.FAILS for one in judged))
