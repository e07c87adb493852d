"""The look of figures: axes that hold what they are given, colours that differ, a title and footer that escape."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

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


def labels_apart(axis: dict[str, Any]) -> bool:
    """True if no label of an axis touches its neighbour in the narrowest panel (3 in a row, 1,080 px)."""
    low, high = axis["range"]
    places = [math.log10(t) if axis["type"] == "log" else t for t in axis["tickvals"]]
    px = [(place - low) / (high - low) * 300 for place in places]
    widths = [7.8 * len(text) for text in axis["ticktext"]]
    ends = [(x - w / 2, x + w / 2) for x, w in zip(px, widths, strict=True)]
    return all(one[1] < other[0] for one, other in itertools.pairwise(ends))


@settings(deadline=None, max_examples=100)
@given(lengths | st.lists(st.integers(1000, 1100), min_size=1, max_size=12))
def test_an_axis_of_lengths_holds_all_of_them_with_few_distinct_ticks(values: list[int]) -> None:
    axis = style.seq_len_axis(values)
    low, high = axis["range"]
    assert all(low < math.log10(v) < high for v in values)
    assert 1 <= len(axis["tickvals"]) <= 12
    assert labels_apart(axis)
    # Powers of two, or the lengths themselves.
    assert all(tick & (tick - 1) == 0 for tick in axis["tickvals"]) or set(axis["tickvals"]) <= set(values)
    assert any(low <= math.log10(tick) <= high for tick in axis["tickvals"])
    assert len(set(axis["ticktext"])) == len(axis["ticktext"]) == len(axis["tickvals"])


def test_near_lengths_are_ticked_themselves() -> None:
    assert style.seq_len_axis([1000, 1024, 1040])["ticktext"] == ["1,000", "1,024", "1,040"]
    assert style.seq_len_axis([1000, 1001, 1040])["ticktext"] == ["1,001", "1,040"]
    assert style.seq_len_axis([1024])["ticktext"] == ["1,024"]
    assert style.seq_len_axis([1024, 2048])["ticktext"] == ["1k", "2k"]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 10**9) | st.integers(999, 1100) | st.floats(-5, 5), min_size=1, max_size=9, unique=True))
def test_an_axis_of_values_ticks_those_whose_labels_do_not_touch(values: list[float]) -> None:
    axis = style.value_axis(sorted(map(float, values)))
    assert labels_apart(axis)
    assert set(axis["tickvals"]) <= set(values)
    assert max(values) in axis["tickvals"]
    low, high = axis["range"]
    assert all(low < (math.log10(v) if axis["type"] == "log" else v) < high for v in values)


@settings(deadline=None, max_examples=200)
@given(heights | st.tuples(st.floats(1e-3, 1e3), st.floats(1, 4)).map(lambda pair: [pair[0], pair[0] * pair[1]]))
def test_a_logarithmic_axis_holds_all_values_and_has_a_tick_to_read_them_by(values: list[float]) -> None:
    axis = style.log_axis(values, suffix="×")
    low, high = axis["range"]
    assert all(low < math.log10(v) < high for v in values)
    inside = [t for t in axis["tickvals"] if low <= math.log10(t) <= high]
    assert 3 <= len(inside) <= 15
    read = [t.removesuffix("×").replace(",", "").removesuffix("</sup>") for t in axis["ticktext"]]
    told = [float(re.sub(r"(?:(.*)·)?10<sup>", lambda m: f"{m[1] or 1}e", t)) for t in read]
    assert told == pytest.approx(axis["tickvals"])
    assert all(len(re.sub("</?sup>", "", t)) <= 9 for t in axis["ticktext"])
    assert low < math.log10(style.foot(axis)) < low + 0.1 * (high - low)


@pytest.mark.parametrize("values", [[1e-310, 1e300], [1.7e308], [5e-324], [1.0, 1e300], [1.0, 1.01]])
def test_an_axis_of_any_numbers_has_few_ticks(values: list[float]) -> None:
    axis = style.log_axis(values)
    low, high = axis["range"]
    inside = [t for t in axis["tickvals"] if low <= math.log10(t) <= high]
    assert 3 <= len(inside) <= 15
    assert all(math.isfinite(t) for t in axis["tickvals"])
    assert 0 < style.height_at(axis, 0) < style.height_at(axis, 1) < math.inf


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


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 100))
def test_no_two_methods_look_alike_and_the_first_twelve_have_colours_of_their_own(count: int) -> None:
    methods = [f"method {i}" for i in range(count)]
    looks = style.method_looks([*methods[:3], "base", *methods[3:]], "base")
    assert set(looks) == {*methods, "base"}
    assert len({(look.color, look.symbol) for look in looks.values()}) == count + 1
    assert len({looks[m].color for m in methods[:12]}) == min(count, 12)
    assert looks["base"].color == style.BASELINE_COLOR
    assert {m: look.color for m, look in looks.items()} == style.method_colors(methods, "base")
    # The look of a method does not depend on those after it, nor on the place of the baseline.
    assert style.method_looks(["base", *methods, "another"], "base")[methods[-1]] == looks[methods[-1]]
    assert not {look.symbol for look in looks.values()} & {"star", "x-thin"}
