"""Comparisons that would cry wolf, or look away: what `hyperbench compare` says, and what its exit code is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperbench.store.schema import Timing
from tests.helpers.commands import Call
from tests.helpers.made_records import a_timing
from tests.helpers.made_rounds import failed, points, rounds, sweep, write_run
from tests.helpers.quoted import Quote

#: Relative spread of what a process is lucky with, and of the samples within one.
BETWEEN, WITHIN = 0.02, 0.01
LENGTHS = tuple(1024 * i for i in range(1, 25))


def a_pair(folder: Path, *a_and_b: list[Timing]) -> tuple[str, str]:
    """The folders of two runs."""
    a, b = (str(write_run(folder / name, records)) for name, records in zip("ab", a_and_b, strict=True))
    return a, b


POINT = points()[0]


@pytest.mark.parametrize(
    ("a", "b", "quote"),
    [
        (
            rounds(POINT, count=1), rounds(POINT, 3.0, count=1),
            Quote("too_few_rounds: fewer than 3 rounds a side, and samples of one process are no substitute: measure "
                  "with protocol.rounds=5 (timed rounds here: 1 of A and 1 of B)"),
        ),
        (
            rounds(POINT), rounds(POINT, 3.0, count=4),
            Quote("unequal_rounds: the two sides were not measured in as many (in one run: not in the same) rounds "
                  "(timed rounds here: 5 of A and 4 of B)"),
        ),
        (
            rounds(POINT, samples_ms=(1.0,)), rounds(POINT, samples_ms=(3.0,)),
            Quote("zero_variance: the rounds do not differ at all, which no clock of a machine does"),
        ),
        (
            rounds(POINT), rounds(POINT, samples_ms=(0.0,)),
            Quote("zero_time: a median of zero has no ratio"),
        ),
    ],
    ids=["one round", "unequal rounds", "zero variance", "zero time"],
)  # fmt: skip
def test_what_cannot_be_judged_has_a_reason_and_no_verdict(
    call: Call, tmp_path: Path, a: list[Timing], b: list[Timing], quote: Quote
) -> None:
    answer = call("compare", *a_pair(tmp_path, a, b))
    assert answer.code == 0
    assert quote.stands_in(answer.out)
    assert answer.out.rstrip().endswith("1 point, 1 pass: 0 same, 0 faster, 0 slower, 1 ambiguous")


def lucky_and_not(rng: np.random.Generator) -> list[Timing]:
    """The same code at every length, in five rounds of ten samples: each round has a luck of its own."""
    return [
        a_timing(point, round=i, samples_ms=tuple(np.exp(luck + rng.normal(0.0, WITHIN, 10)).tolist()))
        for point in points(("flash2",), LENGTHS)
        for i, luck in enumerate(rng.normal(0.0, BETWEEN, 5))
    ]


def pooled_t_test(a: list[Timing], b: list[Timing]) -> int:
    """How many points a t-test at 5 % over all samples, as if they were independent, calls different."""
    found = 0
    for point in {timing.point.point_id for timing in a}:
        logs = [np.log([s for t in side if t.point.point_id == point for s in t.samples_ms]) for side in (a, b)]
        error = np.sqrt(sum(side.var(ddof=1) / len(side) for side in logs))
        found += bool(abs(logs[0].mean() - logs[1].mean()) > 1.984 * error)
    return found


def test_luck_of_processes_is_no_change_where_pooled_samples_would_swear_to_it(call: Call, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    a, b = (lucky_and_not(rng) for _ in range(2))
    assert pooled_t_test(a, b) > len(LENGTHS) / 3
    answer = call("compare", *a_pair(tmp_path, a, b))
    assert Quote("24 points, 24 passes: 0 same, 0 faster, 0 slower, 24 ambiguous").stands_in(answer.out)
    assert "0 faster, 0 slower" in answer.out
    assert Quote("interval_straddles_threshold: the interval reaches over a threshold: more rounds would narrow it"
                 ).stands_in(answer.out)  # fmt: skip


def test_what_a_machine_differs_from_itself_by_is_no_change(call: Call, tmp_path: Path) -> None:
    a, b = sweep("one"), sweep("two", slowed={2048: 1.03})
    assert "4 slower" in call("compare", *a_pair(tmp_path, a, b)).out
    noisy = [str(write_run(tmp_path / name, side, aa_floor=0.06)) for name, side in (("c", a), ("d", b))]
    answer = call("compare", *noisy)
    assert "8 same" in answer.out
    assert Quote("threshold ±6.00% (the A/A floor: 6.00%)").stands_in(answer.out)


def test_a_regression_fails_a_check_and_nothing_else_does(call: Call, tmp_path: Path) -> None:
    before, after = a_pair(tmp_path, sweep("one"), sweep("two", slowed={2048: 1.1}))
    assert call("compare", before, after).code == 0
    assert call("compare", after, before, "--fail-on-regression", "5").code == 0
    answer = call("compare", before, after, "--fail-on-regression", "5")
    assert answer.code == 1
    assert Quote("--fail-on-regression 5: hyper n=2,048, forward: slower, 1.100 (1.099 to 1.102)").stands_in(answer.out)


def test_a_check_does_not_pass_because_a_time_is_gone_or_nothing_can_be_judged(call: Call, tmp_path: Path) -> None:
    rest = [t for t in sweep("two") if t.point != POINT]
    before, after = a_pair(tmp_path, sweep("one"), [*rest, *failed(POINT)])
    answer = call("compare", before, after, "--fail-on-regression", "5")
    assert answer.code == 1
    assert Quote("flash2 n=1,024, forward: lost in B (B: oom: ...)").stands_in(answer.out)
    once = [str(write_run(tmp_path / name, rounds(POINT, count=1))) for name in "cd"]
    answer = call("compare", *once, "--fail-on-regression", "5")
    assert answer.code == 1
    assert Quote("no point could be judged, so a regression would not be seen").stands_in(answer.out)
    slow = points(lengths=(65536,))[0]
    both = [[*sweep(luck), *rounds(slow, ms, count=2)] for luck, ms in (("one", 2.0), ("two", 6.0))]
    answer = call("compare", *a_pair(tmp_path / "slow", *both), "--fail-on-regression", "5")
    assert answer.code == 1
    assert Quote("times as long, and it cannot be judged (too_few_rounds)").stands_in(answer.out)


def test_two_machines_or_libraries_are_laid_side_by_side_with_what_differs(call: Call, tmp_path: Path) -> None:
    here = str(write_run(tmp_path / "here", sweep("one")))
    there = str(write_run(tmp_path / "there", sweep("two"), machine="Another CPU, 64 cores", torch="2.6.0"))
    answer = call("compare", here, there)
    assert Quote("warning: machine differs: Some CPU, 2 cores in A, Another CPU, 64 cores in B").stands_in(answer.out)
    assert "warning: torch differs: 2.13.0 in A, 2.6.0 in B" in answer.out
