"""The figure of masses: what blocks and sample catch, by input or over one parameter, beside random and best keys."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import pytest

from hyperbench.analyze.figures.recall import build
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.plotting.write import html_page
from hyperbench.store.schema import ErrorRow, Pass, Record
from tests.helpers.figure_reading import curve, footer, foreign_markup, has_curve, shown, values
from tests.helpers.synthetic_runs import HOSTILE, HYPER, grid, point, timing, view_from

MASSES = {"mass_blocks": 0.25, "mass_sample": 0.05, "mass_random_blocks": 0.1, "mass_best": 0.6}


def measured(
    method: str = "hyper", n: int = 2048, is_causal: bool = False, masses: dict[str, float] = MASSES, **changes: Any
) -> list[Record]:
    """A point with its masses, for two seeds."""
    p = point(method, n, is_causal=is_causal, **{"hyper": HYPER, **changes})
    leaf = {"mass_leaf": 0.3} if is_causal else {}
    rows = {**masses, **leaf, "out_rel_fro": 0.4}
    errors = [ErrorRow(p, seed, name, value) for name, value in rows.items() for seed in (0, 1)]
    return [timing(p, Pass.FORWARD, 1.0), *errors]


@pytest.fixture(scope="module")
def fig() -> go.Figure:
    """Three heads of two layers, both maskings. Read only."""
    return build(view_from([
        record
        for is_causal in (False, True)
        for layer, head in ((0, 0), (0, 1), (8, 0))
        for record in measured(
            is_causal=is_causal,
            masses={**MASSES, "mass_blocks": 0.1 * (1 + layer + head) / 2},
            input="captured",
            input_params={"layer": layer, "head": head},
        )
    ]))  # fmt: skip


def test_masses_add_up_over_the_heads(fig: go.Figure) -> None:
    blocks = [0.05, 0.1, 0.45]
    for col, leaf in ((1, 0.0), (2, 0.3)):
        assert list(curve(fig, 1, col, "blocks").y) == pytest.approx([leaf + b for b in blocks])
        assert list(curve(fig, 1, col, "blocks and sample").y) == pytest.approx([leaf + b + 0.05 for b in blocks])
        assert list(curve(fig, 1, col, "random blocks").y) == pytest.approx([leaf + 0.1] * 3)
        assert list(curve(fig, 1, col, "best keys, as many as blocks and sample").y) == pytest.approx([leaf + 0.6] * 3)
    assert not has_curve(fig, 1, 1, "exact leaf alone")
    assert list(curve(fig, 1, 2, "exact leaf alone").y) == pytest.approx([0.3] * 3)


def test_heads_are_named_by_what_tells_them_apart_and_not_joined_by_lines(fig: go.Figure) -> None:
    axis = fig.get_subplot(1, 1).xaxis
    assert axis.type == "category"
    assert [set(shown(text).split()) for text in axis.ticktext] == [
        {"layer=0", "head=0"}, {"layer=0", "head=1"}, {"layer=8", "head=0"},
    ]  # fmt: skip
    assert {t.line.width for t in fig.data} == {0.0}


def test_the_hover_and_the_page_tell_every_mass(fig: go.Figure) -> None:
    told = shown(curve(fig, 1, 2, "blocks").hovertext[2])
    for part in ("exact leaf 30.0 %", "blocks 45.0 %", "random blocks 10.0 %", "sample outside the blocks 5.0 %",
                 "best keys 60.0 %", "layer=8"):  # fmt: skip
        assert part in told
    assert "blocks 45.0 %" in html_page(fig)
    assert "begins with the mass of the query's exact leaf" in footer(fig)


@pytest.mark.parametrize("axis", ["seq_len", "block_size"])
def test_over_one_parameter_masses_are_curves(axis: str) -> None:
    places = (512, 1024, 2048)
    records = [
        record
        for i, place in enumerate(places)
        for record in measured(
            masses={**MASSES, "mass_blocks": 0.1 * i},
            **({"n": place} if axis == "seq_len" else {"hyper": {**HYPER, axis: place}}),
        )
    ]
    made = build(view_from(records))
    assert values(curve(made, 1, 1, "blocks")) == pytest.approx(dict(zip(places, (0.0, 0.1, 0.2), strict=True)))
    assert curve(made, 1, 1, "blocks").line.width > 0
    assert made.get_subplot(1, 1).xaxis.type == "log"


def test_each_method_with_a_plan_has_a_row_of_panels() -> None:
    made = build(view_from([*measured(), *measured("other"), *measured("flash2", masses={}, hyper={})]))
    heads = [shown(made.get_subplot(row, 1).yaxis.title.text).split()[0] for row in (1, 2)]
    assert heads == ["hyper", "other"]
    assert len({t.yaxis for t in made.data}) == 2


def test_without_masses_or_with_two_axes_it_does_not_fit() -> None:
    with pytest.raises(DoesNotFitError, match=r"holds no masses; .*sweep=recall.*error\.extra=\[recall\]"):
        build(view_from(grid(lengths=(1024, 2048))))
    both = [r for n in (512, 1024) for name in ("gaussian", "other") for r in measured(n=n, input=name)]
    with pytest.raises(DoesNotFitError, match=r"several dimensions vary .*: seq_len=512"):
        build(view_from(both))


def test_names_of_inputs_are_letters() -> None:
    assert foreign_markup(build(view_from([r for text in HOSTILE for r in measured(input=text)]))) == []
