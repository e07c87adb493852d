"""The figure of crossings: those of the joined speedups, with their intervals, and said where they lie outside."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import plotly.graph_objects as go
import pytest

from hyperbench.analyze.figures.crossover import build
from hyperbench.analyze.format import PASS_LABELS
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.view import View
from hyperbench.stats.crossing import crossing
from hyperbench.store.schema import Pass, Record, Status
from tests.helpers.figure_reading import curve, footer, foreign_markup, shown
from tests.helpers.synthetic_runs import (
    HOSTILE,
    HYPER,
    PASSES,
    exact_ms,
    failed,
    grid,
    point,
    sweep,
    timing,
    view_from,
)

LENGTHS = (1024, 2048, 4096)


def rows_of(view: View, method: str, is_causal: bool, pass_: str) -> list[dict[str, Any]]:
    """The joined rows of a curve of speedups, by length."""
    frame = view.timings
    chosen = frame[(frame["method"] == method) & (frame["is_causal"] == is_causal) & (frame["pass"] == pass_)]
    return [dict(row) for row in chosen.sort_values("seq_len").to_dict("records")]


def made(**speedups: tuple[float, ...]) -> list[Record]:
    """Methods with these speedups at LENGTHS, in the forward pass."""
    points = [(point("flash2", n), 1.0) for n in LENGTHS]
    points += [(point(m, n, hyper=HYPER), s) for m, of in speedups.items() for n, s in zip(LENGTHS, of, strict=True)]
    return [timing(p, Pass.FORWARD, exact_ms(p, Pass.FORWARD) / s) for p, s in points]


@pytest.fixture(scope="module")
def figure(full_view: View) -> go.Figure:
    """The figure of the CPU grid. Read only."""
    return build(full_view)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pass_", [str(p) for p in PASSES])
def test_a_crossing_is_that_of_the_joined_speedups(
    figure: go.Figure, full_view: View, is_causal: bool, pass_: str
) -> None:
    rows = rows_of(full_view, "hyper", is_causal, pass_)
    found = crossing(
        [r["seq_len"] for r in rows], *([r[c] for r in rows] for c in ("speedup", "speedup_low", "speedup_high"))
    )
    mark = curve(figure, 1, 2 if is_causal else 1, PASS_LABELS[pass_])
    # This grid is made so that each of them crosses within it.
    assert 1024 < found.low < found.at < found.high < 65_536
    assert list(mark.x) == [pytest.approx(found.at)]
    assert mark.x[0] - mark.error_x.arrayminus[0] == pytest.approx(found.low)
    assert mark.x[0] + mark.error_x.array[0] == pytest.approx(found.high)
    told = shown(mark.hovertext[0])
    assert f"faster than flash2 from n = {mark.text[0]}" in told
    assert all(f"n = {r['seq_len']:,}: " in told for r in rows)


def test_each_method_has_a_row_of_its_own_with_its_passes_beside_each_other() -> None:
    fig = build(view_from(grid(methods=("flash2", "hyper", "other"))))
    assert [shown(text) for text in fig.layout.yaxis.ticktext] == ["hyper", "other"]
    heights = {name: list(curve(fig, 1, 1, PASS_LABELS[name]).y) for name in map(str, PASSES)}
    assert all([round(y) for y in ys] == [0, 1] for ys in heights.values())
    assert len({y for ys in heights.values() for y in ys}) == 6


def test_outside_of_the_lengths_is_said_and_marked() -> None:
    fig = build(
        view_from(made(quick=(2.0, 3.0, 4.0), slow=(0.1, 0.2, 0.3), late=(0.5, 1.5, 0.9), usual=(0.5, 2.0, 3.0)))
    )
    mark = curve(fig, 1, 1, "forward")
    assert list(mark.text) == ["below 1,024", "above 4,096", "above 4,096", "1,448"]
    assert list(mark.marker.symbol) == ["triangle-left", "triangle-right", "triangle-right", "circle"]
    assert list(mark.x) == pytest.approx([1024, 4096, 4096, math.sqrt(1024 * 2048)])
    assert list(mark.error_x.array)[:2] == list(mark.error_x.arrayminus)[:2] == [0, 0]


def test_a_method_without_any_speedup_is_in_the_footer() -> None:
    lost = [failed(point("broken", n, hyper=HYPER), Pass.FORWARD, Status.OOM, "no memory") for n in LENGTHS]
    fig = build(view_from([*made(usual=(0.5, 2.0, 3.0)), *lost]))
    assert [shown(text) for text in fig.layout.yaxis.ticktext] == ["usual"]
    assert "No value: broken forward at n = 1,024, 2,048, 4,096 (oom: no memory)" in footer(fig)


def test_kinds_of_methods_are_told() -> None:
    view = dataclasses.replace(view_from(made(window=(0.5, 2.0, 3.0))), kinds={"window": "trivial"})
    assert list(build(view).layout.yaxis.ticktext) == ["window (trivial)"]


def test_several_inputs_are_rows() -> None:
    other = [dataclasses.replace(r, point=dataclasses.replace(r.point, input="other")) for r in made(a=(0.5, 2, 3))]
    fig = build(view_from([*made(a=(0.5, 0.5, 2.0)), *other]))
    assert curve(fig, 1, 1, "forward").x[0] > curve(fig, 2, 1, "forward").x[0]
    assert [axis.title.text for axis in fig.select_yaxes()] == ["gaussian", "other"]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (lambda: grid(lengths=(1024,)), "there is no crossing to look for.*at seq_len 1024 alone"),
        (lambda: [r for r in grid(lengths=LENGTHS) if r.point.method == "hyper"], "at no length"),
        (lambda: sweep("block_size", (64, 128)), r"block_size varies \(64, 128\)"),
    ],
)
def test_what_has_no_crossing_is_refused_in_one_line(records: Any, told: str) -> None:
    with pytest.raises(DoesNotFitError, match=told) as caught:
        build(view_from(records()))
    assert "\n" not in str(caught.value)


def test_every_text_of_a_run_is_shown_letter_by_letter() -> None:
    text = " ".join(HOSTILE)
    records = [
        dataclasses.replace(r, point=dataclasses.replace(r.point, input=text)) for r in made(**{text: (0.5, 2, 3)})
    ]
    fig = build(view_from(records))
    assert not foreign_markup(fig)
    assert text in shown(curve(fig, 1, 1, "forward").hovertext[0])
