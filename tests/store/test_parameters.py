"""Parameters as columns: one for each, whatever its name and type, and two points that differ in one are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hyperbench.store import tables
from hyperbench.store.parameters import input_parameters, method_parameters
from hyperbench.store.schema import PARAMETER_TYPES, ErrorRow, Record
from tests.helpers.made_records import a_point, a_timing


def frames(*records: Record) -> dict[str, pd.DataFrame]:
    """The tables of some records."""
    return tables.build(records, "run")


def of(*hypers: dict[str, Any], **changes: Any) -> pd.DataFrame:
    """The timings of points with these parameters of their method."""
    return frames(*(a_timing(a_point(hyper=hyper, **changes)) for hyper in hypers))["timings"]


def cells(frame: pd.DataFrame, name: str) -> list[Any]:
    """The cells of a column, None where there is no value."""
    return [None if pd.isna(value) else value for value in frame[name]]


@pytest.mark.parametrize(
    ("values", "dtype", "found"),
    [
        ([64, 128, None], "Int64", [64, 128, None]),
        ([0.5, 2, None], "float64", [0.5, 2.0, None]),
        ([True, False, None], "boolean", [True, False, None]),
        (["a", "b", None], "object", ["a", "b", None]),
        ([1, "a", None], "object", ["1", "a", None]),
        ([1, True, None], "object", ["1", "true", None]),
        ([[1, 2], {"a": 0.5}, None], "object", ["[1, 2]", '{"a": 0.5}', None]),
        ([2**70, 1, None], "object", [str(2**70), "1", None]),
        ([2**53 + 1, 0.5, None], "object", [str(2**53 + 1), "0.5", None]),
        (["\ud800", "a", None], "object", ["?", "a", None]),
    ],
)
def test_a_column_has_the_type_of_its_values_and_text_where_they_are_of_several(
    values: list[Any], dtype: str, found: list[Any]
) -> None:
    frame = of(*({"window": value} for value in values))
    assert str(frame["window"].dtype) == dtype
    assert cells(frame, "window") == found


def test_columns_of_methods_stand_before_the_input_and_those_of_inputs_behind_it() -> None:
    one = a_timing(a_point(hyper={"window": 1, "block_size": 2}, input_params={"layer": 3, "path": "a"}))
    other = a_timing(a_point(hyper={"rank": 1.5}, input_params={}))
    made = frames(one, other, ErrorRow(one.point, 0, "out_rel_fro", 0.5))
    for name in ("timings", "errors"):
        assert method_parameters(made[name]) == [*PARAMETER_TYPES, "window", "rank"]
        assert input_parameters(made[name]) == ["input.layer", "input.path"]
    assert cells(made["timings"], "rank") == [None, 1.5]
    assert cells(made["errors"], "window") == [1]
    assert cells(made["timings"], "input.layer") == [3, None]


@pytest.mark.parametrize("name", ["method", "pass", "value", "speedup", "baseline_status", "out_rel_fro_low", "a.b"])
def test_a_name_that_another_column_has_is_that_of_the_method(name: str) -> None:
    point = a_point(hyper={name: 7})
    made = frames(a_timing(point), ErrorRow(point, 0, "out_rel_fro", 0.5))["timings"]
    assert f"method.{name}" in method_parameters(made)
    assert cells(made, f"method.{name}") == [7]


def test_the_seed_of_a_draw_has_a_column_where_it_is_not_that_of_the_inputs() -> None:
    assert "method.seed" not in of({"seed": 0}, {"seed": None}, {})
    assert cells(of({"seed": 0}, {"seed": 1}), "method.seed") == [0, 1]


def test_a_parameter_that_is_null_everywhere_has_no_column_and_the_known_ones_always_have() -> None:
    assert method_parameters(of({"window": None})) == list(PARAMETER_TYPES)
    assert method_parameters(tables.build([], "run")["timings"]) == list(PARAMETER_TYPES)


def test_files_hold_the_columns_and_no_name_of_one_is_a_formula(tmp_path: Path) -> None:
    frame = of({"window": 64, "=1+1": "=2+2", "causal": True}, {"window": None, "=1+1": None, "causal": False})
    tables.to_csv(frame, tmp_path / "t.csv")
    tables.to_parquet(frame, tmp_path / "t.parquet")
    csv, parquet = pd.read_csv(tmp_path / "t.csv"), pd.read_parquet(tmp_path / "t.parquet")
    assert list(parquet.columns) == list(frame.columns)
    assert list(csv.columns) == ["'=1+1" if name == "=1+1" else name for name in frame.columns]
    assert cells(csv, "'=1+1") == ["'=2+2", None]
    assert cells(parquet, "window") == [64, None]
    assert cells(csv, "causal") == cells(parquet, "causal") == [True, False]
