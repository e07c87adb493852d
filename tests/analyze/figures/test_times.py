"""The figure of times: slopes of power laws, a panel per masking and pass, every row in it."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.figures.times import build, fitted_slope
from hyperbench.analyze.format import PASS_LABELS
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.view import View
from hyperbench.store.schema import Pass, Record, Status, Timing
from tests.helpers.figure_reading import bands, crosses, footer, panel, shown, values
from tests.helpers.slow import slow
from tests.helpers.synthetic_runs import CPU_LENGTHS, HYPER, PASSES, failed, grid, point, timing, view_from

ROWS = {False: 1, True: 2}
COLUMNS = {"forward": 1, "forward_backward": 2, "backward": 3}


def line_of(fig: go.Figure, row: int, col: int, method: str) -> object:
    """The curve of a method in a panel, whatever its slope."""
    (found,) = [t for t in panel(fig, row, col) if t.legendgroup == method and t.hoverinfo == "text"]
    return found


@pytest.fixture(scope="module")
def full(full_view: View) -> go.Figure:
    """The figure of the CPU grid. Read only."""
    return build(full_view)


@settings(deadline=None, max_examples=30)
@given(
    st.floats(0.0, 3.0),
    st.floats(1e-6, 1e3),
    st.lists(st.integers(1, 10**6), min_size=2, max_size=12, unique=True),
)
def test_the_slope_of_a_power_law_is_its_exponent(power: float, factor: float, lengths: list[int]) -> None:
    slope = fitted_slope(lengths, [factor * n**power for n in lengths])
    assert slope == pytest.approx(power, abs=1e-6)


def test_the_slope_is_that_of_the_longer_lengths() -> None:
    # A fixed cost rules the short ones.
    lengths = [2**e for e in range(4, 20)]
    slope = fitted_slope(lengths, [max(100.0, 1e-6 * n**2) for n in lengths])
    assert slope is not None
    assert slope > 1.0
    assert fitted_slope(lengths, [max(1e-3, 1e-9 * n**2) if n < 4096 else n**2.0 for n in lengths]) == pytest.approx(2)


@pytest.mark.parametrize("lengths", [[], [1024], [1024, 1024]])
def test_less_than_two_lengths_have_no_slope(lengths: list[int]) -> None:
    assert fitted_slope(lengths, [1.0 + i for i in range(len(lengths))]) is None


@pytest.mark.parametrize(("method", "power"), [("flash2", 2.0), ("hyper", 1.0), ("cubic", 3.0)])
def test_the_fitted_slope_stands_in_the_legend(method: str, power: float) -> None:
    powers = {"flash2": 2.0, "hyper": 1.0, "cubic": 3.0}
    records: list[Record] = [
        timing(point(m, n, hyper=HYPER if m == "hyper" else {}), x, 1e-5 * n**p)
        for m, p in powers.items()
        for n in CPU_LENGTHS
        for x in PASSES
    ]
    fig = build(view_from(records))
    line = line_of(fig, 1, 1, method)
    assert shown(line.name) == f"{method}  ∝ n {power:.2f} "  # type: ignore[attr-defined]
    assert line.showlegend  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pass_", list(COLUMNS))
@pytest.mark.parametrize("method", ["flash2", "hyper"])
def test_curves_and_bands_are_the_times_of_the_table(
    full: go.Figure, full_view: View, is_causal: bool, pass_: str, method: str
) -> None:
    frame = full_view.timings
    rows = frame[(frame["method"] == method) & (frame["is_causal"] == is_causal) & (frame["pass"] == pass_)]
    line = line_of(full, ROWS[is_causal], COLUMNS[pass_], method)
    assert values(line) == dict(zip(rows["seq_len"], rows["median_ms"], strict=True))
    (band,) = bands(full, ROWS[is_causal], COLUMNS[pass_], line.name)  # type: ignore[attr-defined]
    assert list(band.y) == [*rows["ci_high_ms"], *reversed(list(rows["ci_low_ms"]))]


def test_panels_are_named_by_pass_and_masking(full: go.Figure) -> None:
    heads = [shown(a.text).strip() for a in full.layout.annotations if a.name != "footer"]
    assert heads == ["forward", "forward+backward", "backward"]
    titles = [shown(full.get_subplot(row, 1).yaxis.title.text) for row in (1, 2)]
    assert titles == ["time in ms without causal masking", "time in ms with causal masking"]
    for row in (1, 2):
        for col in (1, 2, 3):
            assert full.get_subplot(row, col).xaxis.type == full.get_subplot(row, col).yaxis.type == "log"


def test_the_footer_names_what_made_the_numbers(full: go.Figure) -> None:
    told = footer(full)
    for part in ("float32", "b=256 m=256", "baseline flash2 = torch", "protocol strict", "commit 0123456789", "(cpu"):
        assert part in told
    assert "Slopes: time grows as n to that power" in told


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.sets(st.integers(0, 35)))
def test_every_row_is_on_a_curve_or_a_cross(lost: set[int]) -> None:
    timed = [r for r in grid(lengths=(1024, 2048, 4096)) if isinstance(r, Timing)]
    kept = [failed(r.point, r.pass_, Status.TIMEOUT, "slow") if i in lost else r for i, r in enumerate(timed)]
    view = view_from(kept)
    if len(lost) == len(timed):
        with pytest.raises(DoesNotFitError):
            build(view)
        return
    fig = build(view)
    for r in kept:
        where = ROWS[r.point.is_causal], COLUMNS[str(r.pass_)]
        lines = [t for t in panel(fig, *where) if t.legendgroup == r.point.method and t.hoverinfo == "text"]
        height = values(lines[0])[r.point.seq_len] if lines else None
        marked = crosses(fig, *where).get(r.point.seq_len, "")
        told = f"{r.point.method} {PASS_LABELS[r.pass_]}: timeout: slow"
        assert (height is None) == (told in shown(marked)) == (r.status is Status.TIMEOUT)


def test_errors_stand_in_the_hover_of_approximate_methods_alone(full: go.Figure) -> None:
    assert all("out_rel_fro" in t for t in line_of(full, 1, 1, "hyper").hovertext)  # type: ignore[attr-defined]
    assert not any("error" in t for t in line_of(full, 1, 1, "flash2").hovertext)  # type: ignore[attr-defined]


def test_a_run_without_the_baseline_is_drawn_and_does_not_name_it_in_the_title() -> None:
    fig = build(view_from(grid(lengths=(1024, 2048), methods=("hyper",))))
    assert line_of(fig, 1, 1, "hyper") is not None
    assert "flash2" not in fig.layout.title.text
    assert "baseline flash2 (not in this run)" in footer(fig)


@pytest.mark.parametrize("count", [1, *slow(5), 9])
@pytest.mark.parametrize("lengths", [*slow((CPU_LENGTHS,)), (1024, 2048, 4096)])
def test_legends_inside_panels_lie_above_the_curves_at_their_left(count: int, lengths: tuple[int, ...]) -> None:
    methods = ("flash2", *(f"method {i}" for i in range(count)))
    fig = build(view_from(grid(lengths=lengths, methods=methods, masks=(False,))))
    subplot = fig.get_subplot(1, 1)
    low, high = subplot.yaxis.range
    plot_px = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    legend_px = (count + 1) * 1.5 * fig.layout.legend.font.size
    # What is left below the legend, as heights of the axis.
    free = high - (high - low) * legend_px / plot_px
    # A legend is not wider than the stretch of the first three of seven lengths, or the first of three.
    shown_there = len(lengths) * 3 // 7
    for col in COLUMNS.values():
        left = [y for t in panel(fig, 1, col) if t.hoverinfo == "text" for y in t.y[:shown_there]]
        assert max(map(math.log10, left)) < free


def test_one_length_is_no_curve() -> None:
    with pytest.raises(DoesNotFitError, match="seq_len has one value, 1024"):
        build(view_from(grid(lengths=(1024,))))


def test_a_dimension_that_is_not_shown_is_refused() -> None:
    records = [timing(point("flash2", n, heads=h), Pass.FORWARD, 1.0) for n in (1024, 2048) for h in (1, 2)]
    with pytest.raises(DoesNotFitError, match=r"heads varies \(1, 2\).*choose one: heads=1"):
        build(view_from(records))


def test_several_inputs_have_rows_of_panels_with_the_times_of_each() -> None:
    records = grid(lengths=(1024, 2048)) + grid(lengths=(1024, 2048), masks=(True,), input="other")
    view = view_from(records)
    fig = build(view)
    titles = [shown(fig.get_subplot(row, 1).yaxis.title.text) for row in (1, 2, 3)]
    assert titles == [
        "time in ms without causal masking gaussian", "time in ms with causal masking gaussian",
        "time in ms with causal masking other",
    ]  # fmt: skip
    frame = view.timings
    rows = frame[(frame["method"] == "hyper") & (frame["input"] == "other") & (frame["pass"] == "forward")]
    line = line_of(fig, 3, 1, "hyper")
    assert values(line) == dict(zip(rows["seq_len"], rows["median_ms"], strict=True))
    assert all("input other" in text for text in line.hovertext)  # type: ignore[attr-defined]


def test_twelve_methods_differ_in_colour_or_mark() -> None:
    methods = [f"method_{i}" for i in range(12)]
    forward: Any = lambda t: t if t.pass_ is Pass.FORWARD else None  # noqa: E731
    fig = build(view_from(grid((1024, 2048), ("flash2", *methods), masks=(False,), change=forward)))
    lines: list[Any] = [line_of(fig, 1, 1, m) for m in ("flash2", *methods)]
    assert len({(line.line.color, line.marker.symbol) for line in lines}) == 13
