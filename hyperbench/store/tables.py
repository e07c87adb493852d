"""Tidy tables of records: the columns of each, their types, and how they are read from a record."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hyperbench.stats.samples import Summary, summarise
from hyperbench.store.parameters import KNOWN, ParameterColumns, parameter_columns
from hyperbench.store.schema import ALL_STAGES, Point, Record, Timing

if TYPE_CHECKING:
    from pandas import DataFrame

_POINT_HEAD = {
    **dict.fromkeys(("run_id", "point_id", "method", "implementation", "device", "dtype"), "text"),
    "is_causal": "bool",
    **dict.fromkeys(("batch", "heads", "kv_heads", "seq_len", "head_dim"), "int64"),
    **KNOWN,
    "input": "text",
}
_STATISTICS = {field.name: "float64" for field in dataclasses.fields(Summary) if field.name != "n_samples"}
#: Columns of an error metric that is joined to a table: its name with each of these behind it.
ERROR_SUFFIXES = ("", "_low", "_high", "_half_width")
#: First characters of a cell that a spreadsheet takes for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")
#: Conditions of a timing that have a column of their own: those that hold for all of a worker process.
CONDITIONS = {"threads": "Int64", "affinity": "text", "machine": "text", "torch": "text"}

#: Column name -> type, for each table; the columns of further parameters stand around `input` (see parameters). The
#: types are pandas' own; "text" is an object column of str or None.
TABLES: dict[str, dict[str, str]] = {
    "timings": {
        **_POINT_HEAD,
        "seed": "int64", "pass": "text", "stage": "text", "position": "Int64", "num_stages": "Int64",
        "protocol": "text", "round": "int64", "status": "text", "stop_reason": "text", "n_samples": "int64",
        **_STATISTICS,
        "first_call_ms": "float64", "setup_ms": "float64", "host_ms": "float64", "memory_before_bytes": "Int64",
        "peak_memory_bytes": "Int64", "resident_peak_bytes": "Int64", "exact_equivalent_flops": "float64",
        "executed_flops": "float64", "flags": "text", **CONDITIONS, "message": "text",
    },
    "errors": {
        **_POINT_HEAD,
        "input_seed": "int64", "seed": "int64", "metric": "text", "value": "float64", "low": "float64",
        "high": "float64", "status": "text", "message": "text",
    },
}  # fmt: skip
# Scores of language models: the seed is the number of the example.
TABLES["scores"] = TABLES["errors"]


#: The columns of each table that are not those of the row's run or point.
_OWN = {
    "timings": tuple(
        name for name in TABLES["timings"] if name == "implementation" or name not in {*_POINT_HEAD, "seed"}
    ),
    "errors": tuple(name for name in TABLES["errors"] if name not in {*_POINT_HEAD, "input_seed"}),
}
_OWN["scores"] = _OWN["errors"]
_OWN_CELLS = {name: itemgetter(*columns) for name, columns in _OWN.items()}


def build(records: Iterable[Record], run_id: str) -> dict[str, DataFrame]:
    """The tables of the records of one run; where a measurement was repeated, the last record counts."""
    return build_of_runs((run_id, record) for record in records)


def build_of_runs(records: Iterable[tuple[str, Record]]) -> dict[str, DataFrame]:
    """The tables of records, each with the id of its run; where a run repeats a measurement, its last record counts.

    Records are taken one by one, and no samples are kept.
    """
    timings: dict[tuple[Any, ...], _Row] = {}
    errors: dict[tuple[Any, ...], _Row] = {}
    scores: dict[tuple[Any, ...], _Row] = {}
    points: dict[str, Point] = {}
    for run_id, record in records:
        points.setdefault(record.point.point_id, record.point)
        if isinstance(record, Timing):
            if record.stage:
                point_id, pass_, _, round_ = record.key
                timings.pop((run_id, point_id, pass_, ALL_STAGES, round_), None)
            timings[run_id, *record.key] = _Row(run_id, record.point.point_id, _cells("timings", record))
        else:
            of = scores if record.point.is_task else errors
            of[run_id, *record.key] = _Row(run_id, record.point.point_id, _cells("errors", record))
    code = _OWN["timings"].index("implementation")
    codes = {row.point_id: row.cells[code] for row in timings.values() if row.cells[code]}
    taken = _taken(key[-1] for key in (*errors, *scores))
    inputs, parameters = _input_names(points), parameter_columns(points.values(), taken)
    heads = {
        point_id: _head_cells(point, inputs[point_id]) | parameters.cells[point_id]
        for point_id, point in points.items()
    }
    return {
        name: _frame(name, _columns(name, parameters), list(rows.values()), heads, codes)
        for name, rows in (("timings", timings), ("errors", errors), ("scores", scores))
    }


def _taken(metrics: Iterable[Any]) -> set[str]:
    """The names that no parameter's column may have: those of all other columns, and of these metrics once joined."""
    joined = {f"{metric}{suffix}" for metric in set(metrics) for suffix in ERROR_SUFFIXES}
    return {*TABLES["timings"], *TABLES["errors"], *joined}


def _columns(table: str, parameters: ParameterColumns) -> dict[str, str]:
    """The columns of a table and their types, those of all parameters among them."""
    found: dict[str, str] = {}
    for name, kind in TABLES[table].items():
        if name == "input":
            found |= parameters.of_methods
        found[name] = kind
        if name == "input":
            found |= parameters.of_inputs
    return found


class _Row(NamedTuple):
    """A row of a table: the run and the point, and the cells of the columns that are not the point's."""

    run_id: str
    point_id: str
    cells: tuple[Any, ...]


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

    So do the names of columns, which parameters give theirs. Numbers stay as they are.
    """
    from pandas.api.types import is_numeric_dtype

    written = frame.copy(deep=False)
    for name in frame.columns:
        if not is_numeric_dtype(frame[name]):
            written[name] = frame[name].map(_csv_cell)
    written.rename(columns=_csv_cell).to_csv(path, index=False)


def _csv_cell(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    # A carriage return would end the row: Python's writer does not put it in quotes.
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA) else text


def _head_cells(point: Point, input_name: str) -> dict[str, Any]:
    """The cells of the columns that all rows of a point share."""
    return {**vars(point), "point_id": point.point_id, "input": input_name, "input_seed": point.seed}


def _cells(table: str, record: Record) -> tuple[Any, ...]:
    """The cells of a record's own columns."""
    known: dict[str, Any] = {**vars(record), "status": str(record.status)}
    if isinstance(record, Timing):
        known |= _timing_cells(record)
    return _OWN_CELLS[table](known)


def _frame(
    table: str,
    kinds: Mapping[str, str],
    rows: Sequence[_Row],
    heads: Mapping[str, Mapping[str, Any]],
    codes: Mapping[str, str],
) -> DataFrame:
    import pandas as pd

    own = zip(*(row.cells for row in rows), strict=True) if rows else ((),) * len(_OWN[table])
    columns: dict[str, Sequence[Any]] = dict(zip(_OWN[table], own, strict=True))
    columns["run_id"] = [row.run_id for row in rows]
    codes_of_points = [codes.get(row.point_id) for row in rows]
    if table != "timings":
        columns["implementation"] = codes_of_points
    else:
        # Old records of stages do not tell which code it was.
        columns["implementation"] = [
            code or (of_point if stage else None)
            for code, of_point, stage in zip(columns["implementation"], codes_of_points, columns["stage"], strict=True)
        ]
    places = {point_id: place for place, point_id in enumerate(heads)}
    of_points = [places[row.point_id] for row in rows]
    made = {}
    for name, kind in kinds.items():
        cells = columns[name] if name in columns else [head[name] for head in heads.values()]
        made[name] = pd.Series(list(cells), dtype=object if kind == "text" else kind)
        if name not in columns:
            made[name] = made[name].take(of_points).reset_index(drop=True)
    return pd.DataFrame(made)


def _timing_cells(timing: Timing) -> dict[str, Any]:
    statistics = vars(summarise(timing.samples_ms)) if timing.samples_ms else dict.fromkeys(_STATISTICS)
    return {
        **statistics,
        "n_samples": len(timing.samples_ms), "implementation": timing.implementation or None,
        "pass": str(timing.pass_),
        "position": timing.all_stages.index(timing.stage) if timing.stage in timing.all_stages else None,
        "num_stages": len(timing.all_stages) or None, "flags": ",".join(timing.flags) or None,
        "stop_reason": str(timing.stop_reason) if timing.stop_reason else None,
        **{name: timing.conditions.get(name) for name in CONDITIONS},
    }  # fmt: skip
