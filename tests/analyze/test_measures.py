"""Metrics that are no errors stand apart from them; errors of single heads do not fill the hovers."""

from __future__ import annotations

import pytest

from hyperbench.analyze.joins import records
from hyperbench.analyze.measures import measure_columns
from hyperbench.analyze.plotting.errors import error_lines
from hyperbench.analyze.show import run_summary
from hyperbench.analyze.view import View, error_columns
from hyperbench.store.schema import ErrorRow, Pass, Record
from tests.helpers.synthetic_runs import HYPER, MakeRun, grid, point, timing, view_from

ERRORS = {"out_rel_fro": 0.5, "out_rel_fro_head_median": 0.4, "out_rel_fro_head_max": 0.9, "out_rel_fro_head0": 0.4,
          "out_rel_fro_head1": 0.9, "out_bias_rel_fro": 0.012345, "out_std_rel_fro": 0.49,
          "den_rel_p99": 0.071}  # fmt: skip
MEASURES = {"alpha": 3.0, "kappa": 1e20, "stable_rank": 1.25, "mass_blocks": 0.4, "mass_leaf": 0.1}


def one_point() -> list[Record]:
    """A point with every kind of metric."""
    p = point("hyper", 1024, hyper=HYPER)
    return [
        timing(p, Pass.FORWARD, 1.0),
        *(ErrorRow(p, 0, name, value) for name, value in {**ERRORS, **MEASURES}.items()),
    ]


@pytest.fixture(scope="module")
def view() -> View:
    """The view of that point. Read only."""
    return view_from(one_point())


def test_properties_and_masses_are_no_errors(view: View) -> None:
    assert set(error_columns(view.timings)) == set(ERRORS)
    assert set(measure_columns(view.timings)) == set(MEASURES)
    assert measure_columns(view_from(grid(lengths=(1024,))).timings) == []


def test_a_hover_tells_errors_of_heads_by_their_median_and_maximum(view: View) -> None:
    (row,) = records(view.timings)
    assert error_lines(row, view) == [
        "out_rel_fro 0.500", *sorted(["out_rel_fro_head_median 0.400", "out_rel_fro_head_max 0.900",
        "out_bias_rel_fro 0.0123", "out_std_rel_fro 0.490", "den_rel_p99 0.0710"]),
    ]  # fmt: skip


def test_show_tells_both_as_data(make_run: MakeRun) -> None:
    (row,) = run_summary(make_run(one_point()))["rows"]
    assert row["errors"] == ERRORS
    assert row["measures"] == MEASURES
    assert all("measures" not in row for row in run_summary(make_run(grid(lengths=(1024,)), "other"))["rows"])
