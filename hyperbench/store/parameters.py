"""Columns of parameters: one for each that a method or an input of some points has, whatever its name and its type.

They stand around the column `input`: between `head_dim` and it those of methods, behind it those of inputs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from hyperbench.store.schema import MAX_INT, PARAMETER_TYPES, Point

#: Parameters of methods that always have a column, null for a method that lacks them.
KNOWN = {name: "Int64" if kind is int else "text" for name, kind in PARAMETER_TYPES.items()}
#: Beginnings of the names of parameters of inputs, and of those of methods that another column has the name of.
OF_INPUT, OF_METHOD = "input.", "method."
#: Names, and beginnings of names, of columns that are joined when a table is read.
_JOINED = (
    "speedup", "speedup_low", "speedup_high", "speedup_rounds", "share", "sum_ms", "errors", "error_half_widths",
    "measures", "causal_in_q",
)  # fmt: skip
_JOINED_BEGINNINGS = ("baseline_", "forward_", "error ")
#: Integers up to this size are themselves as floats.
_MAX_EXACT = 2**53


class ParameterColumns(NamedTuple):
    """The types of the columns of methods and of inputs, by name, and the cells of each point, by its id."""

    of_methods: dict[str, str]
    of_inputs: dict[str, str]
    cells: dict[str, dict[str, Any]]


def parameter_columns(points: Iterable[Point], taken: Collection[str]) -> ParameterColumns:
    """The columns of all parameters of some points; those of KNOWN first, the others in the order of the points.

    A parameter of a method has its own name, or `method.NAME` where that is `taken` or joined to tables; one of an
    input is `input.NAME`. Types are pandas' own, "text" an object column. One that is null everywhere has no column,
    and the seed of a method's draw only where one differs from the seed of the inputs.
    """
    points = list(points)
    methods: dict[str, dict[str, Any]] = {}
    inputs: dict[str, dict[str, Any]] = {}
    follows = all(point.hyper.get("seed") in (None, point.seed) for point in points)
    for point in points:
        for key, value in point.hyper.items():
            if value is not None and key not in KNOWN and not (key == "seed" and follows):
                methods.setdefault(_name(key, taken), {})[point.point_id] = value
        for key, value in point.input_params.items():
            if value is not None:
                inputs.setdefault(OF_INPUT + _text(key), {})[point.point_id] = value
    cells: dict[str, dict[str, Any]] = {
        point.point_id: {name: point.hyper.get(name) for name in KNOWN} for point in points
    }
    kinds = {}
    for name, values in (methods | inputs).items():
        kinds[name] = _kind(values.values())
        for point_id, of_point in cells.items():
            value = values.get(point_id)
            of_point[name] = value if value is None or kinds[name] != "text" else _text(value)
    return ParameterColumns(
        KNOWN | {name: kinds[name] for name in methods}, {name: kinds[name] for name in inputs}, cells
    )


def method_parameters(columns: Iterable[Any]) -> list[str]:
    """The columns of parameters of methods among those of a table, or of a table that more was joined to."""
    names = [str(name) for name in columns]
    return names[names.index("head_dim") + 1 : names.index("input")]


def input_parameters(columns: Iterable[Any]) -> list[str]:
    """The columns of parameters of inputs among those of a table."""
    return [str(name) for name in columns if str(name).startswith(OF_INPUT)]


def _name(key: str, taken: Collection[str]) -> str:
    text = _text(key)
    clashes = text in taken or text in _JOINED or text.startswith(_JOINED_BEGINNINGS) or "." in text
    return OF_METHOD + text if clashes else text


def _kind(values: Collection[Any]) -> str:
    """The type of a column of these values, none of which is null; text where they are not of one."""
    if all(isinstance(value, bool) for value in values):
        return "boolean"
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return "text"
    whole = [value for value in values if isinstance(value, int)]
    if len(whole) == len(values):
        return "Int64" if all(abs(value) <= MAX_INT for value in whole) else "text"
    return "float64" if all(abs(value) <= _MAX_EXACT for value in whole) else "text"


def _text(value: Any) -> str:
    """A value as text that any file can hold: half of a surrogate pair is nothing that one can."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode(errors="replace").decode()
