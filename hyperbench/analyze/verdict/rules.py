"""Rules of the verdicts: pure functions of a speedup and an error with their intervals, and of those of trivial ones.

Two numbers differ where their intervals lie apart. A trivial answer (zero, the mean of the values) costs nothing, so a
method must be more accurate than each of them; a trivial method (a window, random keys) that is as fast must be less
accurate than it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """A verdict; of several settings of a method the one counts whose verdict comes first here."""

    #: Faster than the baseline, and more accurate than trivial answers and than trivial methods that are as fast.
    USEFUL = "useful"
    #: A trivial method that is as fast is more accurate.
    NOT_WORTH_IT = "not_worth_it"
    #: The numbers do not suffice.
    NO_VERDICT = "no_verdict"
    #: A trivial answer is more accurate.
    NOT_USEFUL = "not_useful"
    #: Slower than the baseline.
    DOES_NOT_PAY = "does_not_pay"


class Reason(StrEnum):
    """Reason of an outcome; the first four have an outcome each, the others are those of `no_verdict`."""

    FASTER_AND_CLOSER = "faster_and_closer"
    TRIVIAL_METHOD = "trivial_method_is_as_fast_and_closer"
    TRIVIAL_ANSWER = "trivial_answer_is_closer"
    SLOWER = "slower_than_baseline"
    NO_TIME = "no_time"
    NO_SPEEDUP = "no_speedup"
    NO_INTERVAL = "no_interval_of_speedup"
    SPEED_WITHIN_INTERVAL = "speedup_within_interval_of_1"
    NO_ERROR = "no_error"
    ERROR_WITHIN_INTERVAL = "error_within_interval_of_trivial"
    NO_RESULT = "timed_as_the_authors_do"


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its interval; both are the number itself where it has none."""

    value: float
    low: float
    high: float

    @property
    def has_width(self) -> bool:
        """True unless the interval is a point; that of one sample is, which says nothing of its precision."""
        return not math.isclose(self.low, self.high)

    def is_below(self, other: Interval) -> bool:
        """True if all of it is less than all of the other."""
        return self.high < other.low


ONE = Interval(1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Case:
    """A method at one setting and place, or a trivial answer, as far as it was measured."""

    name: str
    is_timed: bool = True
    speedup: Interval | None = None
    error: Interval | None = None

    def is_as_fast_as(self, other: Case) -> bool:
        """True if its speedup is not below the interval of the other's."""
        return self.speedup is not None and other.speedup is not None and self.speedup.value >= other.speedup.low


@dataclass(frozen=True)
class Finding:
    """An outcome with its reason.

    `against` is the trivial answer or method that decided it, or of a useful method the most accurate trivial one that
    is as fast. `slower_and_closer` is the fastest trivial method that is slower and more accurate. `num_beside` trivial
    methods were compared.
    """

    outcome: Outcome
    reason: Reason
    against: Case | None = None
    slower_and_closer: Case | None = None
    num_beside: int = 0


def judge(case: Case, answers: Sequence[Case], trivial: Sequence[Case]) -> Finding:
    """Judge a method by its case, the errors of trivial answers, and the trivial methods at the same place.

    Of the trivial methods those count that have a speedup and an error.
    """
    speedup, error = case.speedup, case.error
    if not case.is_timed:
        return Finding(Outcome.NO_VERDICT, Reason.NO_TIME)
    if speedup is not None and speedup.has_width and speedup.is_below(ONE):
        return Finding(Outcome.DOES_NOT_PAY, Reason.SLOWER)
    known = [(answer, answer.error) for answer in answers if answer.error is not None]
    for answer, its_error in known:
        if error is not None and its_error.is_below(error):
            return Finding(Outcome.NOT_USEFUL, Reason.TRIVIAL_ANSWER, answer)
    if (reason := _why_not_faster(speedup)) is not None:
        return Finding(Outcome.NO_VERDICT, reason)
    if error is None or not math.isfinite(error.value) or not known:
        return Finding(Outcome.NO_VERDICT, Reason.NO_ERROR)
    for answer, its_error in known:
        if not error.is_below(its_error):
            return Finding(Outcome.NO_VERDICT, Reason.ERROR_WITHIN_INTERVAL, answer)
    return _beside(case, error, trivial)


def best(judged: Sequence[tuple[Finding, Case]]) -> int:
    """The index of the best of a method's settings: by outcome, then the fastest useful one, else the most accurate.

    Of settings that are slower than the baseline it is the fastest. Raises ValueError where there is none.
    """
    order = list(Outcome)

    def rank(index: int) -> tuple[int, float]:
        finding, case = judged[index]
        by_speed = finding.outcome in (Outcome.USEFUL, Outcome.DOES_NOT_PAY)
        number = case.speedup if by_speed else case.error
        value = math.inf if number is None else -number.value if by_speed else number.value
        return (order.index(finding.outcome), value)

    return min(range(len(judged)), key=rank)


def _why_not_faster(speedup: Interval | None) -> Reason | None:
    """The reason why a speedup does not show that a method is faster; None where it does."""
    if speedup is None:
        return Reason.NO_SPEEDUP
    if not speedup.has_width:
        return Reason.NO_INTERVAL
    return None if ONE.is_below(speedup) else Reason.SPEED_WITHIN_INTERVAL


def _beside(case: Case, error: Interval, trivial: Sequence[Case]) -> Finding:
    """Judge beside trivial methods a method that is faster than the baseline and more accurate than trivial answers."""
    known = [(other, other.error) for other in trivial if other.speedup is not None and other.error is not None]
    rivals = sorted(((o, e) for o, e in known if o.is_as_fast_as(case)), key=lambda pair: pair[1].value)
    count = len({other.name for other, _ in known})
    for other, its_error in rivals:
        if its_error.is_below(error):
            return Finding(Outcome.NOT_WORTH_IT, Reason.TRIVIAL_METHOD, other, num_beside=count)
    for other, its_error in rivals:
        if not error.is_below(its_error):
            return Finding(Outcome.NO_VERDICT, Reason.ERROR_WITHIN_INTERVAL, other, num_beside=count)
    slower = [o for o, its_error in known if not o.is_as_fast_as(case) and its_error.is_below(error)]
    fastest = max(slower, key=lambda other: other.speedup.value if other.speedup else 0.0, default=None)
    nearest = rivals[0][0] if rivals else None
    return Finding(Outcome.USEFUL, Reason.FASTER_AND_CLOSER, nearest, fastest, count)
