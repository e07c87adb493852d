"""A run in a few compact tables of texts, one per masking: printed in the terminal, exported as LaTeX or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import (
    MASK_LABELS,
    PASS_LABELS,
    is_null,
    milliseconds,
    passes_in,
    plain,
    printable,
    ratio,
    significant,
)
from hyperbench.analyze.joins import masks_in, records, settings, varying
from hyperbench.analyze.stage_table import by_point, missing_stages, stages_in
from hyperbench.analyze.view import AS_PAPER, MAIN_ERROR, View
from hyperbench.config.catalog import nearest
from hyperbench.stats.rounds import MIN_ROUNDS
from hyperbench.store.parameters import method_parameters

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

Row = Mapping[str, Any]
Key = tuple[str, ...]
#: Stands behind a time whose samples are flagged.
FLAGGED = "*"
#: Stands behind a speedup of too few rounds for an interval over rounds.
FEW_ROUNDS = "†"
#: Orders of methods in a table that has a row for each: fastest first, most accurate first, as configured.
SORTS = ("speed", "error", "method")
#: From so many methods beside the baseline on a table has a row for each: their columns fit no page.
MANY_METHODS = 3


@dataclass(frozen=True)
class TextTable:
    """A title, named columns and rows of as many texts; `is_number` columns are aligned right."""

    title: str
    columns: tuple[str, ...]
    is_number: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def time_tables(view: View, methods_per_table: int | None = None) -> list[TextTable]:
    """A table per masking: a row per length, pass and other varying dimension; time, speedup and error per method.

    With `methods_per_table` the methods are spread over several tables, each with the baseline.
    """
    frame = view.timings
    dims = _dims(frame)
    if frame.duplicated([*dims, "method", "is_causal", "pass"]).any():
        dims.append("point_id")
    step = methods_per_table or max(len(view.methods), 1)
    groups = [view.methods[i : i + step] for i in range(0, len(view.methods), step)] or [[]]
    tables = []
    for is_causal in masks_in(frame):
        for methods in groups:
            title = _title(view, is_causal) + (f": {', '.join(methods)}" if len(groups) > 1 else "")
            part = frame[(frame["is_causal"] == is_causal) & frame["method"].isin([*methods, view.baseline])]
            tables.append(_time_table(view, part, methods, dims, title))
    return tables


def run_tables(view: View, sort: str | None = None, methods_per_table: int | None = None) -> list[TextTable]:
    """The tables of times: a row per method where there are many or an order is asked for, else columns for each."""
    if sort is None and len(view.methods) < MANY_METHODS:
        return time_tables(view, methods_per_table)
    return method_tables(view, sort or SORTS[0])


def method_tables(view: View, sort: str) -> list[TextTable]:
    """A table per masking and pass: a row per method and setting at each place; time, speedup and error.

    Within a place rows are in an order of SORTS; those without a value stand last.
    """
    told = settings(view.timings)
    frame = view.timings.assign(setting=view.timings["point_id"].map(told))
    own = method_parameters(frame)
    dims = [d for d in _dims(frame) if d not in own]
    if frame.duplicated([*dims, "setting", "method", "is_causal", "pass"]).any():
        dims.append("point_id")
    with_setting, with_error = any(told.values()), MAIN_ERROR in frame
    columns = [*_heads(dims), "method", *(["parameters"] if with_setting else []), "time", "speedup"]
    columns += ["error"] if with_error else []
    tables = []
    for is_causal in masks_in(frame):
        for name in passes_in(frame["pass"]):
            part = frame[(frame["is_causal"] == is_causal) & (frame["pass"] == name)]
            rows = []
            for row in sorted_rows(part, sort, dims):
                texts = [*_place(row, dims), row["method"], *([row["setting"]] if with_setting else []), _time(row)]
                texts += ["baseline" if row["method"] == view.baseline else _speedup(row)]
                rows.append((*texts, *([_error(row)] if with_error else [])))
            is_text = len(columns) - len(dims) - 2 - with_error
            is_number = (*_are_numbers(frame, dims), *[False] * is_text, *[True] * (2 + with_error))
            title = f"{PASS_LABELS[name]}, {_title(view, is_causal)}"
            tables.append(TextTable(title, tuple(columns), is_number, tuple(rows)))
    return tables


def check_sort(sort: str | None) -> None:
    """Raise ValueError on an order that is none of SORTS, with the nearest; None stands for no wish."""
    if sort is not None and sort not in SORTS:
        raise ValueError(f"--sort={sort} is unknown; allowed: {', '.join(SORTS)}{nearest(sort, SORTS)}")


def sorted_rows(frame: pd.DataFrame, sort: str, dims: Sequence[str] = ("seq_len",)) -> list[dict[str, Any]]:
    """The rows of a table, by the columns `dims` and within equal ones in an order of SORTS."""
    column = {"speed": "median_ms", "error": MAIN_ERROR}.get(sort)
    places: dict[Key, int] = {}

    def rank(row: Row) -> tuple[int, bool, float]:
        value = None if column is None else row.get(column)
        place = places.setdefault(tuple(plain(row[dim]) for dim in dims), len(places))
        return (place, is_null(value), 0.0 if value is None or is_null(value) else float(value))

    return sorted(records(frame.sort_values(list(dims), kind="stable")), key=rank)


def kinds_note(view: View) -> str:
    """The methods that are no proposal, by kind: "trivial: uniform, zero; oracle: top_k"; "" without any."""
    kinds: dict[str, list[str]] = {}
    for method in view.methods:
        if method in view.kinds:
            kinds.setdefault(view.kinds[method], []).append(method)
    return "; ".join(f"{kind}: {', '.join(methods)}" for kind, methods in kinds.items())


def stage_tables(view: View) -> list[TextTable]:
    """A table per method and masking of the stages of the forward pass: the pass, the sum, each stage and its share."""
    table = view.stages
    dims = _dims(table)
    lost, tables = missing_stages(table), []
    for (method, is_causal), part in table.groupby(["method", "is_causal"], sort=True):
        names = stages_in(part)
        if not names:
            continue
        rows = []
        for point, stages in by_point(part.sort_values("seq_len", kind="stable")).items():
            one = next(iter(stages.values()))
            total = milliseconds(one["sum_ms"]) if point not in lost else "not whole"
            cells = [_time(stages[name], with_share=True) if name in stages else "" for name in names]
            rows.append((*_place(one, dims), milliseconds(one["forward_ms"]), total, *cells))
        columns = (*_heads(dims), "forward pass", "sum of stages", *names)
        is_number = (*_are_numbers(table, dims), *(True for _ in columns[len(dims) :]))
        title = f"stages of {method}, {_title(view, bool(is_causal))}"
        tables.append(TextTable(title, columns, is_number, tuple(rows)))
    return tables


def print_table(table: TextTable, console: Console) -> None:
    """Print a table where it fits the terminal; else a paragraph for each of its rows, so that no cell is cut."""
    from rich.cells import cell_len
    from rich.text import Text

    columns, *rows = ([printable(cell) for cell in row] for row in (table.columns, *table.rows))
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    console.print(Text(f"\n{table.title}", style="bold"))
    if sum(widths) + 2 * (len(widths) - 1) > console.width:
        for row in rows:
            cells = [f"{name} {cell}" for name, cell in zip(columns, row, strict=True) if cell]
            console.print(Text(" · ".join(cells)), overflow="fold")
        return

    def line(cells: Sequence[str]) -> str:
        spaces = [" " * (width - cell_len(cell)) for width, cell in zip(widths, cells, strict=True)]
        aligned = zip(cells, spaces, table.is_number, strict=True)
        return "  ".join(space + cell if is_number else cell + space for cell, space, is_number in aligned).rstrip()

    # At once and as it is: a table of rich takes seconds for thousands of rows.
    console.print(Text(line(columns), style="bold"), soft_wrap=True)
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    console.print(Text("\n".join([rule, *map(line, rows)])), soft_wrap=True)


def _title(view: View, is_causal: bool) -> str:
    return MASK_LABELS[is_causal] + (f" ({AS_PAPER})" if view.as_paper else "")


def _time_table(view: View, frame: pd.DataFrame, methods: Sequence[str], dims: list[str], title: str) -> TextTable:
    with_base = bool((frame["method"] == view.baseline).any())
    with_error = MAIN_ERROR in frame
    own = [dim in (*method_parameters(frame), "point_id") for dim in dims]
    listed = [((*_place(row, dims), row["pass"]), row) for row in records(_ordered(frame, dims))]
    met = {_shape(key, own) for key, row in listed if row["method"] != view.baseline}
    cells: dict[Key, dict[str, Row]] = {}
    base: dict[Key, str] = {}
    for key, row in listed:
        if row["method"] != view.baseline:
            cells.setdefault(key, {})[row["method"]] = row
            base[key] = _time(row, "baseline_")
        elif _shape(key, own) not in met:
            cells[key] = {}
            base[key] = _time(row)
    names = [view.baseline] if with_base else []
    for method in methods:
        prefix = f"{method} " if len(methods) > 1 else ""
        names += [method, f"{prefix}speedup", *([f"{prefix}error"] if with_error else [])]
    rows = []
    for key, by_method in cells.items():
        texts = [*key[:-1], PASS_LABELS[key[-1]], *([base[key]] if with_base else [])]
        for method in methods:
            found = by_method.get(method)
            texts += [_time(found), _speedup(found)] if found else ["", ""]
            texts += [_error(found) if found else ""] if with_error else []
        rows.append(tuple(texts))
    is_number = (*_are_numbers(frame, dims), False, *[True] * len(names))
    return TextTable(title, (*_heads(dims), "pass", *names), is_number, tuple(rows))


def _ordered(frame: pd.DataFrame, dims: Sequence[str]) -> pd.DataFrame:
    """The rows in the order of the dimensions, and of the passes as they are shown."""
    ranks = {name: rank for rank, name in enumerate(PASS_LABELS)}
    return frame.sort_values(
        [*dims, "pass"], kind="stable", key=lambda cells: cells.map(ranks) if cells.name == "pass" else cells
    )


def speedup_note(view: View) -> str:
    """The meaning of the speedups in the tables of a view, and of their intervals. Not escaped."""
    note = f"speedup over {view.baseline}: geometric mean over rounds of the ratio within each, ± its 95 % interval"
    few = view.timings["speedup_rounds"] < MIN_ROUNDS
    return note + (f" ({FEW_ROUNDS}: below {MIN_ROUNDS} rounds, that of the samples within them)" if few.any() else "")


def _speedup(row: Row) -> str:
    if is_null(row["speedup"]):
        return ""
    few = FEW_ROUNDS if row["speedup_rounds"] < MIN_ROUNDS else ""
    return ratio(row["speedup"]) + _width(*(row[name] for name in ("speedup", "speedup_low", "speedup_high"))) + few


def _width(value: float, low: float, high: float) -> str:
    """The wider side of an interval in percent of the value; "" where it has no width.

    One sample has no interval, and must not look like a perfect one.
    """
    return f" ±{100 * max(value - low, high - value) / value:.1f}%" if value > 0 and high > low else ""


def _dims(frame: pd.DataFrame) -> list[str]:
    return ["seq_len", *(d for d in varying(frame) if d not in ("seq_len", "method", "is_causal", "pass"))]


def _heads(dims: Sequence[str]) -> list[str]:
    return ["n" if d == "seq_len" else d for d in dims]


def _are_numbers(frame: pd.DataFrame, dims: Sequence[str]) -> list[bool]:
    return [not any(isinstance(v, str) for v in frame[d].dropna().unique()) for d in dims]


def _place(row: Row, dims: Sequence[str]) -> list[str]:
    return [f"{int(row[d]):,}" if d == "seq_len" else plain(row[d]) for d in dims]


def _shape(key: Key, own: Sequence[bool]) -> Key:
    """A row's key without parameters of methods, which are their `own`, and which the baseline lacks."""
    return (*(cell for cell, is_own in zip(key[:-1], own, strict=True) if not is_own), key[-1])


def _time(row: Row, prefix: str = "", with_share: bool = False) -> str:
    """A time with its interval, or with its share of the stages' sum, and its status unless it is ok."""
    status = plain(row[f"{prefix}status"])
    if is_null(row[f"{prefix}median_ms"]):
        return status
    median, low, high = (float(row[f"{prefix}{name}"]) for name in ("median_ms", "ci_low_ms", "ci_high_ms"))
    text, flagged = milliseconds(median), "" if is_null(row[f"{prefix}flags"]) else FLAGGED
    if with_share:
        text += flagged + ("" if is_null(row["share"]) else f" ({100 * row['share']:.1f}%)")
    else:
        text += _width(median, low, high) + flagged
    return text if status == "ok" else f"{text} ({status})"


def _error(row: Row) -> str:
    """The error, with half its interval where it is estimated from a part of the rows."""
    half_width = row[f"{MAIN_ERROR}_half_width"]
    return significant(row[MAIN_ERROR]) + ("" if is_null(half_width) else f" ±{100 * half_width:.1f}%")
