"""The figure of stages: areas that are shares of a sum, the whole pass beside them, and what is not there told."""

from __future__ import annotations

import dataclasses
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.figures.stages import MOST_PERCENT, WHOLE_PASS, build
from hyperbench.analyze.joins import DoesNotFitError
from hyperbench.analyze.view import View
from hyperbench.store.schema import ALL_STAGES, Pass, Record, Status, Timing
from tests.helpers.figure_reading import crosses, curve, footer, foreign_markup, panel, shown, values
from tests.helpers.made_records import a_stage
from tests.helpers.synthetic_runs import HOSTILE, HYPER, failed, grid, hyper_ms, point, stages, timing, view_from

LENGTHS = (1024, 2048, 4096, 8192)
COLUMNS = {False: 1, True: 2}


@pytest.fixture(scope="module")
def view() -> View:
    """Two methods, one of them with stages, at four lengths. Read only."""
    return view_from(grid(lengths=LENGTHS, staged=True))


@pytest.fixture(scope="module")
def fig(view: View) -> go.Figure:
    """The figure of the view. Read only."""
    return build(view)


def areas(figure: go.Figure, row: int, col: int) -> list[Any]:
    """The stacked traces of a panel, from the lowest to the highest."""
    return [t for t in panel(figure, row, col) if t.stackgroup]


def of_lengths(lengths: tuple[int, ...], *masks: bool, **given: Any) -> list[Record]:
    """Forward passes of hyper with their stages."""
    points = [point("hyper", n, is_causal=m, hyper=HYPER) for m in masks or (False,) for n in lengths]
    return [r for p in points for r in (timing(p, Pass.FORWARD, 5.0), *stages(p, **given))]


@pytest.mark.parametrize("is_causal", [False, True])
def test_areas_are_the_shares_of_the_table(fig: go.Figure, view: View, is_causal: bool) -> None:
    table = view.stages[view.stages["is_causal"] == is_causal]
    found = areas(fig, 1, COLUMNS[is_causal])
    names = ["hash", "sort", "sample", "attend", *(["leaves", "merge"] if is_causal else [])]
    assert [shown(t.name) for t in found] == names
    for trace in found:
        rows = table[table["stage"] == trace.name]
        assert values(trace) == pytest.approx(dict(zip(rows["seq_len"], 100 * rows["share"], strict=True)))
    assert len({t.stackgroup for t in found}) == 1


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(st.dictionaries(st.sampled_from(["hash", "attend", "merge", "own"]), st.floats(1e-4, 1e2), min_size=1))
def test_a_stack_is_a_hundred_percent_high(parts: dict[str, float]) -> None:
    made = build(view_from(of_lengths((1024, 2048), parts=parts)))
    for n in (1024, 2048):
        assert sum(values(t)[n] or 0.0 for t in areas(made, 1, 1)) == pytest.approx(100.0)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_line_is_the_whole_pass_in_percent_of_the_sum(fig: go.Figure, view: View, is_causal: bool) -> None:
    rows = view.stages[view.stages["is_causal"] == is_causal].drop_duplicates("point_id")
    line = curve(fig, 1, COLUMNS[is_causal], WHOLE_PASS)
    percent = 100 * rows["forward_ms"] / rows["sum_ms"]
    assert values(line) == pytest.approx(dict(zip(rows["seq_len"], percent, strict=True)))
    # The made-up stages lack five percent of the pass.
    assert all(101.0 < y < 107.0 for y in line.y)
    low, high = fig.get_subplot(1, 1).yaxis.range
    assert low == 0.0
    assert high > max(line.y)


def test_a_line_far_above_the_areas_is_cut_and_the_cut_is_told() -> None:
    points = {n: point("hyper", n, hyper=HYPER) for n in LENGTHS}
    times = dict(zip(LENGTHS, (1.0, 1.0, 20.0, 1.0), strict=True))
    records: list[Record] = [timing(p, Pass.FORWARD, times[n] * hyper_ms(p, Pass.FORWARD)) for n, p in points.items()]
    made = build(view_from([*records, *(r for p in points.values() for r in stages(p))]))
    line = values(curve(made, 1, 1, WHOLE_PASS))
    assert line[4096] == MOST_PERCENT
    assert all(100.0 < y < 110.0 for n, y in line.items() if n != 4096 and y is not None)
    assert made.get_subplot(1, 1).yaxis.range[1] < 1.2 * MOST_PERCENT
    assert "The line is cut at 160 %; it lies at 2101 % at n = 4,096 without causal masking" in footer(made)


def test_the_hover_tells_milliseconds_share_sum_and_the_whole_pass(fig: go.Figure) -> None:
    attend = next(t for t in areas(fig, 1, 2) if t.name == "attend")
    told = shown(attend.hovertext[-1])
    for part in ("attend, n = 8,192", " ms [", "7 samples", "47.4 % of the sum", "sum of the stages", "as a whole"):
        assert part in told


def test_panels_are_named_and_lengths_are_on_a_logarithmic_axis(fig: go.Figure) -> None:
    heads = [shown(a.text).strip() for a in fig.layout.annotations if a.name != "footer"]
    assert heads == ["without causal masking", "with causal masking"]
    for col in (1, 2):
        assert fig.get_subplot(1, col).xaxis.type == "log"
        assert fig.get_subplot(1, col).xaxis.title.text == "sequence length n"


def test_the_footer_names_what_made_the_numbers(fig: go.Figure) -> None:
    told = footer(fig)
    for part in ("float32", "b=256 m=256", "protocol strict", "commit 0123456789", "(cpu", "stages add up"):
        assert part in told
    assert "L2 cache" not in told
    assert "is cut" not in told


def test_on_a_gpu_the_footer_says_that_caches_are_cold() -> None:
    assert "L2 cache is overwritten" in footer(build(view_from(grid(lengths=LENGTHS, staged=True, device="cuda"))))


def test_each_method_with_stages_has_a_row_of_panels_and_a_stage_one_colour_and_one_entry() -> None:
    made = build(view_from(grid(lengths=LENGTHS, methods=("flash2", "hyper", "other"), staged=True)))
    assert [shown(made.get_subplot(row, 1).yaxis.title.text).split()[0] for row in (1, 2)] == ["hyper", "other"]
    found = [t for row in (1, 2) for col in (1, 2) for t in areas(made, row, col)]
    for name in {t.name for t in found}:
        same = [t for t in found if t.name == name]
        assert len({t.line.color for t in same}) == 1
        assert sum(bool(t.showlegend) for t in same) == 1
    assert len({t.line.color for t in found}) == len({t.name for t in found})


def test_where_the_stages_change_a_new_stack_begins() -> None:
    records = [*of_lengths((512,), parts={"exact": 1.0}), *of_lengths((1024, 2048))]
    found = areas(build(view_from(records)), 1, 1)
    exact = [t for t in found if t.name == "exact"]
    assert {t.stackgroup for t in exact}.isdisjoint(t.stackgroup for t in found if t.name != "exact")
    # One length alone is a bar around it.
    assert min(exact[0].x) < 512 < max(exact[0].x)
    assert set(exact[0].y) == {100.0}


@settings(max_examples=15, deadline=None)
@given(st.sets(st.sampled_from(LENGTHS)))
def test_a_length_is_in_a_stack_or_crossed_out_with_its_reason(lost: set[int]) -> None:
    kept = tuple(n for n in LENGTHS if n not in lost)
    records = [*of_lengths(kept), *of_lengths(tuple(sorted(lost)), lost={"sort": "no memory"})]
    if len(kept) < 2:
        with pytest.raises(DoesNotFitError):
            build(view_from(records))
        return
    made = build(view_from(records))
    stacked = {n for t in areas(made, 1, 1) for n in t.x if n in LENGTHS}
    marked = crosses(made, 1, 1)
    assert stacked == set(kept)
    assert set(marked) == lost
    assert all("stage sort: error: no memory" in text for text in marked.values())
    assert ("No stages: hyper at n = " in footer(made)) == bool(lost)
    # No area runs across a length that is missing.
    for trace in areas(made, 1, 1):
        places = [LENGTHS.index(n) for n in trace.x if n in LENGTHS]
        assert places == list(range(places[0], places[-1] + 1))


def test_a_throttled_stage_is_hollow_and_its_flags_are_told_in_hover_and_footer() -> None:
    def mark(r: Record) -> Record:
        if isinstance(r, Timing) and (r.stage, r.point.seq_len) == ("attend", 2048):
            return dataclasses.replace(r, status=Status.THROTTLED, flags=("drift", "throttled"))
        return r

    made = build(view_from(map(mark, of_lengths(LENGTHS))))
    for trace in areas(made, 1, 1):
        hollow = {x for x, color in zip(trace.x, trace.marker.color, strict=True) if color == "white"}
        assert hollow == ({2048} if trace.name == "attend" else set())
        flagged = {x for x, text in zip(trace.x, trace.hovertext, strict=True) if "flagged: drift, throttled" in text}
        assert flagged == hollow
    told = footer(made)
    assert "Flagged stages (drift, throttled; see hover) at n = 2,048." in told
    assert "clocks were throttled while they were timed (n = 2,048)" in told
    assert "lagged" not in footer(build(view_from(of_lengths(LENGTHS))))


def test_a_throttled_whole_pass_is_hollow_in_its_line() -> None:
    def mark(r: Record) -> Record:
        return dataclasses.replace(r, status=Status.THROTTLED) if isinstance(r, Timing) else r

    line = curve(build(view_from(map(mark, of_lengths(LENGTHS)))), 1, 1, WHOLE_PASS)
    assert set(line.marker.color) == {"white"}


def test_a_method_that_tells_no_stages_is_a_note_and_no_panel() -> None:
    none = [
        a_stage(point("flash2", n), ALL_STAGES, status=Status.UNSUPPORTED, message="it tells none")
        for n in (1024, 2048)
    ]
    made = build(view_from([*grid(lengths=(1024, 2048), masks=(False,), staged=True), *none]))
    assert "No stages: flash2 at n = 1,024, 2,048 (unsupported: it tells none)." in footer(made)
    assert crosses(made, 1, 1) == {}


def test_stages_without_a_forward_pass_are_drawn_and_say_so() -> None:
    records: list[Record] = []
    for n in (1024, 2048):
        p = point("hyper", n, hyper=HYPER)
        records += [failed(p, Pass.FORWARD), timing(p, Pass.BACKWARD, 1.0), *stages(p)]
    made = build(view_from(records))
    assert all("forward pass: no time" in text for t in areas(made, 1, 1) for text in t.hovertext)
    assert not [t for t in panel(made, 1, 1) if shown(t.name or "") == WHOLE_PASS]


@pytest.mark.parametrize(
    ("records", "told"),
    [
        (grid(lengths=(1024, 2048)), "this run holds no stages; `hyperbench run sweep=stages`"),
        (of_lengths((1024, 2048), lost={"sort": "no memory"}), "stages .stage sort: error: no memory"),
        (of_lengths((1024,)), "one seq_len, 1024"),
        (grid(lengths=(1024, 2048), change=lambda t: failed(t.point, t.pass_), staged=True), "status: oom"),
    ],
    ids=["none", "none whole", "one length", "no time"],
)
def test_a_run_that_does_not_fit_is_one_line(records: list[Record], told: str) -> None:
    with pytest.raises(DoesNotFitError, match=told) as caught:
        build(view_from(records))
    assert "\n" not in str(caught.value)


def test_a_dimension_that_is_not_shown_is_refused() -> None:
    records = [r for h in (1, 2) for r in grid(lengths=(1024, 2048), masks=(False,), staged=True, heads=h)]
    with pytest.raises(DoesNotFitError, match=r"heads varies \(1, 2\).*choose one: heads=1"):
        build(view_from(records))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_nothing_of_a_run_is_interpreted(hostile: str) -> None:
    points = [point(hostile, n, input=hostile) for n in (1024, 2048, 4096)]
    records: list[Record] = [timing(p, Pass.FORWARD, 5.0, protocol=hostile) for p in points]
    records += [r for p in points[:2] for r in stages(p, {hostile: 1.0, "attend": 2.0})]
    records += stages(points[2], {hostile: 1.0}, lost={hostile: hostile})
    made = build(view_from(records, machine=hostile))
    assert foreign_markup(made) == []
