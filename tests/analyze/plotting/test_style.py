"""The look of figures: axes that hold what they are given, colours that differ, a title and footer that escape."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.figures import builder
from hyperbench.analyze.format import passes_in
from hyperbench.analyze.plotting import layout, style
from tests.helpers.figure_reading import footer, foreign_markup, letters, shown
from tests.helpers.synthetic_runs import HOSTILE, grid, sweep, view_from

lengths = st.lists(st.integers(1, 2**21), min_size=1, max_size=12)
heights = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(lengths)
def test_an_axis_of_lengths_holds_all_of_them_with_few_distinct_ticks(values: list[int]) -> None:
    axis = style.seq_len_axis(values)
    low, high = axis["range"]
    assert all(low < math.log10(v) < high for v in values)
    assert all(tick & (tick - 1) == 0 for tick in axis["tickvals"])
    assert max(axis["tickvals"]) >= max(values)
    assert len(axis["tickvals"]) <= 9
    assert len(set(axis["ticktext"])) == len(axis["ticktext"]) == len(axis["tickvals"])


@settings(deadline=None, max_examples=200)
@given(heights | st.tuples(st.floats(1e-3, 1e3), st.floats(1, 4)).map(lambda pair: [pair[0], pair[0] * pair[1]]))
def test_a_logarithmic_axis_holds_all_values_and_has_a_tick_to_read_them_by(values: list[float]) -> None:
    axis = style.log_axis(values, suffix="×")
    low, high = axis["range"]
    assert all(low < math.log10(v) < high for v in values)
    inside = [t for t in axis["tickvals"] if low <= math.log10(t) <= high]
    assert 3 <= len(inside) <= 15
    assert [float(t.removesuffix("×").replace(",", "")) for t in axis["ticktext"]] == pytest.approx(axis["tickvals"])
    assert low < math.log10(style.foot(axis)) < low + 0.1 * (high - low)


@pytest.mark.parametrize("values", [[], [0.0], [-1.0, math.nan], [math.inf]])
def test_an_axis_without_a_positive_value_still_is_one(values: list[float]) -> None:
    low, high = style.log_axis(values)["range"]
    assert low < high


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=len(style.PALETTE), unique=True))
def test_every_method_has_a_colour_of_its_own_and_the_baseline_is_grey(methods: list[str]) -> None:
    colors = style.method_colors(methods, "the baseline")
    assert colors["the baseline"] == style.BASELINE_COLOR
    assert len(set(colors.values())) == len(methods) + 1


def test_a_colour_keeps_its_channels_and_gains_an_opacity() -> None:
    assert style.rgba("#0072B2", 0.25) == "rgba(0,114,178,0.25)"


def test_passes_stand_in_one_order() -> None:
    assert passes_in(["backward", "forward", "backward"]) == ["forward", "backward"]


def test_names_are_listed_while_there_is_space() -> None:
    assert style.listed(["hyper", "uniform"], "methods") == "hyper, uniform"
    assert style.listed(["a long name of a method"] * 4, "methods") == "4 methods"


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=120) | st.sampled_from(HOSTILE))
def test_a_name_in_a_legend_is_narrow_low_and_begins_as_it_is(text: str) -> None:
    lines = style.legend_name(text).split("<br>")
    assert len(lines) <= 3
    assert all(len(shown(line)) <= 30 for line in lines)
    told = letters(shown(style.legend_name(text)))
    assert letters(text).startswith(told.removesuffix("…"))


@pytest.mark.parametrize("name", ["fig4", "times", "sweep"])
def test_a_very_long_name_of_a_method_leaves_space_for_the_curves(name: str) -> None:
    method = "a_method_of_a_very_long_name_" * 10
    records = sweep("block_size", (64, 128), methods=(method,)) if name == "sweep" else grid(methods=("flash2", method))
    fig = builder(name)(view_from(records))
    assert all(len(shown(line)) < 45 for t in fig.data if t.showlegend for line in t.name.split("<br>"))
    assert any(method in shown(text) for t in fig.data for text in t.hovertext or ())
    assert letters(method) in letters(footer(fig))


def finished(**changes: object) -> go.Figure:
    """An empty figure with a title and a footer."""
    texts = {"title": "t", "subtitle": ["s"], "provenance": ["p"], "notes": ["n"], "plot_height": 300, **changes}
    return layout.finish(go.Figure(), **texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", HOSTILE)
def test_title_subtitle_and_footer_show_any_text_letter_by_letter(text: str) -> None:
    fig = finished(title=text, subtitle=[text], provenance=[text], notes=[text])
    assert not foreign_markup(fig)
    assert text in shown(fig.layout.title.text)
    assert text in shown(fig.layout.title.subtitle.text)
    assert footer(fig).count(text) == 2


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text("abc ", min_size=1, max_size=400).filter(str.strip), min_size=1, max_size=8))
def test_a_footer_loses_no_word_and_the_figure_grows_with_it(notes: list[str]) -> None:
    fig = finished(notes=notes, provenance=notes)
    assert footer(fig).replace("·", " ").split() == [word for note in notes * 2 for word in note.split()]
    lines = next(a.text for a in fig.layout.annotations if a.name == "footer").split("<br>")
    # Every line of the footer has its place below the axes.
    assert fig.layout.margin.b >= len(lines) * fig.layout.annotations[-1].font.size
    assert fig.layout.height - fig.layout.margin.t - fig.layout.margin.b == 300


def test_a_long_legend_beside_the_axes_makes_them_higher() -> None:
    fig = go.Figure([go.Scatter(y=[1], name=str(i), showlegend=True) for i in range(40)])
    layout.finish(fig, title="", subtitle=[], notes=[], provenance=["p"], plot_height=300)
    axes = fig.layout.height - fig.layout.margin.t - fig.layout.margin.b
    assert axes > 40 * 1.2 * layout.SIDE_LEGEND["font"]["size"]


def test_a_title_too_long_for_its_line_is_cut_at_a_word() -> None:
    title = shown(finished(title="word " * 60).layout.title.text)
    assert len(title) < 100
    assert title.strip().endswith("word …")
