"""Compact tables: a cell for everything that was measured, and for everything that was not its status."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, milliseconds, ratio, significant
from hyperbench.analyze.text_table import (
    SORTS,
    TextTable,
    check_sort,
    kinds_note,
    method_tables,
    run_tables,
    time_tables,
)
from hyperbench.analyze.view import MAIN_ERROR, View
from hyperbench.store.schema import ErrorRow, Pass, Record, Status, Timing
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


@pytest.mark.slow
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


def column(table: TextTable, name: str) -> list[str]:
    """The cells of a column."""
    return [row[table.columns.index(name)] for row in table.rows]


def three_methods() -> list[Record]:
    """Three methods at two lengths and inputs: uniform is the fastest, mine the most accurate, and one is lost."""
    numbers = {"hyper": (5.0, 0.5), "uniform": (1.0, 2.0), "mine": (9.0, 0.1)}
    records: list[Record] = []
    for n in (16_384, 2048):
        for name in ("gaussian", "clustered"):
            base = point("flash2", n, input=name)
            records.append(timing(base, Pass.FORWARD, 7.0))
            for method, (ms, error) in numbers.items():
                p = point(method, n, input=name, hyper={"sample_size": 64})
                lost = method == "hyper" and n == 2048
                records.append(failed(p, Pass.FORWARD) if lost else timing(p, Pass.FORWARD, ms))
                records.append(ErrorRow(point=p, seed=0, metric=MAIN_ERROR, value=error))
    return records


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("speed", ["uniform", "hyper", "flash2", "mine"]),
        ("error", ["mine", "hyper", "uniform", "flash2"]),
        ("method", ["flash2", "hyper", "uniform", "mine"]),
    ],
)
def test_a_row_per_method_is_in_the_order_that_is_asked_for_at_each_place(sort: str, order: list[str]) -> None:
    (table,) = method_tables(view_from(three_methods()), sort)
    assert table.title == "forward, without causal masking"
    assert table.columns == ("n", "input", "method", "time", "speedup", "error")
    places = list(dict.fromkeys((row[0], row[1]) for row in table.rows))
    assert places == [("2,048", "clustered"), ("2,048", "gaussian"), ("16,384", "clustered"), ("16,384", "gaussian")]
    for place in places:
        found = [row[2] for row in table.rows if (row[0], row[1]) == place]
        # What has no time stands last, where times decide.
        late = [m for m in order if m != "hyper"] + ["hyper"] if sort == "speed" and place[0] == "2,048" else order
        assert found == late


def test_a_row_per_method_has_the_cells_of_the_view() -> None:
    view = view_from(three_methods())
    (table,) = method_tables(view, "speed")
    rows = {(row[0].replace(",", ""), *row[1:3]): row[3:] for row in table.rows}
    assert len(rows) == len(view.timings)
    for row in view.timings.to_dict("records"):
        time, speedup, error = rows[str(row["seq_len"]), row["input"], row["method"]]
        assert time.startswith(milliseconds(row["median_ms"]) or "oom")
        assert speedup.startswith("baseline" if row["method"] == "flash2" else ratio(row["speedup"]))
        assert error == significant(row[MAIN_ERROR])


def test_settings_of_a_method_are_rows_with_their_parameters() -> None:
    (first, *_) = method_tables(view_from(sweep("block_size", (64, 128), methods=("hyper", "mine"))), "method")
    assert column(first, "method") == ["flash2", "hyper", "hyper", "mine", "mine"]
    assert column(first, "parameters") == ["", "block_size=64", "block_size=128", "block_size=64", "block_size=128"]


def test_points_that_differ_in_no_column_have_rows_with_their_ids() -> None:
    points = [point("mine", 1024, hyper={"rank": r}) for r in (1, 2)]
    (table,) = method_tables(view_from([timing(p, Pass.FORWARD, 1.0 + i) for i, p in enumerate(points)]), "speed")
    assert len(set(table.rows)) == 2


def test_many_methods_or_an_order_make_a_row_of_each() -> None:
    few, many = (view_from(grid(lengths=LENGTHS, methods=("flash2", *"abc"[:k]))) for k in (2, 3))
    assert run_tables(few) == time_tables(few)
    assert run_tables(few, "error") == method_tables(few, "error")
    assert run_tables(many) == method_tables(many, "speed")


@pytest.mark.parametrize("sort", [None, *SORTS])
def test_orders_are_known(sort: str | None) -> None:
    check_sort(sort)
    with pytest.raises(ValueError, match="--sort=eror is unknown; allowed: speed, error, method; did you mean 'error'"):
        check_sort("eror")


def test_kinds_of_methods_are_named_below_a_table() -> None:
    view = view_from(grid(lengths=LENGTHS, methods=("flash2", "hyper", "uniform", "zero", "top_k")))
    assert kinds_note(view) == ""
    kinds = {"uniform": "trivial", "top_k": "oracle", "zero": "trivial", "elsewhere": "trivial"}
    assert kinds_note(dataclasses.replace(view, kinds=kinds)) == "trivial: uniform, zero; oracle: top_k"
