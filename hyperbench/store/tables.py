"""Tidy tables of records: the columns of each, their types, and how they are read from a record."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.stats.samples import Summary, summarise
from hyperbench.store.schema import ALL_STAGES, PARAMETER_TYPES, ErrorRow, Point, Record, Timing

if TYPE_CHECKING:
    from pandas import DataFrame

#: Parameters of methods that have a column of their own; null for a method that lacks them.
HYPER_COLUMNS = {name: "Int64" if kind is int else "text" for name, kind in PARAMETER_TYPES.items()}
_POINT_HEAD = {
    **dict.fromkeys(("run_id", "point_id", "method", "implementation", "device", "dtype"), "text"),
    "is_causal": "bool",
    **dict.fromkeys(("batch", "heads", "kv_heads", "seq_len", "head_dim"), "int64"),
    **HYPER_COLUMNS,
    "input": "text",
}
_STATISTICS = {field.name: "float64" for field in dataclasses.fields(Summary) if field.name != "n_samples"}
#: First characters of a cell that a spreadsheet takes for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")

#: Column name -> type, for each table. The types are pandas' own; "text" is an object column of str or None.
TABLES: dict[str, dict[str, str]] = {
    "timings": {
        **_POINT_HEAD,
        "seed": "int64", "pass": "text", "stage": "text", "position": "Int64", "num_stages": "Int64",
        "protocol": "text", "round": "int64", "status": "text", "stop_reason": "text", "n_samples": "int64",
        **_STATISTICS,
        "first_call_ms": "float64", "host_ms": "float64", "memory_before_bytes": "Int64", "peak_memory_bytes": "Int64",
        "resident_peak_bytes": "Int64", "exact_equivalent_flops": "float64", "executed_flops": "float64",
        "flags": "text", "message": "text",
    },
    "errors": {
        **_POINT_HEAD,
        "input_seed": "int64", "seed": "int64", "metric": "text", "value": "float64", "low": "float64",
        "high": "float64", "status": "text", "message": "text",
    },
}  # fmt: skip


def build(records: Iterable[Record], run_id: str) -> dict[str, DataFrame]:
    """The tables of a journal's records; where a measurement was repeated, the last record counts."""
    timings: dict[tuple[Any, ...], Timing] = {}
    errors: dict[tuple[Any, ...], ErrorRow] = {}
    for record in records:
        if isinstance(record, Timing):
            if record.stage:
                timings.pop(dataclasses.replace(record, stage=ALL_STAGES).key, None)
            timings[record.key] = record
        else:
            errors[record.key] = record
    codes = {t.point.point_id: t.implementation for t in timings.values() if t.implementation}
    kept: list[Record] = [*timings.values(), *errors.values()]
    inputs = _input_names({record.point.point_id: record.point for record in kept})
    timed = ((t, {**_timing_cells(t, codes), "input": inputs[t.point.point_id]}) for t in timings.values())
    told = (
        (
            e,
            {
                "implementation": codes.get(e.point.point_id),
                "input_seed": e.point.seed,
                "input": inputs[e.point.point_id],
            },
        )
        for e in errors.values()
    )
    return {"timings": _frame("timings", timed, run_id), "errors": _frame("errors", told, run_id)}


def _input_names(points: Mapping[str, Point]) -> dict[str, str]:
    """Point id -> name of its input, with the parameters in which inputs of that name differ in this run."""
    values: dict[tuple[str, str], set[str]] = {}
    for point in points.values():
        for name, value in point.input_params.items():
            values.setdefault((point.input, name), set()).add(str(value))
    return {
        key: " ".join(
            [point.input, *(f"{n}={v}" for n, v in point.input_params.items() if len(values[point.input, n]) > 1)]
        )
        for key, point in points.items()
    }


def can_write_parquet() -> bool:
    """True if pyarrow is here; without it the tables are csv alone."""
    try:
        importlib.import_module("pyarrow")
    except ImportError:
        return False
    return True


def to_parquet(frame: DataFrame, path: Path) -> None:
    """Write a table with explicit text columns, so that one that is empty or all null keeps its type."""
    texts = {name: "string" for name in frame.columns if frame[name].dtype == object}
    frame.astype(texts).to_parquet(path, index=False)


def to_csv(frame: DataFrame, path: Path) -> None:
    """Write a table; a text that a spreadsheet would run as a formula begins with ' there, and line breaks are all \\n.

    Numbers stay as they are.
    """
    from pandas.api.types import is_numeric_dtype

    texts = {name: frame[name].map(_csv_cell) for name in frame.columns if not is_numeric_dtype(frame[name])}
    frame.assign(**texts).to_csv(path, index=False)


def _csv_cell(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    # A carriage return would end the row: Python's writer does not put it in quotes.
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA) else text


def _frame(table: str, rows: Iterable[tuple[Record, dict[str, Any]]], run_id: str) -> DataFrame:
    """A table of records: a cell is that of the row, else the record's, the point's or its parameter of that name."""
    import pandas as pd

    columns: dict[str, list[Any]] = {name: [] for name in TABLES[table]}
    for record, cells in rows:
        point = record.point
        hyper = {name: point.hyper.get(name) for name in HYPER_COLUMNS}
        known = {**vars(point), **hyper, **vars(record), **cells}
        known.update(run_id=run_id, point_id=point.point_id, method=point.method, status=str(record.status))
        for name, column in columns.items():
            column.append(known[name])
    kinds = {name: object if kind == "text" else kind for name, kind in TABLES[table].items()}
    return pd.DataFrame({name: pd.Series(column, dtype=kinds[name]) for name, column in columns.items()})


def _timing_cells(timing: Timing, codes: dict[str, str]) -> dict[str, Any]:
    statistics = dataclasses.asdict(summarise(timing.samples_ms)) if timing.samples_ms else dict.fromkeys(_STATISTICS)
    # Old records of stages do not tell which code it was.
    code = timing.implementation or (codes.get(timing.point.point_id) if timing.stage else None)
    return {
        **statistics,
        "n_samples": len(timing.samples_ms), "implementation": code or None, "pass": str(timing.pass_),
        "position": timing.all_stages.index(timing.stage) if timing.stage in timing.all_stages else None,
        "num_stages": len(timing.all_stages) or None, "flags": ",".join(timing.flags) or None,
        "stop_reason": str(timing.stop_reason) if timing.stop_reason else None,
    }  # fmt: skip
