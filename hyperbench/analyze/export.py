"""A run for other programs and for papers: tidy tables as CSV or Parquet, compact ones as LaTeX or Markdown."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from hyperbench.analyze.caveats import caveats
from hyperbench.analyze.format import printable
from hyperbench.analyze.rounds import add_speedup
from hyperbench.analyze.scores.text import notes, origin, score_tables, settings_lines
from hyperbench.analyze.text_table import FLAGGED, TextTable, kinds_note, run_tables, speedup_note, stage_tables
from hyperbench.analyze.view import View, make_view, provenance
from hyperbench.config.catalog import nearest
from hyperbench.store.files import atomic_write, atomic_write_text
from hyperbench.store.run_folder import load_run, made_folder
from hyperbench.store.tables import can_write_parquet, to_csv, to_parquet

FORMATS = ("csv", "parquet", "latex", "markdown")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "×": r"$\times$", "µ": r"$\mu$", "±": r"$\pm$", "†": r"$\dagger$", "·": r"$\cdot$",
    '"': r"{\char34}", "[": "{[}",
}  # fmt: skip
_MARKDOWN = "\\`*_{}[]<>#|~&$"


def export_run(run_dir: Path, fmt: str, out_dir: Path | None, baseline: str = "flash2") -> list[Path]:
    """Write a run's tables to `out_dir` (default: the run's folder, export/), each by temporary file and rename.

    csv and parquet give timings (with the speedups over `baseline`) and errors; latex and markdown give one
    file of compact tables. Raises ValueError on an unknown format, a damaged or empty run, or a folder that cannot be
    written.
    """
    if fmt not in FORMATS:
        raise ValueError(f"unknown export format {fmt!r}; allowed: {', '.join(FORMATS)}{nearest(fmt, FORMATS)}")
    if fmt == "parquet" and not can_write_parquet():
        raise ValueError("format parquet needs pyarrow, which is not installed here; allowed: csv, latex, markdown")
    run = load_run(Path(run_dir))
    if run.timings.empty and run.scores.empty:
        raise ValueError(f"{run.path} holds no measurement yet: there is nothing to export")
    folder = Path(out_dir) if out_dir is not None else made_folder(run.path, "export")
    view = make_view(run, baseline)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fmt in ("latex", "markdown"):
            path = folder / ("summary.tex" if fmt == "latex" else "summary.md")
            atomic_write_text(path, latex(view) if fmt == "latex" else markdown(view))
            return [path]
        frames = {"timings": add_speedup(run.timings, baseline, per_round=True), "errors": run.errors}
        if not run.scores.empty:
            frames = {"scores": run.scores} | ({} if run.timings.empty else frames)
        for name, frame in frames.items():
            atomic_write(folder / f"{name}.{fmt}", partial(to_csv if fmt == "csv" else to_parquet, frame))
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror or error}") from None
    return [folder / f"{name}.{fmt}" for name in frames]


def latex(view: View) -> str:
    """A LaTeX table per masking, those of the stages and of scores; needs no package beyond LaTeX itself."""
    times = (
        f"medians, $\\pm$ the wider side of the 95\\,\\% interval ({FLAGGED}: samples flagged); "
        f"{latex_escape(speedup_note(view))}; error: relative Frobenius"
    )
    stages = f"medians ({FLAGGED}: samples flagged), and their part of the sum of the stages"
    tables = [(table, times) for table in run_tables(view)] if not view.timings.empty else []
    tables += [(table, stages) for table in stage_tables(view)]
    note = latex_escape(_note(view)) if tables else ""
    texts = [_latex_table(f"Attention {table.title}", table, f"{about}. {note}") for table, about in tables]
    about = latex_escape(_scores_note(view)) if _has_scores(view) else ""
    return "\n".join([*texts, *(_latex_table(table.title, table, about) for table in _score_tables(view))])


def _latex_table(title: str, table: TextTable, about: str) -> str:
    columns = "".join("r" if is_number else "l" for is_number in table.is_number)
    head, *rows = (" & ".join(latex_escape(cell) for cell in row) + r" \\" for row in (table.columns, *table.rows))
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{latex_escape(title)}: {about}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            head,
            r"\hline",
            *rows,
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown(view: View) -> str:
    """A Markdown table per masking, those of the stages and of scores, with where it was measured."""
    scores = [_markdown_table(table) for table in _score_tables(view)]
    if scores:
        scores.append(f"{markdown_escape(_scores_note(view))}\n")
    if view.timings.empty:
        return "\n".join(scores)
    return "\n".join(
        [
            *scores,
            *(_markdown_table(table) for table in [*run_tables(view), *stage_tables(view)]),
            "Medians, ± the wider side of the 95 % interval (of all samples below 6, none for one), "
            f"{markdown_escape(FLAGGED)} where samples are flagged; {markdown_escape(speedup_note(view))}; "
            "error: relative Frobenius. "
            f"{markdown_escape(_note(view))}",
            "",
        ]
    )


def _markdown_table(table: TextTable) -> str:
    rule = ["---:" if is_number else ":---" for is_number in table.is_number]
    head, *rows = ([markdown_escape(cell) for cell in row] for row in (table.columns, *table.rows))
    lines = "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])
    return f"### {markdown_escape(table.title)}\n\n{lines}\n"


def _has_scores(view: View) -> bool:
    return view.scores is not None and not view.scores.empty


def _score_tables(view: View) -> list[TextTable]:
    return score_tables(view.scores, view.baseline) if view.scores is not None and _has_scores(view) else []


def _scores_note(view: View) -> str:
    """The meaning and the provenance of scores, and the settings of each method."""
    assert view.scores is not None
    where = "; ".join(origin(view.scores, view.environment))
    told = [*notes(view.scores, view.baseline), where, *settings_lines(view.scores, view.baseline)]
    return " ".join(f"{text}." for text in told)


def _note(view: View) -> str:
    """The provenance of the numbers, the methods that are no proposal, and the caveats of methods."""
    told = [line for line in (*view.differing, kinds_note(view)) if line]
    return " ".join([f"{'; '.join(provenance(view))}.", *(f"{line}." for line in told), *caveats(view.timings)])


def latex_escape(text: str) -> str:
    """A text that LaTeX prints letter by letter."""
    # Neither a ligature (-- is a dash) nor an optional argument (a line that begins with [) may come of it.
    escaped = "".join(_LATEX.get(c, c) for c in printable(text))
    return re.sub("-(?=-)", "-{}", escaped)


def markdown_escape(text: str) -> str:
    """A text that Markdown prints letter by letter, on one line."""
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in printable(text))
