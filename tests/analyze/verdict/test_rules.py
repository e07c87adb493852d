"""The rules of verdicts: each outcome where its rule says so, and none where intervals meet."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.analyze.verdict.rules import Case, Interval, Outcome, Reason, best, judge

ZERO, MEAN = (
    Case("answering zero", error=Interval(1.0, 1.0, 1.0)),
    Case("answering mean(v)", error=Interval(0.8, 0.8, 0.8)),
)
ANSWERS = [ZERO, MEAN]


def around(value: float, width: float = 0.05) -> Interval:
    """A number with an interval of this relative width to either side."""
    return Interval(value, value * (1 - width), value * (1 + width))


def case(speedup: float, error: float, name: str = "hyper", width: float = 0.05) -> Case:
    """A method that was timed, with its speedup and error."""
    return Case(name, True, around(speedup, width), around(error, width))


@pytest.mark.parametrize(
    ("method", "trivial", "outcome", "reason", "against"),
    [
        (case(15.0, 2.9), [], Outcome.NOT_USEFUL, Reason.TRIVIAL_ANSWER, "answering zero"),
        (case(15.0, 0.9), [], Outcome.NOT_USEFUL, Reason.TRIVIAL_ANSWER, "answering mean(v)"),
        (case(15.0, 0.2), [], Outcome.USEFUL, Reason.FASTER_AND_CLOSER, None),
        (case(0.9, 0.2), [], Outcome.DOES_NOT_PAY, Reason.SLOWER, None),
        (case(0.9, 2.9), [], Outcome.DOES_NOT_PAY, Reason.SLOWER, None),
        (case(1.02, 0.2), [], Outcome.NO_VERDICT, Reason.SPEED_WITHIN_INTERVAL, None),
        # An error above a trivial answer is one whatever the speed.
        (case(1.02, 2.9), [], Outcome.NOT_USEFUL, Reason.TRIVIAL_ANSWER, "answering zero"),
        (case(15.0, 0.79), [], Outcome.NO_VERDICT, Reason.ERROR_WITHIN_INTERVAL, "answering mean(v)"),
        (case(15.0, 1.02), [], Outcome.NOT_USEFUL, Reason.TRIVIAL_ANSWER, "answering mean(v)"),
        (case(15.0, 0.5), [case(15.2, 0.2, "window")], Outcome.NOT_WORTH_IT, Reason.TRIVIAL_METHOD, "window"),
        (case(15.0, 0.5), [case(14.5, 0.2, "window")], Outcome.NOT_WORTH_IT, Reason.TRIVIAL_METHOD, "window"),
        (case(15.0, 0.5), [case(15.2, 0.52, "window")], Outcome.NO_VERDICT, Reason.ERROR_WITHIN_INTERVAL, "window"),
        (case(15.0, 0.5), [case(15.2, 0.7, "window")], Outcome.USEFUL, Reason.FASTER_AND_CLOSER, "window"),
        (case(15.0, 0.5), [case(9.0, 0.2, "window")], Outcome.USEFUL, Reason.FASTER_AND_CLOSER, None),
        (Case("hyper", is_timed=False), [], Outcome.NO_VERDICT, Reason.NO_TIME, None),
        (Case("hyper", error=around(0.2)), [], Outcome.NO_VERDICT, Reason.NO_SPEEDUP, None),
        (Case("hyper", error=around(2.0)), [], Outcome.NOT_USEFUL, Reason.TRIVIAL_ANSWER, "answering zero"),
        (case(200.0, 0.2, width=0.0), [], Outcome.NO_VERDICT, Reason.NO_INTERVAL, None),
        (case(0.5, 0.2, width=0.0), [], Outcome.NO_VERDICT, Reason.NO_INTERVAL, None),
        (Case("hyper", speedup=around(15.0)), [], Outcome.NO_VERDICT, Reason.NO_ERROR, None),
    ],
)  # fmt: skip
def test_each_rule_gives_its_outcome(
    method: Case, trivial: list[Case], outcome: Outcome, reason: Reason, against: str | None
) -> None:
    found = judge(method, ANSWERS, trivial)
    assert (found.outcome, found.reason) == (outcome, reason)
    assert (found.against.name if found.against else None) == against


def test_without_the_errors_of_trivial_answers_there_is_no_verdict() -> None:
    assert judge(case(15.0, 0.2), [], []).reason is Reason.NO_ERROR


def test_a_trivial_method_without_an_error_or_a_speedup_decides_nothing() -> None:
    other = case(20.0, 0.01, "window")
    for part in ("speedup", "error"):
        found = judge(case(15.0, 0.5), ANSWERS, [dataclasses.replace(other, **{part: None})])
        assert (found.outcome, found.num_beside) == (Outcome.USEFUL, 0)


def test_a_useful_method_tells_the_trivial_ones_beside_it() -> None:
    trivial = [
        case(20.0, 0.9, "a"),
        case(16.0, 0.7, "b"),
        case(9.0, 0.1, "c"),
        case(12.0, 0.2, "d"),
        case(8.0, 5.0, "e"),
    ]
    found = judge(case(15.0, 0.5), ANSWERS, trivial)
    assert found.outcome is Outcome.USEFUL
    assert found.against is not None
    assert found.slower_and_closer is not None
    assert (found.against.name, found.slower_and_closer.name, found.num_beside) == ("b", "d", 5)


numbers = st.floats(1e-3, 1e3)
intervals = st.tuples(numbers, st.floats(1.0, 1.5), st.floats(1.0, 1.5)).map(
    lambda t: Interval(t[0], t[0] / t[1], t[0] * t[2])
)
cases = st.builds(Case, st.just("x"), st.just(True), st.none() | intervals, st.none() | intervals)


@settings(deadline=None, max_examples=150)
@given(cases, st.lists(cases, max_size=4))
def test_a_useful_method_is_beyond_all_it_was_compared_with(method: Case, trivial: list[Case]) -> None:
    found = judge(method, ANSWERS, trivial)
    if found.outcome is Outcome.USEFUL:
        assert method.speedup is not None
        assert method.error is not None
        assert method.speedup.low > 1.0
        assert method.error.high < 0.8
        for other in trivial:
            if other.error and other.is_as_fast_as(method):
                assert method.error.high < other.error.low
    # More rivals never make a method useful.
    alone = judge(method, ANSWERS, [])
    assert alone.outcome is found.outcome or alone.outcome is Outcome.USEFUL


@pytest.mark.parametrize(
    ("judged", "index"),
    [
        ([case(30.0, 2.0), case(5.0, 0.1), case(9.0, 0.2)], 2),
        ([case(30.0, 2.0), case(20.0, 1.5)], 1),
        ([case(0.5, 0.1), case(0.8, 0.2)], 1),
        ([case(0.5, 0.1), case(30.0, 2.0)], 1),
        ([Case("x", is_timed=False), case(5.0, 0.1)], 1),
    ],
)
def test_of_several_settings_the_best_counts_in_any_order(judged: list[Case], index: int) -> None:
    for order in itertools.permutations(range(len(judged))):
        found = best([(judge(judged[i], ANSWERS, []), judged[i]) for i in order])
        assert order[found] == index
