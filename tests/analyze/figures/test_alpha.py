"""The figure of alpha: a curve an input, the exponent that was put in, what is missing told."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go
import pytest

from hyperbench.analyze.figures.alpha import build
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting.write import html_page
from hyperbench.store.schema import ErrorRow, Pass, Record
from tests.helpers.figure_reading import curve, footer, foreign_markup, panel, shown, values
from tests.helpers.synthetic_runs import HOSTILE, HYPER, grid, point, timing, view_from

LENGTHS = (512, 1024, 2048, 4096)


def measured(
    exponent: float = 0.5, methods: tuple[str, ...] = ("hyper",), masks: tuple[bool, ...] = (False,), **changes: Any
) -> list[Record]:
    """Points whose alpha is 2 n^exponent; kappa grows beyond every number."""
    records: list[Record] = []
    for method in methods:
        for is_causal in masks:
            for i, n in enumerate(LENGTHS):
                p = point(method, n, is_causal=is_causal, hyper=HYPER if method == "hyper" else {}, **changes)
                found = {"alpha": 2.0 * n**exponent, "kappa": (3.0, 4.5e20, math.inf, 7.0)[i], "stable_rank": 1.5 + i,
                         "out_rel_fro": 0.3}  # fmt: skip
                records.append(timing(p, Pass.FORWARD, 1.0))
                records += [ErrorRow(p, seed, name, value) for name, value in found.items() for seed in (0, 1)]
    return records


@pytest.fixture(scope="module")
def fig() -> go.Figure:
    """Two inputs, two maskings, two methods. Read only."""
    both = {"methods": ("flash2", "hyper"), "masks": (False, True)}
    return build(view_from([*measured(0.5, **both), *measured(1.25, input="other", **both)]))  # type: ignore[arg-type]


def test_curves_are_the_properties_that_were_measured_and_exponents_those_put_in(fig: go.Figure) -> None:
    for col in (1, 2):
        curves = {shown(t.name).split()[0]: t for t in panel(fig, 1, col) if t.hoverinfo == "text"}
        assert set(curves) == {"gaussian", "other"}
        assert values(curves["gaussian"]) == pytest.approx({n: 2.0 * n**0.5 for n in LENGTHS})
        assert shown(curves["other"].name) == "other alpha ∝ n 1.25 , n 1.25  causal"
        assert curves["gaussian"].line.color != curves["other"].line.color
    ranks = [t for t in panel(fig, 3, 1) if t.hoverinfo == "text"]
    assert [values(t) for t in ranks] == [dict(zip(LENGTHS, (1.5, 2.5, 3.5, 4.5), strict=True))] * 2


def test_fitted_laws_are_drawn_for_alpha_alone(fig: go.Figure) -> None:
    fits = [t for t in fig.data if t.name == "fit"]
    assert len(fits) == 4
    assert all(t in panel(fig, 1, 1) or t in panel(fig, 1, 2) for t in fits)
    assert list(fits[0].y) == pytest.approx([2.0 * n**0.5 for n in LENGTHS])


def test_numbers_beyond_every_axis_are_in_the_hover(fig: go.Figure) -> None:
    (trace, _) = [t for t in panel(fig, 2, 1) if t.hoverinfo == "text"]
    assert [v is None or math.isnan(v) for v in trace.y] == [False, False, True, False]
    assert "kappa 4.5e+20" in trace.hovertext[1]
    assert "kappa inf" in trace.hovertext[2]
    assert "alpha 64.0" in trace.hovertext[1]
    assert "alpha over n: 0.0625" in trace.hovertext[1]


def test_the_footer_tells_exponents_definitions_and_the_causal_node(fig: go.Figure) -> None:
    told = footer(fig)
    for part in ("gaussian non-causal 0.50 (0.50 to 0.50)", "other causal 1.25", "largest node of Algorithm 4",
                 "outside the blocks of Algorithm 1"):  # fmt: skip
        assert part in told
    assert "largest node" not in footer(build(view_from(measured())))


def test_the_page_holds_the_numbers(fig: go.Figure) -> None:
    page = html_page(fig)
    assert "alpha over n: 0.0625" in page
    assert "4.5e+20" in page


def test_one_length_and_no_alpha_do_not_fit() -> None:
    with pytest.raises(DoesNotFitError, match="seq_len has one value, 512"):
        build(view_from([r for r in measured() if r.point.seq_len == 512]))
    with pytest.raises(DoesNotFitError, match=r"holds no alpha; .*sweep=alpha.*error\.extra=\[theory\]"):
        build(view_from(grid(lengths=(1024, 2048))))


def test_what_is_not_shown_must_not_vary() -> None:
    with pytest.raises(DoesNotFitError, match="heads varies"):
        build(view_from([*measured(), *measured(heads=4)]))


def test_names_of_inputs_are_letters() -> None:
    made = build(view_from([r for text in HOSTILE for r in measured(input=text) if r.point.seq_len < 2048]))
    assert foreign_markup(made) == []
    assert curve(build(view_from(measured())), 1, 1, "gaussian alpha ∝ n 0.50 ").legendgroup == "gaussian"
