"""The error panel: every error has a mark; exact answers, missing draws and infinities are neither hidden nor zero."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.figures import builder
from hyperbench.analyze.plotting import errors
from hyperbench.analyze.text_table import time_tables
from hyperbench.analyze.view import MAIN_ERROR, View
from hyperbench.store.schema import ErrorRow, Record, Status
from tests.helpers.figure_reading import crosses, footer, panel, shown, values
from tests.helpers.synthetic_runs import HYPER, PASSES, exact_ms, hyper_ms, point, timing, view_from

LENGTHS = tuple(2**e for e in range(10, 17))


def error_view(values_: dict[int, list[float | None]], dtype: str = "float32", trivial: bool = True) -> View:
    """A run whose method has these errors, one per draw, at each length; None is a draw that failed."""
    records: list[Record] = []
    for n, draws in values_.items():
        base, p = point("flash2", n, dtype=dtype), point("hyper", n, dtype=dtype, hyper=HYPER)
        records += [timing(base, x, exact_ms(base, x)) for x in PASSES] + [timing(p, x, hyper_ms(p, x)) for x in PASSES]
        for seed, value in enumerate(draws):
            status, message = (Status.OK, "") if value is not None else (Status.OOM, "no memory")
            records.append(ErrorRow(point=p, seed=seed, metric=MAIN_ERROR, value=value, status=status, message=message))
        if trivial:
            records.append(ErrorRow(point=p, seed=0, metric="zero_rel_fro", value=1.0))
    return view_from(records)


def strip(view: View) -> tuple[dict[int, float | None], dict[int, str], dict[int, str]]:
    """The errors in fig4: heights of the curve, hovers of exact marks, hovers of crosses."""
    fig = builder("fig4")(view)
    by_name = {t.name: t for t in panel(fig, 2, 1) if t.hoverinfo == "text"}
    curve = by_name.get("error of hyper")
    exact = by_name.get("exact to rounding") or by_name.get("error below 1e-6")
    return (
        values(curve) if curve else {},
        dict(zip(exact.x, exact.hovertext, strict=True)) if exact else {},
        crosses(fig, 2, 1),
    )


draws = st.one_of(
    st.just([None]),
    st.lists(st.floats(1e-3, 50.0), min_size=1, max_size=3),
    st.lists(st.floats(0.0, 5e-7), min_size=1, max_size=3),
    st.just([math.inf]),
    st.just([math.nan, math.nan]),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(st.dictionaries(st.sampled_from(LENGTHS), draws, min_size=1))
def test_every_point_has_one_mark_that_tells_its_error(drawn: dict[int, list[float | None]]) -> None:
    view = error_view(drawn)
    heights, exact, missing = strip(view)
    table = view.timings[view.timings["method"] == "hyper"].set_index("seq_len")
    for n in drawn:
        median = table.loc[n].iloc[0].get(MAIN_ERROR, math.nan)
        on_curve = heights.get(n) is not None
        assert on_curve + (n in exact) + (n in missing) == 1
        if on_curve:
            assert heights[n] == median
        if n in missing:
            assert not math.isfinite(median)
        if n in exact:
            assert median < 1e-6


def test_the_axis_shows_errors_from_a_fifth_to_eight_and_the_answer_zero() -> None:
    view = error_view({n: [0.2 * 1.85**i] for i, n in enumerate(LENGTHS)})
    fig = builder("fig4")(view)
    axis = fig.get_subplot(2, 1).yaxis
    assert axis.type == "log"
    low, high = (10**edge for edge in axis.range)
    assert low < 0.2
    assert high > 8
    ticks = [t for t in axis.tickvals if low < t < high]
    assert {0.5, 1.0, 2.0, 5.0} <= set(ticks)
    zero = next(t for t in panel(fig, 2, 1) if t.name == "error of answering zero")
    assert set(zero.y) == {1.0}


@pytest.mark.parametrize(
    ("dtype", "error", "of_exact", "of_another"),
    [
        ("float32", 3e-7, "exact to rounding", "error below 1e-6"),
        ("float32", 5e-6, "", ""),
        ("bfloat16", 3e-3, "exact to rounding", ""),
        ("bfloat16", 0.2, "", ""),
        ("float64", 1e-15, "exact to rounding", "error below 1e-6"),
        ("float64", 1e-12, "", "error below 1e-6"),
        ("float32", -1e-7, "missing", "missing"),
    ],
)
def test_exact_means_an_exact_method_up_to_a_few_roundings_of_its_type(
    dtype: str, error: float, of_exact: str, of_another: str
) -> None:
    view = error_view({1024: [error], 2048: [0.5]}, dtype)
    for exact_methods, mark in ((frozenset({"hyper"}), of_exact), (frozenset[str](), of_another)):
        fig = builder("fig4")(dataclasses.replace(view, exact_methods=exact_methods))
        heights = values(next(t for t in panel(fig, 2, 1) if t.name == "error of hyper"))
        names = {t.name for t in panel(fig, 2, 1)}
        assert (heights[1024] is None) == bool(mark)
        assert names & {"exact to rounding", "error below 1e-6"} == ({mark} - {"", "missing"})
        assert (1024 in crosses(fig, 2, 1)) == (mark == "missing")


def test_an_error_from_a_part_of_the_rows_has_its_interval_beside_it() -> None:
    base, p = point("flash2", 1024), point("hyper", 1024, hyper=HYPER)
    rows: list[Record] = [timing(one, pass_, 1.0) for one in (base, p) for pass_ in PASSES]
    rows += [ErrorRow(p, seed, MAIN_ERROR, 0.5, low=0.49, high=0.51 + 0.01 * seed) for seed in range(3)]
    view = view_from(rows)
    row = view.timings[view.timings["method"] == "hyper"].iloc[0].to_dict()
    assert errors.error_lines(row, view) == ["out_rel_fro 0.500 ±4.0% (0.490 to 0.530 over seeds)"]
    table = time_tables(view)[0]
    assert table.rows[0][-1] == "0.500 ±4.0%"
    curve = next(t for t in panel(builder("fig4")(view), 2, 1) if t.name == "error of hyper")
    assert curve.y[0] == 0.5


def test_bands_reach_from_the_least_draw_to_the_largest() -> None:
    fig = builder("fig4")(error_view({1024: [0.3, 0.1, 0.2], 2048: [0.4, 0.6, 0.5]}))
    (band,) = [t for t in panel(fig, 2, 1) if t.name == "error of hyper interval"]
    assert list(band.y) == pytest.approx([0.3, 0.6, 0.4, 0.1])


def test_a_draw_without_an_error_is_told_though_others_have_one() -> None:
    view = error_view({1024: [0.3, None, 0.2], 2048: [0.4, 0.4, 0.4]})
    fig = builder("fig4")(view)
    curve = next(t for t in panel(fig, 2, 1) if t.name == "error of hyper")
    assert "a draw without error: oom: no memory" in curve.hovertext[0]
    assert "a draw without error" not in curve.hovertext[1]
    assert "Draws of hyper without an error at n = 1,024 (oom: no memory)." in footer(fig)


def test_a_missing_error_is_a_cross_with_its_reason_and_a_gap_in_the_curve() -> None:
    heights, _, missing = strip(error_view({1024: [0.2], 2048: [None], 4096: [0.4], 8192: [math.inf]}))
    assert [heights[n] is None for n in (1024, 2048, 4096, 8192)] == [False, True, False, True]
    assert set(missing) == {2048, 8192}
    assert "oom: no memory" in missing[2048]
    assert "inf" in missing[8192]


def test_a_run_without_any_error_says_so_and_draws_no_mark() -> None:
    records: list[Record] = []
    for n in LENGTHS:
        base, p = point("flash2", n), point("hyper", n, hyper=HYPER)
        records += [timing(base, x, exact_ms(base, x)) for x in PASSES] + [timing(p, x, hyper_ms(p, x)) for x in PASSES]
    fig = builder("fig4")(view_from(records))
    assert not panel(fig, 2, 1)
    assert "No error was measured for hyper." in footer(fig)
    top = next(t for t in panel(fig, 1, 1) if t.name == "forward")
    assert all("error not measured" in text for text in top.hovertext)


def test_the_hover_tells_every_metric_main_one_first_with_its_spread() -> None:
    view = error_view({1024: [0.1, 0.2, 0.3]})
    row = view.timings[view.timings["method"] == "hyper"].iloc[0].to_dict()
    assert errors.error_lines(row, view) == ["out_rel_fro 0.200 (0.100 to 0.300 over seeds)", "zero_rel_fro 1.00"]


def test_marks_at_the_foot_do_not_hide_each_other() -> None:
    fig = builder("fig4")(error_view({1024: [1e-7], 2048: [None], 4096: [0.5]}))
    low, high = fig.get_subplot(2, 1).yaxis.range
    exact = next(t for t in panel(fig, 2, 1) if t.name == "error below 1e-6")
    cross = next(t for t in panel(fig, 2, 1) if t.marker.symbol == "x-thin")
    heights = [math.log10(exact.y[0]), math.log10(cross.y[0])]
    assert low < heights[0] < heights[1] < math.log10(0.5) < high
    assert "no value at n = 2,048" in shown(cross.hovertext[0])
