"""Time and error of many methods at one length: a row of its own for each, with its numbers, or with the reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import plotly.graph_objects as go
import pytest

from hyperbench.analyze.figures.methods import build
from hyperbench.analyze.format import PASS_LABELS
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting import layout
from hyperbench.analyze.view import MAIN_ERROR, View
from hyperbench.store.schema import ErrorRow, Record, Status, Timing
from tests.helpers.figure_reading import crosses, curve, footer, foreign_markup, panel, shown
from tests.helpers.synthetic_runs import HOSTILE, HYPER, PASSES, errors, failed, grid, point, timing, view_from

METHODS = ("flash2", "hyper", "uniform", "mine")


@pytest.fixture(scope="module")
def view() -> View:
    """Four methods at one length, of several kinds. Read only."""
    found = view_from(grid(lengths=(4096,), methods=METHODS))
    return dataclasses.replace(found, kinds={"uniform": "trivial", "mine": "oracle"})


@pytest.fixture(scope="module")
def fig(view: View) -> go.Figure:
    """The figure of these. Read only."""
    return build(view)


def by_label(trace: Any) -> dict[str, float]:
    """Value over row of a trace."""
    return dict(zip(trace.y, trace.x, strict=True))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pass_", [str(p) for p in PASSES])
def test_times_and_their_intervals_are_those_of_the_table(
    fig: go.Figure, view: View, is_causal: bool, pass_: str
) -> None:
    frame = view.timings[(view.timings["is_causal"] == is_causal) & (view.timings["pass"] == pass_)]
    marks = curve(fig, 1 + is_causal, 1, PASS_LABELS[pass_])
    assert by_label(marks) == dict(zip(frame["method"], frame["median_ms"], strict=True))
    for i, name in enumerate(marks.y):
        (row,) = frame[frame["method"] == name].to_dict("records")
        ends = (marks.x[i] - marks.error_x.arrayminus[i], marks.x[i] + marks.error_x.array[i])
        assert ends == pytest.approx((row["ci_low_ms"], row["ci_high_ms"]))
    (line,) = [t for t in panel(fig, 1 + is_causal, 1) if t.legendgroup == f"base/{pass_}"]
    (base,) = frame[frame["method"] == "flash2"]["median_ms"]
    assert list(line.x) == [base, base]


@pytest.mark.parametrize("is_causal", [False, True])
def test_errors_stand_beside_the_times_and_tell_the_kind_of_a_method(
    fig: go.Figure, view: View, is_causal: bool
) -> None:
    frame = view.timings[(view.timings["is_causal"] == is_causal) & (view.timings["pass"] == "forward")]
    told = dict(zip(frame["method"], frame[MAIN_ERROR], strict=True))
    for method, name in (("hyper", "error"), ("uniform", "error of a trivial method"), ("mine", "error of an oracle")):
        assert by_label(curve(fig, 1 + is_causal, 2, name)) == {method: told[method]}
    for label, value in (("answering zero", 1.0), ("answering mean(v)", 0.82)):
        (line,) = [t for t in panel(fig, 1 + is_causal, 2) if shown(t.name or "") == f"error of {label}"]
        assert list(line.x) == [value, value]


def test_methods_stand_in_the_order_of_their_times(fig: go.Figure, view: View) -> None:
    for i, is_causal in enumerate((False, True), start=1):
        frame = view.timings[(view.timings["is_causal"] == is_causal) & (view.timings["pass"] == "forward")]
        order = list(frame.sort_values("median_ms")["method"])
        # An axis is read from below.
        assert list(fig.get_subplot(i, 1).yaxis.categoryarray) == order[::-1]


def test_settings_and_inputs_have_rows_and_panels_of_their_own() -> None:
    records: list[Record] = []
    for name in ("a", "b"):
        for method in ("flash2", "uniform"):
            records.append(timing(point(method, 1024, input=name), PASSES[0], 1.0))
        for b in (64, 128):
            p = point("hyper", 1024, input=name, hyper={**HYPER, "block_size": b})
            records += [timing(p, PASSES[0], b / 10), *errors(p)]
    fig = build(view_from(records))
    for row, name in ((1, "a"), (2, "b")):
        labels = set(curve(fig, row, 1, "forward").y)
        assert labels == {"flash2", "uniform", "hyper block_size=64", "hyper block_size=128"}
        assert shown(fig.get_subplot(row, 1).yaxis.title.text) == f"without causal masking {name}"


def test_long_labels_take_no_width_from_the_axes_and_the_footer(fig: go.Figure) -> None:
    long = build(view_from(grid((1024,), ("flash2", "hyper", "a method with a long name"), masks=(False,))))
    widths = [f.layout.width - f.layout.margin.l - f.layout.margin.r for f in (fig, long)]
    assert widths[0] == widths[1] >= layout.WIDTH - 320


def test_what_has_no_value_has_a_cross_with_the_reason() -> None:
    def change(t: Timing) -> Timing:
        return failed(t.point, t.pass_, Status.UNSUPPORTED, "not here") if t.point.method == "mine" else t

    lost = ErrorRow(point=point("hyper", 1024, hyper=HYPER), seed=9, metric=MAIN_ERROR, value=None, status=Status.OOM)
    records = list(grid(lengths=(1024,), methods=METHODS, masks=(False,), change=change))
    records = [r for r in records if not (isinstance(r, ErrorRow) and r.point.method == "hyper")]
    fig = build(view_from([*records, lost]))
    (text,) = [shown(t.hovertext[0]) for t in panel(fig, 1, 1) if t.marker.symbol == "x-thin"]
    assert text.startswith(" mine ")
    assert all(f"{PASS_LABELS[p]}: unsupported: not here" in text for p in PASSES)
    (cross,) = [t for t in panel(fig, 1, 2) if t.marker.symbol == "x-thin"]
    assert list(cross.y) == ["hyper"]
    assert "error: oom" in cross.hovertext[0]
    assert "No value: mine forward, forward+backward, backward at n = 1,024 (unsupported: not here)." in footer(fig)
    assert crosses(fig, 1, 1)


def test_an_exact_method_is_marked_at_the_edge_of_the_errors() -> None:
    records = grid(lengths=(1024,), methods=METHODS, masks=(False,))
    records.append(ErrorRow(point=point("flash2", 1024), seed=0, metric=MAIN_ERROR, value=3e-7))
    assert list(curve(build(view_from(records)), 1, 2, "exact, or nearly").y) == ["flash2"]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (lambda: grid(lengths=(1024, 2048), methods=METHODS), "seq_len varies .*choose one: seq_len=1024"),
        (lambda: grid(lengths=(1024,)), "2 methods are too few for this figure, which takes 3 or more"),
        (lambda: [r for i in range(5) for r in grid((1024,), METHODS, input=str(i))], "5 inputs .* choose some"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(records: Any, told: str) -> None:
    with pytest.raises(DoesNotFitError, match=told) as caught:
        build(view_from(records()))
    assert "\n" not in str(caught.value)


def test_names_of_a_run_are_letters_and_long_ones_keep_their_rows() -> None:
    names = [
        *HOSTILE,
        "a very long name of a method, such as " * 3 + "one",
        "a very long name of a method, such as " * 3 + "two",
    ]
    fig = build(view_from(grid(lengths=(1024,), methods=("flash2", *names), masks=(False,))))
    assert not foreign_markup(fig)
    assert len(set(curve(fig, 1, 1, "forward").y)) == len(names) + 1
    assert all("<" not in label for label in curve(fig, 1, 1, "forward").y)
