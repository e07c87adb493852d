"""Progress of a run: every timing in a line, the bar as long as the run, failures in any case, nothing when quiet."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hyperbench.commands.progress import Bar, Lines, Quiet, describe, duration, listener
from hyperbench.store.schema import ErrorRow, Pass, Record, Status, Timing
from tests.helpers.made_records import a_point, a_stage, a_timing, timings

FAILED = a_timing(status=Status.OOM, samples_ms=(), stop_reason=None, message="no [bold]memory[/bold]")
STAGE = a_stage(a_point(), "hash", 1.0, 2.0, all_stages=("hash", "sort"))
LOST_STAGE = a_stage(a_point(), "sort", all_stages=("hash", "sort"), status=Status.OOM, message="no memory")
RECORDS: list[Record] = [a_timing(), FAILED, ErrorRow(a_point(), 0, "out_rel_fro", 0.5), STAGE, LOST_STAGE]


def shown(make: type[Quiet], *, terminal: bool) -> str:
    """The text that a listener writes about a small run."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=200)
    with listener(console, quiet=make is Quiet) as heard:
        assert type(heard) is make
        heard.start(90.0)
        heard.begin("gaussian n=64 [red]")
        for record in RECORDS:
            heard.row(record)
            heard.finished(30.0)
    return text.getvalue()


def test_a_pipe_gets_a_line_for_every_timing_and_stage() -> None:
    lines = shown(Lines, terminal=False).splitlines()
    timed = [describe(record) for record in (a_timing(), FAILED, STAGE, LOST_STAGE)]
    assert lines == ["estimated time: 2 min", *timed]
    assert "stage hash: 1.5 ms, 2 samples" in timed[2]
    assert "stage sort: oom: no memory" in timed[3]


def test_a_terminal_gets_a_bar_and_the_failures() -> None:
    text = shown(Bar, terminal=True)
    assert "100%" in text
    assert describe(FAILED) in text
    assert describe(LOST_STAGE) in text
    assert describe(a_timing()) not in text


def test_json_gets_nothing_else() -> None:
    assert shown(Quiet, terminal=True) == ""


def test_a_bar_that_never_started_takes_everything() -> None:
    bar = Bar(Console(file=io.StringIO()))
    bar.begin("x")
    bar.finished(1.0)
    bar.row(FAILED)


@given(timings())
def test_a_timing_is_described_by_point_pass_or_stage_and_result(timing: Timing) -> None:
    text = describe(timing)
    assert timing.point.method in text
    assert f"n={timing.point.seq_len:,}" in text
    assert (f"stage {timing.stage}" if timing.stage else str(timing.pass_)) in text
    assert ("causal" in text.replace("non-causal", "")) or not timing.point.is_causal
    assert (f"{len(timing.samples_ms)} samples" in text) or (str(timing.status) in text)
    assert timing.message in text


def test_a_description_says_the_median_or_the_reason() -> None:
    assert describe(a_timing(pass_=Pass.BACKWARD)) == (
        "hyper gaussian n=1,024 heads=4 non-causal backward: 1.5 ms, 3 samples"
    )
    assert describe(FAILED) == "hyper gaussian n=1,024 heads=4 non-causal forward: oom: no [bold]memory[/bold]"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (45, "45 s"), (89.4, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min")],
)
def test_a_duration_is_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e7))
def test_a_duration_is_near_the_truth(seconds: float) -> None:
    units = {"s": 1.0, "min": 60.0, "h": 3600.0}
    words = duration(seconds).split()
    said = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(said - seconds) <= (0.5 if seconds < 90 else 30.0) + 1e-6


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_bar_fits_its_terminal_with_both_times_whole(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with Bar(console) as bar:
        bar.start(100.0)
        bar.begin("flash2 forward_backward " + "gaussian n=65,536 heads=1 non-causal float32 " * 3)
        bar.finished(50.0)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    line = next(part for part in reversed(shown.splitlines()) if "flash2" in part)
    assert "…" not in line
    assert "50%" in line
    assert "left" in line
