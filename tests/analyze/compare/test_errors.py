"""Errors of two runs or methods: worse and better beyond the intervals, nothing within them, what is lost is named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hyperbench.analyze.compare.compare import Comparison, compare
from hyperbench.analyze.compare.errors import Change, error_failures, error_lines, error_pairs
from hyperbench.analyze.compare.report import comparison_data, print_comparison
from hyperbench.analyze.view import MAIN_ERROR
from hyperbench.store.schema import ErrorRow, Point, Record, Status
from tests.helpers.made_rounds import points, sweep, write_run

HYPER = [p for p in points() if p.method == "hyper"]


def draws(p: Point, *values: float | None, metric: str = MAIN_ERROR, **changes: Any) -> list[Record]:
    """Errors of a point, one a draw; None is a draw that failed."""
    return [
        ErrorRow(p, seed, metric, value, Status.OK if value is not None else Status.OOM, **changes)
        for seed, value in enumerate(values)
    ]


def compared(folder: Path, a: list[Record], b: list[Record]) -> Comparison:
    """Two runs with the same times, and these errors."""
    runs = (("a", [*sweep("one"), *a]), ("b", [*sweep("two"), *b]))
    return compare(*(write_run(folder / name, records) for name, records in runs))


def printed(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    print_comparison(comparison, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("a", "b", "change"),
    [
        ((0.3, 0.32, 0.28), (0.31, 0.33, 0.29), Change.WITHIN_INTERVALS),
        ((0.3, 0.32, 0.28), (0.4, 0.42, 0.38), Change.WORSE),
        ((0.4, 0.42, 0.38), (0.3, 0.32, 0.28), Change.BETTER),
        ((0.3,), (0.3,), Change.WITHIN_INTERVALS),
        # The rounding of another machine is no change.
        ((0.3,), (0.3001,), Change.WITHIN_INTERVALS),
        ((0.3,), (0.31,), Change.WORSE),
        ((1e-7,), (9e-7,), Change.WITHIN_INTERVALS),
        ((1e-7,), (1e-2,), Change.WORSE),
        ((0.3, 0.3), (0.3, None), Change.MISSING_IN_B),
        ((), (0.3,), Change.MISSING_IN_A),
    ],
)
def test_a_change_is_one_beyond_the_intervals(
    tmp_path: Path, a: tuple[float, ...], b: tuple[float | None, ...], change: Change
) -> None:
    found = compared(tmp_path, draws(HYPER[0], *a), draws(HYPER[0], *b))
    (pair,) = error_pairs(found)
    assert pair.change is change
    (told,) = comparison_data(found)["errors"]
    assert (told["change"], told["method_b"], told["seq_len"]) == (str(change), "hyper", 1024)
    assert json.dumps(told, allow_nan=False)


def test_the_interval_of_an_error_of_some_rows_counts(tmp_path: Path) -> None:
    found = compared(
        tmp_path, draws(HYPER[0], 0.3, low=0.2, high=0.4), draws(HYPER[0], 0.45, low=0.38, high=0.5)
    )  # fmt: skip
    (pair,) = error_pairs(found)
    assert pair.change is Change.WITHIN_INTERVALS
    assert (pair.a, pair.b) == ((0.3, 0.2, 0.4), (0.45, 0.38, 0.5))


def test_errors_stand_in_a_table_and_worse_ones_in_a_line_before_the_verdict(tmp_path: Path) -> None:
    a = [*draws(HYPER[0], 0.3, 0.32), *draws(HYPER[1], 0.5)]
    found = compared(tmp_path, a, [*draws(HYPER[0], 0.4, 0.42), *draws(HYPER[1], 0.5)])
    text = printed(found)
    assert "errors of B against A" in text
    assert "0.310 (0.300 to 0.320)" in text
    assert "error worse beyond its interval at hyper n=1,024" in text
    assert text.rstrip().splitlines()[-2:] == ["errors of 2 points: 1 worse, 1 within intervals", found.headline()]


def test_runs_without_errors_say_nothing_of_them(tmp_path: Path) -> None:
    found = compared(tmp_path, [], draws(HYPER[0], 1.0, metric="zero_rel_fro"))
    assert error_pairs(found) == []
    assert error_lines(found, []) == []
    assert "errors of" not in printed(found)


def test_two_methods_of_one_run_are_compared_in_their_errors(tmp_path: Path) -> None:
    flash = [p for p in points() if p.method == "flash2"]
    records = [*sweep("one"), *draws(flash[0], 1e-7), *draws(HYPER[0], 0.5)]
    found = compare(write_run(tmp_path / "run", records), methods=("flash2", "hyper"))
    (pair,) = error_pairs(found)
    assert pair.change is Change.WORSE
    assert "error of flash2" in printed(found)
    assert "error worse beyond its interval at n=1,024" in printed(found)


def test_a_check_of_errors_fails_on_worse_and_lost_ones_and_where_it_can_see_none(tmp_path: Path) -> None:
    a = [*draws(HYPER[0], 0.3), *draws(HYPER[1], 0.3)]
    found = compared(tmp_path, a, draws(HYPER[0], 0.5))
    lines = error_failures(found, error_pairs(found))
    assert lines == [
        "hyper n=1,024: error worse, 0.300 in A, 0.500 in B", "hyper n=2,048: error missing in b, 0.300 in A, none in B"
    ]  # fmt: skip
    turned = compare(tmp_path / "b", tmp_path / "a")
    assert error_failures(turned, error_pairs(turned)) == []
    (line,) = error_failures(compared(tmp_path / "none", [], []), [])
    assert line == "no point has an error on both sides, so a worse one would not be seen"
