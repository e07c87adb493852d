"""Tidy tables of records: the columns of each, their types, and how they are read from a record."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperbench.stats.samples import Summary, summarise
from hyperbench.store.schema import ALL_STAGES, PARAMETER_TYPES, ErrorRow, Point, Record, Timing

if TYPE_CHECKING:
    from pandas import DataFrame

#: Parameters of methods that have a column of their own; null for a method that lacks them.
HYPER_COLUMNS = {name: "Int64" if kind is int else "text" for name, kind in PARAMETER_TYPES.items()}
_SHAPE = dict.fromkeys(("batch", "heads", "kv_heads", "seq_len", "head_dim"), "int64")
_POINT_HEAD = {
    "run_id": "text",
    "point_id": "text",
    "method": "text",
    "implementation": "text",
    "device": "text",
    "dtype": "text",
    "is_causal": "bool",
    **_SHAPE,
    **HYPER_COLUMNS,
    "input": "text",
}
_STATISTICS = {field.name: "float64" for field in dataclasses.fields(Summary) if field.name != "n_samples"}

#: Column name -> type, for each table. The types are pandas' own; "text" is an object column of str or None.
TABLES: dict[str, dict[str, str]] = {
    "timings": {
        **_POINT_HEAD,
        "seed": "int64",
        "pass": "text",
        "stage": "text",
        "position": "Int64",
        "num_stages": "Int64",
        "protocol": "text",
        "round": "int64",
        "status": "text",
        "stop_reason": "text",
        "n_samples": "int64",
        **_STATISTICS,
        "first_call_ms": "float64",
        "host_ms": "float64",
        "memory_before_bytes": "Int64",
        "peak_memory_bytes": "Int64",
        "exact_equivalent_flops": "float64",
        "executed_flops": "float64",
        "flags": "text",
        "message": "text",
    },
    "errors": {
        **_POINT_HEAD,
        "input_seed": "int64",
        "seed": "int64",
        "metric": "text",
        "value": "float64",
        "status": "text",
        "message": "text",
    },
}


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
    implementations = {t.point.point_id: t.implementation for t in timings.values() if t.implementation}
    return {
        "timings": _frame("timings", [_timing_row(t, run_id, implementations) for t in timings.values()]),
        "errors": _frame("errors", [_error_row(e, run_id, implementations) for e in errors.values()]),
    }


def can_write_parquet() -> bool:
    """True if pyarrow is here; without it the tables are csv alone."""
    try:
        importlib.import_module("pyarrow")
    except ImportError:
        return False
    return True


def to_parquet(frame: DataFrame, table: str, path: Path) -> None:
    """Write a table with explicit text columns, so that an empty one keeps its type."""
    text = {name: "string" for name, kind in TABLES[table].items() if kind == "text"}
    frame.astype(text).to_parquet(path, index=False)


def _frame(table: str, rows: list[dict[str, Any]]) -> DataFrame:
    import pandas as pd

    columns = {}
    for name, kind in TABLES[table].items():
        values = [row[name] for row in rows]
        columns[name] = pd.Series(values, dtype=object if kind == "text" else kind)
    return pd.DataFrame(columns)


def _point_row(point: Point, run_id: str, implementation: str | None) -> dict[str, Any]:
    shape = {name: getattr(point, name) for name in _SHAPE}
    hyper = {name: point.hyper.get(name) for name in HYPER_COLUMNS}
    return {
        "run_id": run_id,
        "point_id": point.point_id,
        "method": point.method,
        "implementation": implementation,
        "device": point.device,
        "dtype": point.dtype,
        "is_causal": point.is_causal,
        "input": point.input,
        **shape,
        **hyper,
    }


def _timing_row(timing: Timing, run_id: str, implementations: dict[str, str]) -> dict[str, Any]:
    # Old records of stages do not tell which code it was.
    known = implementations.get(timing.point.point_id) if timing.stage else None
    is_named = timing.stage in timing.all_stages
    statistics: dict[str, Any] = dict.fromkeys(_STATISTICS)
    if timing.samples_ms:
        statistics = dataclasses.asdict(summarise(timing.samples_ms))
    return {
        **_point_row(timing.point, run_id, timing.implementation or known),
        **statistics,
        "seed": timing.point.seed,
        "pass": str(timing.pass_),
        "stage": timing.stage,
        "position": timing.all_stages.index(timing.stage) if is_named else None,
        "num_stages": len(timing.all_stages) or None,
        "protocol": timing.protocol,
        "round": timing.round,
        "status": str(timing.status),
        "stop_reason": str(timing.stop_reason) if timing.stop_reason else None,
        "n_samples": len(timing.samples_ms),
        "flags": ",".join(timing.flags) or None,
        "first_call_ms": timing.first_call_ms,
        "host_ms": timing.host_ms,
        "memory_before_bytes": timing.memory_before_bytes,
        "peak_memory_bytes": timing.peak_memory_bytes,
        "exact_equivalent_flops": timing.exact_equivalent_flops,
        "executed_flops": timing.executed_flops,
        "message": timing.message,
    }


def _error_row(error: ErrorRow, run_id: str, implementations: dict[str, str]) -> dict[str, Any]:
    return {
        **_point_row(error.point, run_id, implementations.get(error.point.point_id)),
        "input_seed": error.point.seed,
        "seed": error.seed,
        "metric": error.metric,
        "value": error.value,
        "status": str(error.status),
        "message": error.message,
    }
