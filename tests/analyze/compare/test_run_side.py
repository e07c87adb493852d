"""Runs that went on under other code: which of their rounds a comparison takes, and that it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperbench.analyze.compare.compare import compare
from hyperbench.analyze.compare.run_side import of_newest_origin, read_side
from hyperbench.stats.rounds import Reason, Verdict
from hyperbench.store import origins
from hyperbench.store.origins import Origin
from hyperbench.store.schema import Pass, Point, Timing
from tests.helpers.made_rounds import ENVIRONMENT, PASSES, failed, points, rounds, write_run

FLASH, HYPER = points(lengths=(1024,))
OTHER_CODE: dict[str, Any] = {**ENVIRONMENT, "code": "b" * 12}


def at(first: int, point: Point, ms: float = 1.0, count: int = 5, **changes: Any) -> list[Timing]:
    """The timings of a point in `count` rounds from `first` on."""
    made = rounds(point, ms, luck=f"{first}{ms}{point.method}", count=count, **changes)
    return [t for i in range(count) for t in rounds(point, ms, count=1, **{**changes, "round": first + i,
            "samples_ms": made[i].samples_ms})]  # fmt: skip


def resumed(folder: Path, records: list[Timing], *first_rounds: int, **options: Any) -> Path:
    """A run that went on under other code from each of these rounds on."""
    run = write_run(folder, records, code="a" * 12, **options)
    later = [Origin(first, {**OTHER_CODE, "commit": f"{i:040x}"}) for i, first in enumerate(first_rounds, start=1)]
    (run / origins.FILE).write_text(origins.to_text([Origin(0, {}), *later]), encoding="utf-8")
    return run


def taken(side: Any) -> dict[tuple[str, str], set[int]]:
    """The rounds that a side has, by method and pass."""
    return {
        (point.method, str(pass_)): set(of_pass)
        for point in side.points
        for pass_, of_pass in side.timings[point.point_id].items()
    }


def test_the_code_that_was_measured_last_is_what_is_compared(tmp_path: Path) -> None:
    """A run whose first three rounds are of code twice as slow is as fast as its newest code, and it is said."""
    both = [*at(0, HYPER, 2.0, 3), *at(3, HYPER, 1.0)]
    a = write_run(tmp_path / "a", at(0, HYPER), code="b" * 12)
    b = resumed(tmp_path / "b", both, 3)
    found = compare(a, b)
    assert [(row.judgement.verdict, row.rounds_b) for row in found.rows] == [(Verdict.SAME, 5)]
    assert [w for w in found.warnings if w.startswith("B was measured under 2 origins: rounds 0 to 2 at ")]
    # The code of B is that of its newest round: it is A's.
    assert not [w for w in found.warnings if w.startswith("code differs")]
    assert [w for w in found.warnings if w.startswith("commit differs")]
    assert [w for w in compare(b, a).warnings if w.startswith("A was measured under 2 origins")]
    assert "measured under 2 origins" in compare(b, b).warnings[1]


def test_two_methods_of_such_a_run_are_compared_in_the_same_rounds_and_it_is_said(tmp_path: Path) -> None:
    # The new code was interrupted in its last round: one method was measured, the other not yet.
    records = [*at(0, FLASH, 1.0, 2), *at(0, HYPER, 3.0, 2), *at(2, FLASH, 1.0, 4), *at(2, HYPER, 1.5, 3)]
    found = compare(resumed(tmp_path / "run", records, 2), methods=("flash2", "hyper"))
    (row,) = found.rows
    assert row.judgement.ratio == pytest.approx(1.5, rel=0.01)
    assert (row.rounds_a, row.rounds_b, row.judgement.verdict) == (3, 3, Verdict.SLOWER)
    assert [w for w in found.warnings if w.startswith("A and B were measured under 2 origins")]


def test_an_origin_without_a_whole_round_is_passed_over() -> None:
    known = (Origin(0, {}), Origin(3, {}))
    records = [*at(0, FLASH, count=3), *at(0, HYPER, count=3), *at(3, FLASH, count=1)]
    assert {t.round for t in of_newest_origin(records, known, {})} == {0, 1, 2}


def test_what_was_finished_before_keeps_its_rounds(tmp_path: Path) -> None:
    """Points that were whole before the code changed were not measured again, and are not lost."""
    longer = points(("hyper",), (4096,))[0]
    side = read_side(resumed(tmp_path / "run", [*at(0, HYPER), *at(5, longer)], 5), None)
    assert [{*side.timings[p.point_id][Pass.FORWARD]} for p in (HYPER, longer)] == [{*range(5)}, {*range(5, 10)}]


def test_a_pass_too_slow_for_every_round_and_one_that_failed_make_no_round_partial(tmp_path: Path) -> None:
    slow = {"protocol": {"name": "strict", "budget_s": {"forward": 5.0}}}
    zero = points(("zero",), (1024,))[0]
    records = [
        t
        for first in (0, 5)
        for t in [*at(first, HYPER), *at(first, FLASH, 9000.0, 2), *failed(zero, count=1, round=first)]
    ]
    side = read_side(resumed(tmp_path / "run", records, 5, config=slow), None)
    assert taken(side) == {
        ("hyper", "forward"): {5, 6, 7, 8, 9},
        ("flash2", "forward"): {5, 6},
        ("zero", "forward"): {5},
    }


def test_a_run_of_one_origin_keeps_all_and_says_nothing(tmp_path: Path) -> None:
    records = [t for pass_ in PASSES for t in [*at(0, HYPER, pass_=pass_), *at(0, FLASH, count=2, pass_=pass_)]]
    for run in (write_run(tmp_path / "one", records), resumed(tmp_path / "two", records, 9)):
        side = read_side(run, None)
        kept = list(side.all_timings())
        assert len(kept) == len(records)
        assert all(timing in kept for timing in records)
        assert side.notes == ()


def test_the_floor_of_the_machine_holds_for_all_origins(tmp_path: Path) -> None:
    run = resumed(tmp_path / "run", [*at(0, HYPER), *at(5, HYPER)], 5, aa_floor=0.07)
    assert read_side(run, None).aa_floor == 0.07
    found = compare(run, write_run(tmp_path / "b", at(0, HYPER, 1.05)))
    assert [row.judgement.reason for row in found.rows] == [Reason.INTERVAL_WITHIN_THRESHOLD]
