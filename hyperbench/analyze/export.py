"""A run for other programs and for papers: tidy tables as CSV or Parquet, compact ones as LaTeX or Markdown."""

from __future__ import annotations

import difflib
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbench.analyze.authors import authors_digests, view_beside
from hyperbench.analyze.causality import causality_notes
from hyperbench.analyze.joins import add_speedup, check_baseline
from hyperbench.analyze.text_table import FLAGGED, Digest, digests, stage_digests
from hyperbench.analyze.view import View, make_view, provenance
from hyperbench.store.run_folder import Run, atomic_write, atomic_write_text, load_run
from hyperbench.store.tables import can_write_parquet

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "parquet", "latex", "markdown")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "×": r"$\times$", "µ": r"$\mu$", "±": r"$\pm$", "·": r"$\cdot$", '"': r"{\char34}", "[": "{[}",
}  # fmt: skip
_MARKDOWN = "\\`*_{}[]<>#|~&$"


def export_run(
    run_dir: Path, fmt: str, out_dir: Path | None, baseline: str = "flash2", beside: Path | None = None
) -> list[Path]:
    """Write a run's tables to `out_dir` (default: the run's folder, export/), each by temporary file and rename.

    csv and parquet give timings (with the speedups over `baseline`) and errors; latex and markdown give one
    file of compact tables, for a run of protocol=paper those beside the run `beside`. Raises ValueError on an unknown
    format, a damaged or empty run, a run of protocol=paper alone, or a folder that cannot be written.
    """
    if fmt not in FORMATS:
        near = difflib.get_close_matches(fmt, FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown export format {fmt!r}; allowed: {', '.join(FORMATS)}{hint}")
    if fmt == "parquet" and not can_write_parquet():
        raise ValueError("format parquet needs pyarrow, which is not installed here; allowed: csv, latex, markdown")
    run = load_run(Path(run_dir))
    if run.timings.empty:
        raise ValueError(f"{run.path} holds no measurement yet: there is nothing to export")
    folder = Path(out_dir) if out_dir is not None else run.path / "export"
    view = make_view(run, baseline)
    is_tidy = fmt in ("csv", "parquet")
    # Tidy tables say in every row by which protocol it was timed.
    other = None if is_tidy and beside is None else view_beside(run, view, beside)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_tidy:
            return _write_tables(run, folder, fmt, baseline)
        path = folder / ("summary.tex" if fmt == "latex" else "summary.md")
        atomic_write_text(path, latex(view, other) if fmt == "latex" else markdown(view, other))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from None
    return [path]


def _write_tables(run: Run, folder: Path, fmt: str, baseline: str) -> list[Path]:
    check_baseline(run.timings, baseline)
    frames = {"timings": add_speedup(run.timings, baseline), "errors": run.errors}
    paths = []
    for name, frame in frames.items():
        path = folder / f"{name}.{fmt}"
        atomic_write(path, partial(_write_frame, frame, fmt))
        paths.append(path)
    return paths


def _write_frame(frame: pd.DataFrame, fmt: str, path: Path) -> None:
    if fmt == "csv":
        frame.to_csv(path, index=False)
        return
    # A text column that is all null would otherwise lose its type.
    texts = {name: "string" for name in frame.columns if frame[name].dtype == object}
    frame.astype(texts).to_parquet(path, index=False)


def latex(view: View, beside: View | None = None) -> str:
    """A LaTeX table per masking, and those of the stages; needs no package beyond LaTeX itself.

    With `beside` only what a run of protocol=paper has to say beside that one.
    """
    note = latex_escape(_note(view))
    if beside is not None:
        other = latex_escape(_note(beside))
        return "\n".join(
            _latex_table(d, "20th percentiles beside medians", f"{note} Beside: {other}")
            for d in authors_digests(view, beside)
        )
    times = (
        f"medians, $\\pm$ the wider side of the 95\\,\\% interval ({FLAGGED}: samples flagged); "
        f"speedup over {latex_escape(view.baseline)}; error: relative Frobenius"
    )
    stages = f"medians ({FLAGGED}: samples flagged), and their part of the sum of the stages"
    return "\n".join(
        [
            *(_latex_table(digest, times, note) for digest in digests(view)),
            *(_latex_table(digest, stages, note) for digest in stage_digests(view)),
        ]
    )


def _latex_table(digest: Digest, about: str, note: str) -> str:
    columns = "".join("r" if is_number else "l" for is_number in digest.is_number)
    lines = [" & ".join(latex_escape(cell) for cell in row) + r" \\" for row in digest.rows]
    caption = f"Attention {latex_escape(digest.title)}: {about}. {note}"
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            " & ".join(latex_escape(name) for name in digest.columns) + r" \\",
            r"\hline",
            *lines,
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown(view: View, beside: View | None = None) -> str:
    """A Markdown table per masking, and those of the stages, with where it was measured.

    With `beside` only what a run of protocol=paper has to say beside that one.
    """
    note = markdown_escape(_note(view))
    if beside is not None:
        tables = [_markdown_table(digest) for digest in authors_digests(view, beside)]
        return "\n".join([*tables, f"{note} Beside: {markdown_escape(_note(beside))}", ""])
    return "\n".join(
        [
            *(_markdown_table(digest) for digest in [*digests(view), *stage_digests(view)]),
            "Medians, ± the wider side of the 95 % interval (of all samples below 6, none for one), "
            f"{markdown_escape(FLAGGED)} where samples are flagged; error: relative Frobenius. {note}",
            "",
        ]
    )


def _markdown_table(digest: Digest) -> str:
    rule = ["---:" if is_number else ":---" for is_number in digest.is_number]
    head = [[markdown_escape(name) for name in digest.columns], rule]
    rows = [[markdown_escape(cell) for cell in row] for row in digest.rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in [*head, *rows])
    return f"### {markdown_escape(digest.title)}\n\n{table}\n"


def _note(view: View) -> str:
    """Where the numbers come from, and which methods are not causal in q."""
    return " ".join([f"{'; '.join(provenance(view))}.", *causality_notes(view.timings)])


def latex_escape(text: str) -> str:
    """A text that LaTeX prints letter by letter."""
    # Neither a ligature (-- is a dash) nor an optional argument (a line that begins with [) may come of it.
    escaped = "".join(_LATEX.get(c, c) for c in _line(text))
    return re.sub("-(?=-)", "-{}", escaped)


def markdown_escape(text: str) -> str:
    """A text that Markdown prints letter by letter, on one line."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in _line(text))


def _line(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
