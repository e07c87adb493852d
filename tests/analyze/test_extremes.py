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
from tests.helpers.synthetic_runs import MakeRun, grid


def with_times(value: float, method: str) -> list[Record]:
    """A run in which all samples of a method, and of its stages, take so long."""
    return [
        dataclasses.replace(r, samples_ms=(value,) * len(r.samples_ms))
        if isinstance(r, Timing) and r.point.method == method
        else r
        for r in grid((1024, 2048), masks=(False,), staged=True)
    ]


def with_errors(value: float, metric: str = "out_rel_fro") -> list[Record]:
    """A run in which an error has this value at its first length, or in which a metric of that name is added."""
    rows = grid((1024, 2048), masks=(False,))
    changed = [
        dataclasses.replace(r, value=value, metric=metric)
        for r in rows
        if isinstance(r, ErrorRow) and r.metric == "out_rel_fro" and r.point.seq_len == 1024
    ]
    return [*rows, *changed]


CASES = {
    **{f"{m} takes {v:g}": with_times(v, m) for v in (1e300, 1.7e308, 5e-324, 0.0) for m in ("hyper", "flash2")},
    **{f"an error of {v:g}": with_errors(v) for v in (1e300, 1.7e308, 5e-324, -1.0, math.inf, -math.inf, math.nan)},
    **{
        f"a metric called {name!r}": with_errors(0.5, name)
        for name in (
            "seq_len",
            "pass",
            "run_id",
            "message",
            "speedup",
            "speedup_low",
            "out_rel_fro_low",
            "median_ms",
            "",
        )
    },
}


@pytest.mark.parametrize("case", CASES)
def test_no_number_and_no_name_of_a_metric_ends_a_command(make_run: MakeRun, case: str) -> None:
    run = make_run(CASES[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
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
    rows = run_summary(make_run(CASES["a metric called 'speedup_low'"]))["rows"]
    assert 0.5 in {row["errors"]["error speedup_low"] for row in rows}
    assert any(row["speedup_low"] and row["speedup_low"] != 0.5 for row in rows)
