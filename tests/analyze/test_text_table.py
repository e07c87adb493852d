"""Compact tables: a cell for everything that was measured, and for everything that was not its status."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, milliseconds, ratio, significant
from hyperbench.analyze.text_table import TextTable, time_tables
from hyperbench.analyze.view import MAIN_ERROR, View
from hyperbench.store.schema import Pass, Record, Status, Timing
from tests.helpers.synthetic_runs import HYPER, PASSES, errors, failed, grid, hyper_ms, point, sweep, timing, view_from

LENGTHS = (1024, 2048)
METHODS = ("flash2", "hyper", "uniform")


def cells(tables: list[TextTable]) -> dict[tuple[str, str, str, str], str]:
    """Every cell by the title of its table, the length, the pass and the column."""
    found = {}
    for table in tables:
        n, pass_ = table.columns.index("n"), table.columns.index("pass")
        for row in table.rows:
            for name, cell in zip(table.columns, row, strict=True):
                found[table.title.partition(":")[0], row[n], row[pass_], name] = cell
    return found


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.integers(0, 35), st.sampled_from(["gone", "oom", "throttled"])), st.integers(1, 3))
def test_every_row_has_its_cell_with_time_or_status(fates: dict[int, str], per_table: int) -> None:
    timed = [r for r in grid(lengths=LENGTHS, methods=METHODS) if isinstance(r, Timing)]
    kept: list[Record] = []
    for i, r in enumerate(timed):
        fate = fates.get(i)
        if fate == "oom":
            kept.append(failed(r.point, r.pass_))
        elif fate == "throttled":
            kept.append(timing(r.point, r.pass_, 3.0, status=Status.THROTTLED))
        elif fate is None:
            kept.append(r)
    view = view_from(kept)
    found = cells(time_tables(view, methods_per_table=per_table))
    for row in view.timings.to_dict("records"):
        where = (MASK_LABELS[row["is_causal"]], f"{row['seq_len']:,}", PASS_LABELS[row["pass"]])
        cell = found[(*where, row["method"])]
        if row["status"] == "oom":
            assert cell == "oom"
        else:
            assert cell.startswith(milliseconds(row["median_ms"]))
            assert cell.endswith("(throttled)") == (row["status"] == "throttled")


def test_speedup_and_error_are_those_of_the_view(full_view: View) -> None:
    found = cells(time_tables(full_view))
    hyper = full_view.timings[full_view.timings["method"] == "hyper"]
    for row in hyper.to_dict("records"):
        where = (MASK_LABELS[row["is_causal"]], f"{row['seq_len']:,}", PASS_LABELS[row["pass"]])
        width = max(row["speedup"] - row["speedup_low"], row["speedup_high"] - row["speedup"]) / row["speedup"]
        assert found[(*where, "speedup")] == f"{ratio(row['speedup'])} ±{100 * width:.1f}%†"
        assert found[(*where, "error")] == significant(row[MAIN_ERROR])


def test_rows_are_ordered_by_length_as_a_number_and_by_pass(full_view: View) -> None:
    for table in time_tables(full_view):
        keys = [(int(row[0].replace(",", "")), row[1]) for row in table.rows]
        order = ["forward", "forward+backward", "backward"]
        assert keys == sorted(keys, key=lambda k: (k[0], order.index(k[1])))


def test_a_row_has_as_many_cells_as_there_are_columns() -> None:
    for view in (view_from(grid(methods=METHODS)), view_from(sweep("pairing", ("rank", "bucket")))):
        for table in time_tables(view):
            assert len(table.columns) == len(table.is_number)
            assert all(len(row) == len(table.columns) for row in table.rows)


@pytest.mark.parametrize(
    ("axis", "values"), [("block_size", (64, 128, 1024)), ("heads", (1, 2, 16)), ("pairing", ("bucket", "rank"))]
)
def test_what_varies_gets_a_column(axis: str, values: tuple[object, ...]) -> None:
    (table,) = time_tables(view_from(sweep(axis, values)))
    column = table.columns.index(axis)
    assert list(dict.fromkeys(row[column] for row in table.rows)) == [str(v) for v in values]
    assert table.is_number[column] == (axis != "pairing")
    # The baseline, which has no block, stands beside each of the values.
    assert all(row[table.columns.index("flash2")] for row in table.rows)


def test_a_parameter_of_any_method_gets_a_column_where_it_varies() -> None:
    points = [point("mine", 1024, hyper={"rank": r, "mode": "a"}) for r in (2, 10, 100)]
    records = [timing(p, Pass.FORWARD, 1.0 + i) for i, p in enumerate(points)]
    (table,) = time_tables(view_from([*records, timing(point("flash2", 1024), Pass.FORWARD, 9.0)]))
    assert "mode" not in table.columns
    column, time = table.columns.index("rank"), table.columns.index("mine")
    assert [row[column] for row in table.rows] == ["2", "10", "100"]
    assert [round(float(row[time].split()[0])) for row in table.rows] == [1, 2, 3]
    assert all(row[table.columns.index("flash2")] for row in table.rows)


def test_points_that_differ_in_no_column_are_told_apart_by_their_id() -> None:
    points = [point("mine", 1024, hyper={"rank": r}) for r in (1, "1")]
    (table,) = time_tables(view_from([timing(p, Pass.FORWARD, 1.0 + i) for i, p in enumerate(points)]))
    column = table.columns.index("point_id")
    assert {row[column] for row in table.rows} == {p.point_id for p in points}


def test_a_run_of_the_baseline_alone_is_a_table_of_its_times() -> None:
    found = cells(time_tables(view_from(grid(lengths=LENGTHS, methods=("flash2",)))))
    assert len([k for k in found if k[3] == "flash2" and found[k]]) == len(LENGTHS) * len(PASSES) * 2


def test_a_run_without_the_baseline_has_times_and_no_speedup() -> None:
    p = point("hyper", 1024, hyper=HYPER)
    (table,) = time_tables(view_from([timing(p, x, hyper_ms(p, x)) for x in PASSES] + errors(p)))
    assert "flash2" not in table.columns
    assert all(row[table.columns.index("speedup")] == "" for row in table.rows)
    assert all(row[table.columns.index("hyper")] for row in table.rows)
