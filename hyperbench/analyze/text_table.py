"""A run in a few compact tables, one per masking: what is printed in the terminal and exported as LaTeX or Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.format import MASK_LABELS, is_null, milliseconds, pass_label, plain, ratio, significant
from hyperbench.analyze.joins import HYPER_DIMS, records, varying
from hyperbench.analyze.plotting.style import passes_in
from hyperbench.analyze.stage_table import by_point, missing_stages, stages_in
from hyperbench.analyze.view import MAIN_ERROR, View

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, ...]
#: Stands behind a time whose samples are flagged.
FLAGGED = "*"


@dataclass(frozen=True)
class Digest:
    """One table of texts: a title, named columns and rows of as many cells; `is_number` columns are aligned right."""

    title: str
    columns: tuple[str, ...]
    is_number: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def digests(view: View, methods_per_table: int | None = None) -> list[Digest]:
    """A table per masking: a row per length, pass and other varying dimension; time, speedup and error per method.

    With `methods_per_table` the methods are spread over several tables, each with the baseline.
    """
    frame = view.timings
    dims = ["seq_len", *(d for d in varying(frame) if d not in ("seq_len", "method", "is_causal", "pass"))]
    if frame.duplicated([*dims, "method", "is_causal", "pass"]).any():
        dims.append("point_id")
    step = methods_per_table or max(len(view.methods), 1)
    groups = [view.methods[i : i + step] for i in range(0, len(view.methods), step)] or [[]]
    tables = []
    for is_causal in sorted(bool(m) for m in frame["is_causal"].unique()):
        for methods in groups:
            title = MASK_LABELS[is_causal] + (f": {', '.join(methods)}" if len(groups) > 1 else "")
            part = frame[(frame["is_causal"] == is_causal) & frame["method"].isin([*methods, view.baseline])]
            tables.append(_digest(view, part, methods, dims, title))
    return tables


def stage_digests(view: View) -> list[Digest]:
    """A table per method and masking of the stages of the forward pass: the pass, the sum, each stage and its share."""
    table = view.stages
    frame = view.timings[view.timings["point_id"].isin(table["point_id"])]
    dims = ["seq_len", *(d for d in varying(frame) if d not in ("seq_len", "method", "is_causal", "pass"))]
    # The table of stages lacks some columns of the timings, such as those of the input.
    places = {row["point_id"]: row for row in records(frame.drop_duplicates("point_id"))}
    lost, tables = missing_stages(table), []
    for (method, is_causal), part in table.groupby(["method", "is_causal"], sort=True):
        names = stages_in(part)
        if not names:
            continue
        rows = []
        for point, stages in by_point(part.sort_values("seq_len", kind="stable")).items():
            one = next(iter(stages.values()))
            where = [f"{int(places[point][d]):,}" if d == "seq_len" else plain(places[point][d]) for d in dims]
            total = milliseconds(one["sum_ms"]) if point not in lost else "not whole"
            cells = [_stage(stages[name]) if name in stages else "" for name in names]
            rows.append((*where, milliseconds(one["forward_ms"]), total, *cells))
        columns = (*("n" if d == "seq_len" else d for d in dims), "forward pass", "sum of stages", *names)
        title = f"stages of {method}, {MASK_LABELS[bool(is_causal)]}"
        numbers = _numbers(frame, dims)
        is_number = (*(d in numbers for d in dims), *(True for _ in columns[len(dims) :]))
        tables.append(Digest(title, columns, is_number, tuple(rows)))
    return tables


def _stage(row: Mapping[str, Any]) -> str:
    if is_null(row["median_ms"]):
        return plain(row["status"])
    flagged = "" if is_null(row["flags"]) else FLAGGED
    share = "" if is_null(row["share"]) else f" ({100 * row['share']:.1f}%)"
    text = f"{milliseconds(row['median_ms'])}{flagged}{share}"
    status = plain(row["status"])
    return text if status == "ok" else f"{text} ({status})"


def _digest(view: View, frame: pd.DataFrame, methods: list[str], dims: list[str], title: str) -> Digest:
    ranks = {name: index for index, name in enumerate(passes_in(frame["pass"].unique()))}
    listed = records(frame)
    has_base = bool((frame["method"] == view.baseline).any())
    cells: dict[Key, dict[str, Mapping[str, Any]]] = {}
    base: dict[Key, str] = {}
    for row in listed:
        if row["method"] != view.baseline:
            key = _key(row, dims)
            cells.setdefault(key, {})[row["method"]] = row
            base[key] = _time(row, "baseline_")
    met = {_shape(key, dims) for key in cells}
    for row in listed:
        key = _key(row, dims)
        if row["method"] == view.baseline and _shape(key, dims) not in met:
            cells.setdefault(key, {})
            base[key] = _time(row)
    names = ["n" if d == "seq_len" else d for d in dims] + ["pass"]
    numeric = [d == "seq_len" or d in _numbers(frame, dims) for d in dims] + [False]
    if has_base:
        names.append(view.baseline)
        numeric.append(True)
    for method in methods:
        prefix = f"{method} " if len(methods) > 1 else ""
        extra = [f"{prefix}error"] if MAIN_ERROR in frame else []
        names += [method, f"{prefix}speedup", *extra]
        numeric += [True] * (2 + len(extra))
    rows = []
    for key in sorted(cells, key=lambda k: _order(k, ranks)):
        row_cells = [*key[:-1], pass_label(key[-1])]
        if has_base:
            row_cells.append(base[key])
        for method in methods:
            row_cells += _method_cells(cells[key].get(method), MAIN_ERROR in frame)
        rows.append(tuple(row_cells))
    return Digest(title, tuple(names), tuple(numeric), tuple(rows))


def _order(key: Key, ranks: Mapping[str, int]) -> tuple[list[tuple[bool, float, str]], int]:
    digits = [cell.replace(",", "") for cell in key[:-1]]
    return [(not d.isdigit(), float(d) if d.isdigit() else 0.0, d) for d in digits], ranks[key[-1]]


def _numbers(frame: pd.DataFrame, dims: list[str]) -> set[str]:
    return {d for d in dims if not any(isinstance(v, str) for v in frame[d].dropna().unique())}


def _key(row: Mapping[str, Any], dims: list[str]) -> Key:
    return (*(f"{int(row[d]):,}" if d == "seq_len" else plain(row[d]) for d in dims), str(row["pass"]))


def _shape(key: Key, dims: list[str]) -> Key:
    """A row's key without parameters of methods, which the baseline lacks."""
    return (*(cell for cell, dim in zip(key[:-1], dims, strict=True) if dim not in (*HYPER_DIMS, "point_id")), key[-1])


def _time(row: Mapping[str, Any], side: str = "") -> str:
    status = plain(row[f"{side}status"])
    if is_null(row[f"{side}median_ms"]):
        return status
    median, low, high = (float(row[f"{side}{name}"]) for name in ("median_ms", "ci_low_ms", "ci_high_ms"))
    width = max(median - low, high - median) / median if median > 0 else 0.0
    flagged = "" if is_null(row[f"{side}flags"]) else FLAGGED
    # One sample has no interval, and must not look like a perfect one.
    interval = f" ±{100 * width:.1f}%" if high > low else ""
    text = f"{milliseconds(median)}{interval}{flagged}"
    return text if status == "ok" else f"{text} ({status})"


def _method_cells(row: Mapping[str, Any] | None, with_error: bool) -> list[str]:
    if row is None:
        return [""] * (3 if with_error else 2)
    return [_time(row), ratio(row["speedup"]), *([significant(row[MAIN_ERROR])] if with_error else [])]
