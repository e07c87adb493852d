"""The speedup figure: the numbers of the joined table, published points apart from measured ones, nothing lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.figures.fig4 import build
from hyperbench.analyze.format import PASS_LABELS, milliseconds, ratio, significant
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting import layout
from hyperbench.analyze.view import MAIN_ERROR, View
from hyperbench.flops import work_ratio
from hyperbench.store.schema import Pass, Record, Status, Timing
from tests.helpers.figure_reading import (
    bands,
    crosses,
    curve,
    footer,
    foreign_markup,
    has_curve,
    panel,
    shown,
    values,
)
from tests.helpers.synthetic_runs import (
    CPU_LENGTHS,
    GPU_LENGTHS,
    HYPER,
    PASSES,
    errors,
    exact_ms,
    failed,
    grid,
    hyper_ms,
    point,
    timing,
    view_from,
)

LIMIT = "limit at equal rate, computed"
PUBLISHED = "published, not measured: the paper's Fig. 4"
COLUMNS = {False: 1, True: 2}


def table(view: View, method: str, is_causal: bool, pass_: str) -> dict[int, dict[str, object]]:
    """Rows of the joined table by length."""
    frame = view.timings
    chosen = frame[(frame["method"] == method) & (frame["is_causal"] == is_causal) & (frame["pass"] == pass_)]
    return {int(row["seq_len"]): row for row in chosen.to_dict("records")}


@pytest.fixture(scope="module")
def full(full_view: View) -> go.Figure:
    """The figure of the CPU grid. Read only."""
    return build(full_view)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pass_", [str(p) for p in PASSES])
def test_curves_bands_and_hovers_are_those_of_the_joined_table(
    full: go.Figure, full_view: View, is_causal: bool, pass_: str
) -> None:
    rows = table(full_view, "hyper", is_causal, pass_)
    col = COLUMNS[is_causal]
    name = PASS_LABELS[pass_]
    line = curve(full, 1, col, name)
    assert values(line) == {n: row["speedup"] for n, row in rows.items()}
    (band,) = bands(full, 1, col, name)
    assert list(band.x) == [*rows, *reversed(rows)]
    assert list(band.y) == [r["speedup_high"] for r in rows.values()] + [
        r["speedup_low"] for r in reversed(rows.values())
    ]
    for text, row in zip(line.hovertext, rows.values(), strict=True):
        told = shown(text)
        assert f"hyper, {name}, n = {row['seq_len']:,}" in told
        assert f"speedup {ratio(row['speedup'])}" in told
        assert f"hyper: {milliseconds(row['median_ms'])}" in told
        assert f"flash2: {milliseconds(row['baseline_median_ms'])}" in told
        assert f"{MAIN_ERROR} {significant(row[MAIN_ERROR])}" in told


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_strip_below_has_the_error_of_every_point(full: go.Figure, full_view: View, is_causal: bool) -> None:
    rows = table(full_view, "hyper", is_causal, "forward")
    line = curve(full, 2, COLUMNS[is_causal], "error of hyper")
    assert values(line) == {n: row[MAIN_ERROR] for n, row in rows.items()}
    assert set(curve(full, 2, COLUMNS[is_causal], "error of answering zero").y) == {1.0}
    assert set(curve(full, 2, COLUMNS[is_causal], "error of answering mean(v)").y) == {0.82}


def test_two_panels_are_named_and_share_their_axes(full: go.Figure) -> None:
    titles = {shown(a.text).strip() for a in full.layout.annotations}
    assert {"without causal masking", "with causal masking"} <= titles
    for row in (1, 2):
        left, right = (full.get_subplot(row, col) for col in (1, 2))
        assert left.yaxis.range == right.yaxis.range
        assert left.xaxis.range == right.xaxis.range == full.get_subplot(1, 1).xaxis.range
        assert left.xaxis.type == left.yaxis.type == "log"


@pytest.mark.parametrize(("is_causal", "speedup"), [(False, 54.0), (True, 5.4)])
def test_the_papers_points_are_marked_as_published_and_apart_from_measured_ones(
    full: go.Figure, is_causal: bool, speedup: float
) -> None:
    col = COLUMNS[is_causal]
    star = curve(full, 1, col, PUBLISHED)
    assert values(star) == {131_072: speedup}
    assert "lines" not in star.mode
    assert star.text[0] == f"paper {speedup:g}×"
    assert "not measured here" in star.hovertext[0]
    assert "A100" in star.hovertext[0]
    measured = [t for t in panel(full, 1, col) if t.hoverinfo == "text" and t is not star and shown(t.name) != LIMIT]
    for line in measured:
        # No curve reaches the published length: this run ends before it.
        assert 131_072 not in values(line)
        assert line.marker.symbol != star.marker.symbol
        assert star.marker.color not in list(line.marker.color)
    assert "Stars: published, not measured here: the paper's 54× and 5.4× at n = 131,072" in footer(full)
    assert "This run ends at n = 65,536." in footer(full)


def test_a_run_to_the_published_length_keeps_both_apart() -> None:
    fig = build(view_from(grid(lengths=GPU_LENGTHS, heads=12, device="cuda", dtype="bfloat16")))
    line, star = curve(fig, 1, 1, "forward"), curve(fig, 1, 1, PUBLISHED)
    assert values(line)[131_072] != values(star)[131_072]
    assert "This run ends" not in footer(fig)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_limit_is_the_work_ratio_and_looks_like_no_measurement(full: go.Figure, is_causal: bool) -> None:
    line = curve(full, 1, COLUMNS[is_causal], LIMIT)
    assert set(CPU_LENGTHS) <= set(line.x)
    assert max(line.x) == 131_072
    for n, height in values(line).items():
        assert height == work_ratio(n, 256, 256, 1024, is_causal=is_causal)
    assert "markers" not in line.mode
    assert line.line.dash not in ("solid", None)
    assert "computed, not measured" in footer(full)


def test_methods_with_other_parameters_have_limits_of_their_own() -> None:
    paper = {**HYPER, "min_seq_len": 4096}
    records: list[Record] = []
    for n in (1024, 8192):
        for p in (point("flash2", n), point("hyper", n, hyper=HYPER), point("hyper_paper", n, hyper=paper)):
            records += [timing(p, x, exact_ms(p, x)) for x in PASSES]
        records += [timing(point("uniform", n, hyper={"sample_size": 64}), x, 1.0) for x in PASSES]
    fig = build(view_from(records))
    for method, leaf in (("hyper", 1024), ("hyper_paper", 4096)):
        line = curve(fig, 1, 1, f"limit at equal rate of {method}, computed")
        assert values(line)[8192] == work_ratio(8192, 256, 256, leaf, is_causal=False)
        assert line.line.color == curve(fig, 1, 1, f"{method}, forward").line.color
    assert not any("uniform" in shown(t.name) and "limit" in t.name for t in fig.data)


@pytest.mark.parametrize(
    "part",
    [
        "(cpu, 2 threads)",
        "float32",
        "b=256 m=256",
        "baseline flash2 = torch-2.13.0-sdpa-flash-cpu",
        "protocol strict",
        "commit 0123456789",
        "input gaussian (seed 0)",
        "head_dim=64",
    ],
)
def test_the_footer_names_what_made_the_numbers(full: go.Figure, part: str) -> None:
    assert part in footer(full)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(st.dictionaries(st.integers(0, 35), st.sampled_from(["gone", "oom", "error", "throttled"])))
def test_whatever_fails_every_row_is_on_a_curve_or_a_cross(fates: dict[int, str]) -> None:
    timed = [r for r in grid(lengths=(1024, 2048, 4096)) if isinstance(r, Timing)]
    kept = [fated(r, fates[i]) if i in fates else r for i, r in enumerate(timed)]
    view = view_from([r for r in kept if r is not None])
    frame = view.timings[view.timings["method"] == "hyper"]
    if not frame["speedup"].notna().any():
        with pytest.raises(DoesNotFitError):
            build(view)
        return
    fig = build(view)
    for col, is_causal in enumerate(sorted(frame["is_causal"].unique()), start=1):
        lines = {shown(t.name): t for t in panel(fig, 1, col) if t.hoverinfo == "text"}
        missing = {n: shown(text) for n, text in crosses(fig, 1, col).items()}
        for (n, name), row in rows_of(frame, is_causal):
            heights = values(lines[name]) if name in lines else {}
            if math.isnan(row["speedup"]):
                assert heights.get(n) is None
                why = row["status"] if math.isnan(row["median_ms"]) else row["baseline_status"]
                assert f"hyper {name}: " in missing[n]
                assert why in missing[n]
            else:
                assert heights[n] == row["speedup"]
                fill = lines[name].marker.color[list(heights).index(n)]
                assert (fill == "white") == ("throttled" in (row["status"], row["baseline_status"]))


def rows_of(frame: pd.DataFrame, is_causal: bool) -> list[tuple[tuple[int, str], dict[str, Any]]]:
    """The rows of one masking by length and the name of their pass."""
    chosen = frame[frame["is_causal"] == is_causal].to_dict("records")
    return [((int(row["seq_len"]), PASS_LABELS[row["pass"]]), row) for row in chosen]


def fated(record: Timing, fate: str) -> Timing | None:
    """A timing as it comes out of an accident."""
    if fate == "gone":
        return None
    if fate == "throttled":
        return timing(record.point, record.pass_, 5.0, status=Status.THROTTLED)
    return failed(record.point, record.pass_, Status(fate), "an accident")


def test_a_baseline_out_of_memory_leaves_a_gap_a_cross_and_a_note() -> None:
    def change(t: Timing) -> Timing:
        is_lost = t.point.method == "flash2" and t.point.seq_len == 8192
        return failed(t.point, t.pass_, message="asked for 16 GiB") if is_lost else t

    fig = build(view_from(grid(lengths=(2048, 4096, 8192, 16_384), change=change)))
    for col in (1, 2):
        line = curve(fig, 1, col, "forward")
        assert [y is None for y in line.y] == [False, False, True, False]
        assert line.connectgaps is False
        assert len(bands(fig, 1, col, "forward")) == 2
        assert set(crosses(fig, 1, col)) == {8192}
        assert "baseline oom: asked for 16 GiB" in shown(crosses(fig, 1, col)[8192])
        # Its error is known all the same.
        assert values(curve(fig, 2, col, "error of hyper"))[8192] is not None
    note = "No value: hyper forward, forward+backward, backward at n = 8,192 (baseline oom: asked for 16 GiB)."
    assert note in footer(fig)


def test_throttled_points_are_hollow_and_noted() -> None:
    def change(t: Timing) -> Timing:
        return dataclasses.replace(t, status=Status.THROTTLED) if t.point.seq_len == 2048 else t

    fig = build(view_from(grid(lengths=(1024, 2048, 4096), change=change)))
    line = curve(fig, 1, 1, "forward")
    assert [c == "white" for c in line.marker.color] == [False, True, False]
    assert "Hollow points: clocks were throttled" in footer(fig)
    assert "(n = 2,048)" in footer(fig)
    assert "status throttled" in line.hovertext[1]


def test_a_method_that_always_failed_is_still_accounted_for() -> None:
    def change(t: Timing) -> Timing:
        is_lost = t.point.method == "math"
        return failed(t.point, t.pass_, Status.UNSUPPORTED, "not on this device") if is_lost else t

    fig = build(view_from(grid(lengths=(1024, 2048), methods=("flash2", "math", "hyper"), change=change)))
    assert set(crosses(fig, 1, 1)) == {1024, 2048}
    assert "No value: math forward, forward+backward, backward at n = 1,024, 2,048 (unsupported: not on" in footer(fig)
    assert has_curve(fig, 1, 1, "hyper, forward")


def test_several_methods_differ_in_colour_and_passes_in_dash_alike_in_every_panel() -> None:
    methods = ("flash2", "hyper", "uniform", "mine")
    fig = build(view_from(grid(lengths=(1024, 2048, 4096), methods=methods)))
    for col in (1, 2):
        lines = {(m, p): curve(fig, 1, col, f"{m}, {PASS_LABELS[p]}") for m in methods[1:] for p in PASSES}
        for m in methods[1:]:
            assert len({lines[m, p].line.color for p in PASSES}) == 1
            assert len({lines[m, p].line.dash for p in PASSES}) == len(PASSES)
            # The error stands in the colour of its method.
            assert curve(fig, 2, col, f"error of {m}").line.color == lines[m, PASSES[0]].line.color
        assert len({lines[m, PASSES[0]].line.color for m in methods[1:]}) == 3
    legend = [shown(t.name) for t in fig.data if t.showlegend]
    assert len(legend) == len(set(legend))
    assert {f"{m}, forward" for m in methods[1:]} <= set(legend)


@pytest.mark.parametrize("is_causal", [False, True])
def test_one_masking_makes_one_panel_with_its_own_star(is_causal: bool) -> None:
    fig = build(view_from(grid(lengths=(1024, 2048), masks=(is_causal,))))
    stars = [t for t in fig.data if shown(t.name) == PUBLISHED]
    assert [s.y[0] for s in stars] == [5.4 if is_causal else 54.0]
    assert len(list(fig.select_xaxes())) == 2
    assert has_curve(fig, 1, 1, "forward")


def test_only_the_forward_pass_makes_only_its_curve() -> None:
    fig = build(view_from(grid(lengths=(1024, 2048), change=lambda t: t if t.pass_ is Pass.FORWARD else None)))
    assert has_curve(fig, 1, 1, "forward")
    assert not has_curve(fig, 1, 1, "backward")
    assert not crosses(fig, 1, 1)


def test_a_single_point_is_shown_with_its_interval() -> None:
    view = view_from(grid(lengths=(4096,), masks=(False,)))
    fig = build(view)
    row = table(view, "hyper", False, "forward")[4096]
    assert values(curve(fig, 1, 1, "forward")) == {4096: row["speedup"]}
    (band,) = bands(fig, 1, 1, "forward")
    assert sorted(band.y) == [row["speedup_low"], row["speedup_high"]]
    assert band.line.width > 0


def test_without_any_error_the_speedups_still_stand_and_the_figure_says_what_is_missing() -> None:
    records = [r for r in grid(lengths=(1024, 2048)) if isinstance(r, Timing)]
    fig = build(view_from(records))
    assert has_curve(fig, 1, 1, "forward")
    assert "No error was measured for hyper." in footer(fig)


def test_an_error_measured_at_some_lengths_only_leaves_gaps() -> None:
    records: list[Record] = [r for r in grid(lengths=(1024, 2048, 4096), masks=(False,)) if isinstance(r, Timing)]
    for n in (1024, 4096):
        records += errors(point("hyper", n, hyper=HYPER))
    fig = build(view_from(records))
    line = curve(fig, 2, 1, "error of hyper")
    assert [y is None for y in line.y] == [False, True, False]
    assert "not measured" in crosses(fig, 2, 1)[2048]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (lambda: grid(lengths=(1024,), methods=("hyper",)), "no speedup can be computed.*this run holds hyper"),
        (lambda: grid(lengths=(1024,), methods=("flash2",)), "no speedup can be computed.*this run holds flash2"),
        (lambda: grid(lengths=(1024,), change=lambda t: failed(t.point, t.pass_)), "no point of this run has a time"),
        (list, "no timing yet"),
        (
            lambda: grid(lengths=(1024,)) + grid(lengths=(1024,), dtype="bfloat16"),
            "dtype varies .*choose one: dtype=bfloat16",
        ),
        (
            lambda: (
                [timing(point("mine", 1024, hyper={"rank": r}), Pass.FORWARD, 1.0) for r in (1, 2)]
                + [timing(point("flash2", 1024), Pass.FORWARD, 1.0)]
            ),
            r"rank varies \(1, 2\) and this figure does not show it",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(records: Callable[[], list[Record]], told: str) -> None:
    with pytest.raises(DoesNotFitError, match=told) as caught:
        build(view_from(records()))
    assert "\n" not in str(caught.value)


def test_rounds_are_combined_into_one_point() -> None:
    records: list[Record] = []
    for p in (point("flash2", 1024), point("hyper", 1024, hyper=HYPER)):
        cost = exact_ms if p.method == "flash2" else hyper_ms
        records += [timing(p, Pass.FORWARD, cost(p, Pass.FORWARD) * k, round=i) for i, k in enumerate((1.0, 1.2, 1.1))]
    fig = build(view_from(records))
    assert list(curve(fig, 1, 1, "forward").x) == [1024]


def noisy() -> list[Record]:
    """A run whose intervals are far wider than its medians lie apart."""
    samples = tuple(10.0**k for k in (-3, -3, -3, 0, 0, 0, 0, 0, 0, 3, 3, 3))
    return grid(lengths=(1024, 2048), change=lambda t: dataclasses.replace(t, samples_ms=samples))


@pytest.mark.parametrize("records", [grid, noisy])
def test_every_curve_and_band_lies_inside_its_axes(records: Callable[[], list[Record]]) -> None:
    fig = build(view_from(records()))
    for row in (1, 2):
        for col in (1, 2):
            low, high = (10**edge for edge in fig.get_subplot(row, col).yaxis.range)
            left, right = (10**edge for edge in fig.get_subplot(row, col).xaxis.range)
            for trace in panel(fig, row, col):
                assert all(low < y < high for y in trace.y if y is not None)
                assert all(left < x < right for x in trace.x)


def test_several_inputs_have_panels_of_their_own_with_the_numbers_of_each() -> None:
    records = [
        dataclasses.replace(r, samples_ms=tuple(k * s for s in r.samples_ms))
        if isinstance(r, Timing) and r.point.method == "hyper"
        else r
        for k, name in enumerate(("gaussian", "<b>other</b>"), start=1)
        for r in grid(lengths=(1024, 2048), input=name)
    ]
    view = view_from(records)
    fig = build(view)
    frame = view.timings
    for i, name in enumerate(("gaussian", "<b>other</b>")):
        assert shown(fig.get_subplot(2 * i + 1, 1).yaxis.title.text) == f"speedup over flash2 {name}"
        for j, is_causal in enumerate((False, True), start=1):
            rows = frame[(frame["method"] == "hyper") & (frame["input"] == name) & (frame["is_causal"] == is_causal)]
            forward = rows[rows["pass"] == "forward"]
            line = curve(fig, 2 * i + 1, j, "forward")
            assert values(line) == dict(zip(forward["seq_len"], forward["speedup"], strict=True))
            assert all(f"input {name}" in shown(text) for text in line.hovertext)
            errors_ = values(curve(fig, 2 * i + 2, j, "error of hyper"))
            assert errors_ == dict(zip(forward["seq_len"], forward[MAIN_ERROR], strict=True))
    assert not foreign_markup(fig)
    many = [r for i in range(7) for r in grid(lengths=(1024,), masks=(False,), input=f"input {i}")]
    with pytest.raises(DoesNotFitError, match=r"7 inputs .* choose some: 'input=input 0,input 1'"):
        build(view_from(many))


@pytest.mark.parametrize(
    ("methods", "expected"), [(("mine",), False), (("mine", "hyper"), True), (("hyper_paper",), True)]
)
def test_the_papers_points_and_the_limit_stand_only_beside_hyperattention(
    methods: tuple[str, ...], expected: bool
) -> None:
    fig = build(view_from(grid(lengths=(1024, 2048), methods=("flash2", *methods))))
    names = [shown(t.name) for t in fig.data if t.name]
    assert (PUBLISHED in names) == any(name.startswith("limit at equal rate") for name in names) == expected
    assert ("Stars: published" in footer(fig)) == ("Limit: exact work" in footer(fig)) == expected


def test_twelve_methods_differ_in_colour_or_mark_and_the_legend_has_space_for_them() -> None:
    methods = [f"method_{i}" for i in range(12)]
    forward: Any = lambda t: t if t.pass_ is Pass.FORWARD else None  # noqa: E731
    fig = build(view_from(grid((1024, 2048), ("flash2", *methods), masks=(False,), change=forward)))
    lines = [curve(fig, 1, 1, f"{m}, forward") for m in methods]
    assert len({(line.line.color, line.marker.symbol) for line in lines}) == 12
    entries = [t for t in fig.data if t.showlegend]
    axes = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    assert axes > len(entries) * 1.2 * layout.SIDE_LEGEND["font"]["size"]
