"""Exports: the tables as they are, and texts that LaTeX and Markdown print letter by letter."""

from __future__ import annotations

import csv
import dataclasses
import html
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.export import FORMATS, export_run, latex, latex_escape, markdown, markdown_escape
from hyperbench.analyze.rounds import add_speedup
from hyperbench.analyze.text_table import stage_tables, time_tables
from hyperbench.store.run_folder import load_run, write_tables
from hyperbench.store.schema import Pass, Timing
from tests.helpers.synthetic_runs import HOSTILE, HYPER, MakeRun, errors, failed, grid, point, stages, sweep, view_from

# LaTeX's ten special characters, and what turns into another letter or an argument without being one of them.
specials = st.text(st.sampled_from("\\{}$&#^_~%<>|\"[]-'`ab µ±×·"), max_size=30)
_COMMANDS = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
    r"\textgreater{}": ">", r"\textbar{}": "|", r"{\char34}": '"', "{[}": "[", r"$\times$": "×", r"$\mu$": "µ",
    r"$\pm$": "±", r"$\cdot$": "·", "-{}": "-", **{f"\\{c}": c for c in "&%$#_{}"},
}  # fmt: skip
_TOKEN = re.compile("|".join(re.escape(c) for c in sorted(_COMMANDS, key=len, reverse=True)) + "|.", re.DOTALL)


def mixed(run: MakeRun) -> Path:
    """A run in which some rows failed and one pass of a baseline is not there."""

    def change(t: Timing) -> Timing | None:
        if t.point.method == "flash2" and t.pass_ is Pass.BACKWARD and t.point.seq_len == 1024:
            return None
        return failed(t.point, t.pass_, message=HOSTILE[0]) if t.point.seq_len == 2048 else t

    return run(grid(lengths=(1024, 2048, 4096), change=change, staged=True))


def printed_by_latex(text: str) -> str:
    """The letters that LaTeX prints for an escaped text; refuses anything that it would not print as a letter."""
    tokens = _TOKEN.findall(text)
    assert not [t for t in tokens if t not in _COMMANDS and t in set('\\{}$&#^_~%<>|"')]
    return "".join(_COMMANDS.get(t, t) for t in tokens)


def printed_by_markdown(text: str) -> str:
    """The letters that Markdown shows for an escaped text on one line."""
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_{}\[\]<>#|~&$]", text)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


@settings(deadline=None, max_examples=150)
@given(specials | st.sampled_from(HOSTILE))
def test_latex_prints_every_text_letter_by_letter(text: str) -> None:
    escaped = latex_escape(text)
    assert printed_by_latex(escaped) == " ".join(text.split())
    assert "--" not in escaped
    assert not escaped.startswith("[")


@settings(deadline=None, max_examples=150)
@given(specials | st.sampled_from(HOSTILE) | st.text(max_size=30))
def test_markdown_shows_every_text_letter_by_letter(text: str) -> None:
    escaped = markdown_escape(text)
    plain = "".join(c for c in " ".join(text.split()) if c.isprintable())
    assert printed_by_markdown(escaped) == plain
    # Also as a page: no entity is left that a browser would resolve.
    assert html.unescape(re.sub(r"\\&", "&amp;", escaped)).count("&") == plain.count("&")


@pytest.mark.parametrize("fmt", ["csv", "parquet"])
def test_tables_come_back_as_they_are(make_run: MakeRun, tmp_path: Path, fmt: str) -> None:
    run = load_run(mixed(make_run))
    paths = export_run(run.path, fmt, tmp_path / "out")
    assert sorted(p.name for p in paths) == [f"{name}.{fmt}" for name in ("errors", "timings")]
    wanted = {"timings": add_speedup(run.timings), "errors": run.errors}
    for path in paths:
        table = wanted[path.stem]
        # CSV has no types: its cells are read as they stand and compared as what they were.
        read = pd.read_csv(path, dtype=str) if fmt == "csv" else pd.read_parquet(path)
        assert list(read.columns) == list(table.columns)
        assert len(read) == len(table)
        for column in table.columns:
            old, new = table[column], read[column]
            known = old.notna() & (old != "")
            assert list(known) == list(new.notna() & (new != "")), column
            for a, b in zip(old[known], new[known], strict=True):
                assert b == str(a) or float(b) == a, column


def test_parquet_keeps_types_even_of_columns_without_a_value(make_run: MakeRun, tmp_path: Path) -> None:
    run = load_run(make_run(grid(lengths=(1024,), methods=("flash2",), change=lambda t: failed(t.point, t.pass_))))
    export_run(run.path, "parquet", tmp_path)
    read = pd.read_parquet(tmp_path / "timings.parquet")
    types = pq.read_schema(tmp_path / "timings.parquet")
    table = add_speedup(run.timings)
    assert table["sampling"].isna().all()
    for column in table.columns:
        if table[column].dtype == object:
            assert types.field(column).type in (pa.string(), pa.large_string()), column
        else:
            assert read[column].dtype == table[column].dtype, column
    assert str(read["block_size"].dtype) == "Int64"


def test_speedups_are_over_the_baseline_that_was_asked_for(full_run: Path, tmp_path: Path) -> None:
    export_run(full_run, "csv", tmp_path, baseline="hyper")
    table = pd.read_csv(tmp_path / "timings.csv")
    assert table.loc[table["method"] == "hyper", "speedup"].eq(1.0).all()
    assert table.loc[table["method"] == "flash2", "speedup"].gt(0).all()


@pytest.mark.parametrize("hostile", HOSTILE)
def test_latex_is_balanced_and_complete_whatever_the_run_holds(hostile: str) -> None:
    records = [
        r if not isinstance(r, Timing) else dataclasses.replace(r, protocol=hostile)
        for r in grid(lengths=(1024, 2048), input=hostile)
    ]
    text = latex(view_from(records, machine=hostile, commit=hostile))
    assert re.findall(r"\\(begin|end)\{(\w+)\}", text) == 2 * [
        ("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table"),
    ]  # fmt: skip
    unescaped = re.sub(r"\\\\|\\[{}$&#_%]", "", text)
    depth = 0
    for char in unescaped:
        depth += (char == "{") - (char == "}")
        assert depth >= 0
    assert depth == 0
    assert unescaped.count("$") % 2 == 0
    for row in re.findall(r"^(.*&.*) \\\\$", text, re.MULTILINE):
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
        assert columns is not None
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1


def test_latex_and_markdown_hold_every_cell_of_the_tables() -> None:
    swept = [r for n in (64, 128) for r in stages(point("hyper", 16_384, hyper={**HYPER, "block_size": n}))]
    view = view_from([*sweep("block_size", (64, 128), masks=(False, True)), *swept])
    tex, page = latex(view), markdown(view)
    assert stage_tables(view)
    for table in [*time_tables(view), *stage_tables(view)]:
        for row in (table.columns, *table.rows):
            assert " & ".join(map(latex_escape, row)) + r" \\" in tex
            assert "| " + " | ".join(map(markdown_escape, row)) + " |" in page


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_markdown_table_keeps_its_columns_whatever_the_run_holds(hostile: str) -> None:
    records = grid(lengths=(1024, 2048), methods=("flash2", "hyper", hostile), masks=(False,))
    page = markdown(view_from(records, machine=hostile))
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if line.startswith("|")]
    assert {len(row) for row in table} == {len(table[0])}
    assert set("".join(table[1])) <= set(":- ")
    assert len(table) == 2 + 2 * 3
    assert markdown_escape(hostile) in page


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_export_goes_into_the_run_unless_told_otherwise_and_leaves_nothing_half_written(
    make_run: MakeRun, fmt: str
) -> None:
    run = make_run(grid(lengths=(1024,)))
    paths = export_run(run, fmt, None)
    assert sorted((run / "export").iterdir()) == sorted(paths)
    assert all(p.stat().st_size for p in paths)


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_folder_that_cannot_be_written_is_one_line(full_run: Path, tmp_path: Path, fmt: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot write to") as caught:
        export_run(full_run, fmt, blocked / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [blocked]


def test_an_unknown_format_names_the_nearest(full_run: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown export format 'markdwn'.*did you mean 'markdown'"):
        export_run(full_run, "markdwn", None)


def test_a_run_without_a_measurement_is_refused_before_anything_is_written(make_run: MakeRun) -> None:
    run = make_run([])
    with pytest.raises(ValueError, match="nothing to export"):
        export_run(run, "csv", None)
    assert not (run / "export").exists()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "＝"])
def test_no_text_of_a_csv_is_a_formula_and_numbers_stay_numbers(make_run: MakeRun, tmp_path: Path, start: str) -> None:
    formula = f"{start}cmd|' /C calc'!A0"
    p = dataclasses.replace(point("hyper", 64, hyper=HYPER), input=formula)
    folder = make_run([failed(p, Pass.FORWARD, message=formula), *errors(point("hyper", 64), scale=-1.0)])
    write_tables(folder)
    exported = export_run(folder, "csv", tmp_path / "out")
    for path in (*exported, *(folder / f"{name}.csv" for name in ("timings", "errors"))):
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        dangerous = [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r", "＝")]
        assert all(float(cell) < 0 for cell in dangerous)
        assert ("'" + formula.replace("\r", "\n") in cells) == (path.stem == "timings")
    assert (pd.read_csv(folder / "errors.csv")["value"] < 0).any()
    assert formula in set(pd.read_parquet(folder / "timings.parquet")["input"])
