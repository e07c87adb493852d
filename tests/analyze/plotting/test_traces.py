"""Traces: gaps where a value is missing, bands where both bounds are known, crosses and notes for what failed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plotly.subplots import make_subplots

from hyperbench.analyze.plotting import traces
from hyperbench.analyze.plotting.layout import Panel
from hyperbench.analyze.plotting.style import Look
from hyperbench.analyze.plotting.traces import Points
from hyperbench.store.schema import Pass, Record, Status
from tests.helpers.figure_reading import crosses, foreign_markup, shown
from tests.helpers.synthetic_runs import HOSTILE, HYPER, failed, grid, point, timing, view_from

BLACK = Look("#000000")
maybe = st.lists(st.none() | st.floats(0.1, 10), min_size=1, max_size=10)


def new_panel() -> Panel:
    """A panel of an empty figure."""
    return Panel(make_subplots(1, 1), 1, 1)


@settings(deadline=None, max_examples=60)
@given(maybe)
def test_a_curve_keeps_every_place_and_bands_cover_exactly_the_known_ones(ys: list[float | None]) -> None:
    panel = new_panel()
    xs = list(range(len(ys)))
    low = [None if y is None else 0.9 * y for y in ys]
    high = [None if y is None else 1.1 * y for y in ys]
    traces.curve(panel, Points(xs, ys, low, high), BLACK, name="c", group="g")
    line, *bands = panel.fig.data
    assert list(line.x) == xs
    assert list(line.y) == ys
    assert line.connectgaps is False
    covered = [x for band in bands for x in band.x[: len(band.x) // 2]]
    assert covered == [x for x, y in zip(xs, ys, strict=True) if y is not None]
    for band in bands:
        places = list(band.x[: len(band.x) // 2])
        # A band never spans a gap.
        assert places == list(range(places[0], places[-1] + 1))
        assert list(band.y) == [high[x] for x in places] + [low[x] for x in reversed(places)]
        assert band.showlegend is False


def test_the_interval_of_a_lone_point_can_be_seen() -> None:
    panel = new_panel()
    low, high = [1.0, None, 1.0], [2.0, None, 3.0]
    traces.curve(panel, Points([1, 2, 3], [1.5, None, 2.0], low, high), BLACK, name="c", group="g")
    _, first, last = panel.fig.data
    assert all(band.line.width > 0 for band in (first, last))


def test_hollow_points_are_empty_and_others_full() -> None:
    panel = new_panel()
    traces.curve(panel, Points([1, 2], [1, 2], hollow=[False, True]), Look("#112233"), name="c", group="g")
    assert list(panel.fig.data[0].marker.color) == ["#112233", "white"]


def test_a_group_stands_in_the_legend_once_over_all_panels() -> None:
    fig = make_subplots(1, 2)
    named: set[str] = set()
    for col in (1, 2):
        panel = Panel(fig, 1, col, named)
        traces.curve(panel, Points([1], [1], [1], [1]), BLACK, name="c", group="g")
    assert sum(bool(t.showlegend) for t in fig.data) == 1


def test_crosses_stand_at_every_place_with_a_missing_value_and_say_why() -> None:
    frame = view_from(grid(lengths=(1024, 2048), change=lambda t: failed(t.point, t.pass_, Status.OOM, HOSTILE[0])))
    panel = new_panel()
    traces.failures(panel, frame.timings, 0.5)
    found = crosses(panel.fig, 1, 1)
    assert set(found) == {1024, 2048}
    assert not foreign_markup(panel.fig)
    for text in found.values():
        assert shown(text).count(f"oom: {HOSTILE[0]}") == 12


def test_nothing_failed_leaves_no_mark() -> None:
    panel = new_panel()
    frame = view_from(grid(lengths=(1024,))).timings
    traces.failures(panel, frame[frame["median_ms"].isna()], 0.5)
    assert not panel.fig.data


@pytest.mark.parametrize("value", HOSTILE)
def test_a_category_is_a_place_by_its_letters(value: str) -> None:
    assert shown(traces.place_of(value)) == value
    assert not set(traces.place_of(value)) & set("<>\"'$")
    assert traces.place_of(256) == 256.0


def test_notes_name_method_passes_lengths_and_reason_of_everything_missing() -> None:
    def change(t: Any) -> Any:
        return failed(t.point, t.pass_, Status.TIMEOUT, "too slow") if t.point.seq_len > 1024 else t

    frame = view_from(grid(lengths=(1024, 2048, 4096), methods=("hyper",), change=change)).timings
    (note,) = traces.failure_notes(frame[frame["median_ms"].isna()])
    assert note == ("No value: hyper forward, forward+backward, backward at n = 2,048, 4,096 (timeout: too slow).")


def test_many_kinds_of_failure_are_counted_and_not_all_listed() -> None:
    records: list[Record] = [
        failed(point("hyper", n, hyper=HYPER), Pass.FORWARD, Status.ERROR, f"number {n}") for n in range(1, 10)
    ]
    notes = traces.failure_notes(view_from(records).timings, limit=4)
    assert len(notes) == 5
    assert notes[-1].startswith("5 more")


def test_throttled_rows_are_named_also_by_their_baseline() -> None:
    base, other = point("flash2", 3000), point("hyper", 3000, hyper=HYPER)
    frame = view_from(
        [timing(base, Pass.FORWARD, 9.0, status=Status.THROTTLED), timing(other, Pass.FORWARD, 3.0)]
    ).timings
    hyper = frame[frame["method"] == "hyper"]
    assert traces.throttled_notes(hyper) == []
    (note,) = traces.throttled_notes(hyper, or_baseline=True)
    assert "n = 3,000" in note
    assert list(traces.is_throttled(frame)) == [True, False]


def test_a_time_is_told_with_interval_and_samples() -> None:
    samples = (1.0,) * 3 + (2.0,) * 6 + (3.0,) * 3
    frame = view_from([timing(point("hyper", 1024, hyper=HYPER), Pass.FORWARD, 2.0, samples_ms=samples)]).timings
    row = frame.iloc[0].to_dict()
    assert traces.timing_text(row) == "2.00 ms [1.00 ms, 3.00 ms], 12 samples"
    assert traces.timing_text(row, "baseline_") == "no time"
