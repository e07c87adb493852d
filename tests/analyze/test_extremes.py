"""Numbers at the ends of what a float holds, and metrics with the names of columns, are shown as any others are."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import warnings

import pytest

from hyperbench.analyze.compare.compare import compare
from hyperbench.analyze.export import export_run
from hyperbench.analyze.figures import available, builder
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.show import run_summary, show_run
from hyperbench.analyze.view import make_view
from hyperbench.commands.console import SafeConsole
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import ErrorRow, Record, Timing
from tests.helpers.slow import slow_in
from tests.helpers.synthetic_runs import MakeRun, grid


def with_times(value: float, method: str) -> list[Record]:
    """A run in which all samples of a method, and of its stages, take so long."""
    return [
        dataclasses.replace(r, samples_ms=(value,) * len(r.samples_ms))
        if isinstance(r, Timing) and r.point.method == method
        else r
        for r in grid((1024, 2048), masks=(False,), staged=True)
    ]


def with_errors(errors: dict[int, float]) -> list[Record]:
    """A run in which the errors of these lengths have these values."""
    return [
        dataclasses.replace(r, value=errors[r.point.seq_len])
        if isinstance(r, ErrorRow) and r.metric == "out_rel_fro" and r.point.seq_len in errors
        else r
        for r in grid((1024, 2048, 4096, 8192), masks=(False,))
    ]


def with_metrics(*names: str) -> list[Record]:
    """A run with metrics of these names as well."""
    rows = grid((1024, 2048), masks=(False,))
    errors = [r for r in rows if isinstance(r, ErrorRow) and r.metric == "out_rel_fro"]
    return [*rows, *(dataclasses.replace(r, value=0.5, metric=name) for name in names for r in errors)]


CASES = {
    **{f"{m} takes {v:g}": with_times(v, m) for m, v in (
        ("hyper", 1e300), ("hyper", 1.7e308), ("hyper", 5e-324), ("hyper", 0.0), ("flash2", 1.7e308), ("flash2", 0.0)
    )},
    "large and small errors": with_errors({1024: 1e300, 2048: 1.7e308, 4096: 5e-324}),
    "errors that are none": with_errors({1024: -1.0, 2048: math.inf, 4096: -math.inf, 8192: math.nan}),
    "metrics called like columns": with_metrics(
        "seq_len", "pass", "run_id", "message", "speedup", "speedup_low", "out_rel_fro_low", "median_ms", ""
    ),
}  # fmt: skip


#: Like others of these.
LIKE_OTHERS = (
    "large and small errors",
    "flash2 takes 0",
    "hyper takes 1e+300",
    "hyper takes 0",
    "flash2 takes 1.7e+308",
    "hyper takes 4.94066e-324",
)


@pytest.mark.parametrize("case", slow_in(CASES, LIKE_OTHERS))
def test_no_number_and_no_name_of_a_metric_ends_a_command(make_run: MakeRun, case: str) -> None:
    run = make_run(CASES[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = io.StringIO()
        show_run(run, SafeConsole(file=text, width=200))
        assert "hyper" in text.getvalue()
        json.dumps(run_summary(run), allow_nan=False)
        view = make_view(load_run(run))
        for name in available():
            try:
                builder(name)(view).to_json()
            except DoesNotFitError:
                continue
        for kind in ("csv", "latex"):
            assert export_run(run, kind, None)
        compare(run, None, ["flash2", "hyper"], None)


def test_a_metric_called_like_a_column_is_told_apart(make_run: MakeRun) -> None:
    rows = run_summary(make_run(with_metrics("speedup_low")))["rows"]
    assert 0.5 in {row["errors"]["error speedup_low"] for row in rows}
    assert any(row["speedup_low"] and row["speedup_low"] != 0.5 for row in rows)
