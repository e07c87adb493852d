"""Names of the points of a comparison: the fields that tell rows apart, and a row's cells and label in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hyperbench.analyze.compare.compare import Comparison, Row
from hyperbench.analyze.format import PASS_LABELS, plain, printable
from hyperbench.store.schema import Point

#: Fields of a point that stand in JSON beside its method and the parameters.
FIELDS = (
    "is_causal", "seq_len", "device", "dtype", "batch", "heads", "kv_heads", "head_dim", "input", "seed"
)  # fmt: skip
_NUMBERS = ("seq_len", "batch", "heads", "kv_heads", "head_dim", "seed")


def label(row: Row, dims: Sequence[str]) -> str:
    """A row in a line: its point and its pass."""
    return f"{point_label(row, dims)}, {PASS_LABELS[row.pass_]}"


def point_label(row: Row, dims: Sequence[str]) -> str:
    """The point of a row by the fields `dims`: "hyper n=1,024 causal=true"."""
    names = [d for d in dims if d not in ("method", "seq_len")]
    told = [row.point.method] if not row.is_matched or "method" in dims else []
    told.append(f"n={row.point.seq_len:,}")
    told += [f"{head(name)}={text}" for name in names if (text := cell(row, name))]
    return printable(" ".join(told))


def dims_of(comparison: Comparison) -> list[str]:
    """The fields that tell rows apart: method and length always, the others where they vary within a run."""
    rows = (*comparison.rows, *comparison.unmatched)
    sides = ([row.point_a for row in rows if row.point_a], [row.point_b for row in rows if row.point_b])
    runs = [[_flat(point) for point in {point.point_id: point for point in side}.values()] for side in sides]
    flats = [flat for run in runs for flat in run]
    hidden = {"method", "seq_len"}
    if all(flat["heads"] == flat["kv_heads"] for flat in flats):
        hidden.add("kv_heads")
    names = [name for name in dict.fromkeys(name for flat in flats for name in flat) if name not in hidden]
    methods = [] if comparison.a.method != comparison.b.method else ["method"]
    return [*methods, "seq_len", *(name for name in names if any(_varies(run, name) for run in runs))]


def cell(row: Row, name: str) -> str:
    """A field of a row's point as text; "" for a parameter that it lacks."""
    for point in (row.point_b, row.point_a):
        value = _flat(point).get(name) if point is not None else None
        if value is not None:
            return f"{value:,}" if name == "seq_len" else printable(plain(value))
    return ""


def head(name: str) -> str:
    """The name of a field over its column."""
    return {"seq_len": "n", "is_causal": "causal"}.get(name, printable(name))


def are_numbers(dims: Sequence[str]) -> list[bool]:
    """True for each field that is a number in every run; its column is aligned right."""
    return [dim in _NUMBERS for dim in dims]


def side_names(comparison: Comparison) -> tuple[str, str]:
    """The names of the two sides over their columns: those of two methods, else A and B."""
    a, b = comparison.a.method, comparison.b.method
    return (printable(a), printable(b)) if a and b and a != b else ("A", "B")


def _varies(flats: Iterable[dict[str, Any]], name: str) -> bool:
    """True if a field takes several values; a method's own parameter: within one method."""
    values: dict[Any, set[str]] = {}
    for flat in flats:
        values.setdefault(None if name in FIELDS else flat["method"], set()).add(plain(flat.get(name)))
    return any(len(found) > 1 for found in values.values())


def _flat(point: Point) -> dict[str, Any]:
    """The fields of a point by name, its method's and its input's parameters among them."""
    fields = {name: getattr(point, name) for name in ("method", *FIELDS)}
    return {**fields, **{f"input.{k}": v for k, v in point.input_params.items()}, **{
        k if k not in fields else f"{point.method}.{k}": v for k, v in point.hyper.items()
    }}  # fmt: skip
