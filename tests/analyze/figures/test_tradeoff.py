"""The figure of a trade-off: every setting at its speedup and error, its front, and what trivial methods rule out."""

from __future__ import annotations

import dataclasses
from typing import Any

import plotly.graph_objects as go
import pytest

from hyperbench.analyze.figures.tradeoff import build
from hyperbench.analyze.format import ratio, significant
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting.tradeoffs import BELOW, FRONT, REGION
from hyperbench.analyze.view import MAIN_ERROR, View
from hyperbench.store.schema import Pass, Record
from tests.helpers.figure_reading import curve, footer, foreign_markup, has_curve, panel, shown
from tests.helpers.synthetic_runs import HOSTILE, HYPER, errors, exact_ms, failed, point, timing, view_from

#: Speedup and error of each setting: methods in order, each with its block sizes.
SETTINGS = {
    "hyper": {64: (8.0, 0.4), 128: (4.0, 0.2), 256: (0.5, 0.1), 512: (3.0, 0.9)},
    "window": {64: (6.0, 0.3), 128: (3.5, 0.25)},
    "best": {64: (0.2, 0.01)},
}
KINDS = {"window": "trivial", "best": "oracle", "zero": "trivial"}
N = 1024


def setting(method: str, block: int, speedup: float, error: float, **changes: Any) -> list[Record]:
    """A setting of a method with this speedup in each pass, and this error as its median."""
    hyper = {} if method == "flash2" else {**HYPER, "block_size": block}
    p = point(method, changes.pop("n", N), **{"hyper": hyper, **changes})
    scale = error / (0.3 * (p.seq_len / 1024) ** 0.35)
    made = [timing(p, x, exact_ms(p, x) / speedup) for x in (Pass.FORWARD, Pass.FORWARD_BACKWARD)]
    return [*made, *(errors(p, scale) if method != "flash2" else [])]


def records(masks: tuple[bool, ...] = (False, True), **changes: Any) -> list[Record]:
    """All settings, exact attention, and answering zero, for each masking."""
    every = [("flash2", 0, 1.0, 0.0), ("zero", 0, 900.0, 1.0)]
    every += [(m, block, *of) for m, found in SETTINGS.items() for block, of in found.items()]
    return [r for mask in masks for s in every for r in setting(*s, is_causal=mask, **changes)]


def view_of(made: list[Record], kinds: dict[str, str] = KINDS) -> View:
    """The view of these records, in which methods are of these kinds."""
    return dataclasses.replace(view_from(made), kinds=kinds)


@pytest.fixture(scope="module")
def figure() -> go.Figure:
    """The figure of all settings. Read only."""
    return build(view_of(records()))


def named(method: str) -> str:
    return f"{method} ({KINDS[method]})" if method in KINDS else method


@pytest.mark.parametrize("col", [1, 2])
@pytest.mark.parametrize("method", SETTINGS)
def test_every_setting_stands_at_its_speedup_and_its_error_with_their_intervals(
    figure: go.Figure, method: str, col: int
) -> None:
    points = curve(figure, 1, col, named(method))
    wanted = list(SETTINGS[method].values())
    assert list(points.x) == pytest.approx([speedup for speedup, _ in wanted])
    assert list(points.y) == pytest.approx([error for _, error in wanted])
    frame = view_of(records((col == 2,))).timings
    rows = frame[(frame["method"] == method) & (frame["pass"] == "forward")]
    for bars, name in ((points.error_x, "speedup"), (points.error_y, MAIN_ERROR)):
        assert list(bars.array) == pytest.approx(list(rows[f"{name}_high"] - rows[name]))
        assert list(bars.arrayminus) == pytest.approx(list(rows[name] - rows[f"{name}_low"]))


def front_of(fig: go.Figure) -> list[tuple[float, float]]:
    (line,) = [t for t in panel(fig, 1, 1) if t.name == FRONT]
    return list(zip(line.x, line.y, strict=True))


def test_the_front_is_of_what_can_be_chosen(figure: go.Figure) -> None:
    # Slower than exact attention, worse than another, and oracles are not on it.
    assert front_of(figure) == [pytest.approx(pair) for pair in ((4.0, 0.2), (6.0, 0.3), (8.0, 0.4))]
    without_exact = [r for r in records() if r.point.method != "flash2"]
    over_best = dataclasses.replace(view_from(without_exact, baseline="best"), kinds=KINDS)
    assert front_of(build(over_best))[0] == pytest.approx((0.5 / 0.2, 0.1))


def region_of(fig: go.Figure) -> list[tuple[float, float]]:
    (shade,) = [t for t in panel(fig, 1, 1) if shown(t.name) == REGION]
    return list(zip(shade.x, shade.y, strict=True))


def test_what_a_trivial_method_beats_is_shaded(figure: go.Figure) -> None:
    corners = region_of(figure)
    left, right = (10**end for end in figure.layout.xaxis.range)
    top = 10 ** figure.layout.yaxis.range[1]
    # Stairs along the trivial settings, then the answer with the least error up to the end of the axis.
    wanted = [(left, top), (left, 0.25), (3.5, 0.25), (3.5, 0.3), (6.0, 0.3), (6.0, 0.82), (right, 0.82), (right, top)]
    assert [value for corner in corners for value in corner] == pytest.approx([v for corner in wanted for v in corner])
    alone = region_of(build(view_of(records((False,)), {})))
    assert [y for _, y in alone] == pytest.approx([top, 0.82, 0.82, top], rel=0.2)


def test_trivial_answers_are_lines_and_no_points(figure: go.Figure) -> None:
    for label, value in (("answering zero", 1.0), ("answering mean(v)", 0.82)):
        line = curve(figure, 1, 1, f"error of {label}")
        assert set(line.y) == {value}
    assert not any("zero" in shown(t.name) and "markers" in (t.mode or "") for t in figure.data)
    assert max(figure.layout.xaxis.range) < 2


def test_the_hover_tells_the_parameters_the_speedup_and_the_errors(figure: go.Figure) -> None:
    told = shown(curve(figure, 1, 2, "hyper").hovertext[1])
    for part in (
        "hyper, forward, n = 1,024", "b=128 m=256", f"speedup {ratio(4.0)}", f"{MAIN_ERROR} {significant(0.2)}"
    ):  # fmt: skip
        assert part in told
    assert "best (oracle), forward" in shown(curve(figure, 1, 1, named("best")).hovertext[0])
    assert "Aside stands what needs exact attention itself: best (oracle)" in footer(figure)


def test_an_exact_setting_stands_at_the_foot() -> None:
    fig = build(view_of([*records((False,)), *setting("hyper", 1024, 0.7, 0.0), *setting("rest", 8, 2.0, 0.0)]))
    for name in (f"hyper: {BELOW}", f"rest: {BELOW}"):
        mark = curve(fig, 1, 1, name)
        assert 10 ** fig.layout.yaxis.range[0] < mark.y[0] < 0.01
    assert not has_curve(fig, 1, 1, "rest")
    # It is faster than exact attention and without error: nothing slower is worth its error.
    assert front_of(fig)[0][0] == pytest.approx(2.0)


def test_several_inputs_are_rows_and_their_errors_have_axes_of_their_own() -> None:
    others = [r for r in records((False,), input="other") if r.point.method != "best"]
    fig = build(view_of([*records((False,)), *others]))
    titles = [shown(axis.title.text or "") for axis in fig.select_yaxes()]
    assert [t for t in titles if t] == ["gaussian relative error", "other relative error"]
    assert len(curve(fig, 2, 1, "hyper").x) == len(SETTINGS["hyper"])
    # Only one of them has the setting with the least error.
    assert fig.get_subplot(2, 1).yaxis.range[0] > fig.get_subplot(1, 1).yaxis.range[0]


def test_of_several_lengths_the_longest_that_all_inputs_have_is_drawn_and_the_rest_is_told() -> None:
    places = ({}, {"n": 2048}, {"n": 2048, "input": "other"}, {"n": 4096})
    fig = build(view_of([r for place in places for r in records((False,), **place)]))
    assert "forward, n = 2,048" in shown(fig.get_subplot(2, 1).xaxis.title.text)
    assert "Other parts of this run: seq_len=1024, seq_len=4096, pass=forward_backward." in footer(fig)


def test_what_could_not_be_measured_is_in_the_footer() -> None:
    lost = point("hyper", N, hyper={**HYPER, "block_size": 1024})
    fig = build(view_of([*records((False,)), failed(lost, Pass.FORWARD)]))
    assert "No value: hyper forward at n = 1,024 (oom: out of memory)" in footer(fig)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ([r for r in records() if r.point.method in ("flash2", "zero")], "no approximate method has both a speedup"),
        ([r for r in records() if r.point.method in ("flash2", "best")], "is no trade-off"),
        ([*records((False,)), *records((False,), dtype="float64")], r"dtype varies \(float32, float64\)"),
        ([*records((False,)), *records((False,), seed=1)], r"seed varies \(0, 1\)"),
        ([r for i in range(7) for r in records((False,), input=f"i{i}")], "7 inputs .*choose some: input=i0,i1"),
    ],
)
def test_what_it_cannot_show_is_refused_in_one_line(made: list[Record], told: str) -> None:
    with pytest.raises(DoesNotFitError, match=told) as caught:
        build(view_of(made))
    assert "\n" not in str(caught.value)


def test_every_text_of_a_run_is_shown_letter_by_letter() -> None:
    text = " ".join(HOSTILE)
    made = [
        *records((False,)),
        *setting(text, 8, 2.0, 0.5, hyper={**HYPER, "sampling": text}),
        *setting(text, 9, 2.5, 0.6),
    ]
    renamed = [dataclasses.replace(r, point=dataclasses.replace(r.point, input=text)) for r in made]
    fig = build(view_of(renamed, {text: "trivial"}))
    assert not foreign_markup(fig)
    assert any(text in shown(hover) for t in fig.data for hover in (t.hovertext or ()))
