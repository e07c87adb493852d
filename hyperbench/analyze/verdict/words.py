"""Sentences that tell verdicts: what was found, where, and why. None is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperbench.analyze.format import short, significant
from hyperbench.analyze.verdict.rules import Case, Finding, Interval, Outcome, Reason


@dataclass(frozen=True)
class Place:
    """The names that a sentence needs, and what is known of the place beside the numbers.

    `method` may have its setting behind it. `where` is the length, the masking and the pass. `why_missing` says why a
    time, a speedup or an error is missing. `slower_before`: at shorter lengths the method was not faster either.
    """

    method: str
    baseline: str
    where: str
    input: str
    why_missing: str = ""
    slower_before: bool = False


def sentence(place: Place, case: Case, finding: Finding, answers: Sequence[Case]) -> str:
    """A verdict in words: the speed, the error, and what follows of both."""
    here = f"on this input ({place.input})"
    if finding.outcome is Outcome.NO_VERDICT:
        return f"{place.method} at {place.where}: no verdict {here}: {_why_none(place, case, finding)}"
    if finding.outcome is Outcome.DOES_NOT_PAY:
        at = "up to" if place.slower_before else "at"
        speed = f"{_number(case.speedup)} times its speed"
        return f"{place.method} is slower than {place.baseline} {at} {place.where}, {speed}: does not pay {here}"
    against = finding.against
    told = f"{place.method} {_speed(place, case.speedup)}; its error is {_number(case.error)}"
    if finding.outcome is Outcome.NOT_USEFUL:
        return f"{told}, above {_named(against)}: not useful {here}"
    told += f", below {' and '.join(_named(answer) for answer in answers)}"
    if finding.outcome is Outcome.NOT_WORTH_IT and against is not None:
        fast = f"{against.name} is as fast ({_number(against.speedup)} times {place.baseline})"
        return f"{told}, but {fast} and its error is {_number(against.error)}: not worth it {here}"
    if against is not None:
        told += f", and below every trivial method that is as fast (best: {_named(against)})"
    return f"{told}: useful {here}{_but(place, finding)}"


def _speed(place: Place, speedup: Interval | None) -> str:
    """The speed of a method beside the baseline, as far as it is known."""
    if speedup is None:
        return f"has no speedup over {place.baseline} at {place.where}"
    if speedup.has_width and speedup.low <= 1.0 <= speedup.high:
        return f"is {_number(speedup)} times as fast as {place.baseline} (1 within the interval) at {place.where}"
    doubt = "" if speedup.has_width else " (too few samples for an interval)"
    slower = speedup.value < 1.0
    told = f"{_number(speedup)} times as fast as" if slower else f"{_number(speedup)} times faster than"
    return f"is {told} {place.baseline}{doubt} at {place.where}"


def _why_none(place: Place, case: Case, finding: Finding) -> str:
    """The reason why there is no verdict."""
    missing = f" ({short(place.why_missing)})" if place.why_missing else ""
    speedup, error = _number(case.speedup), _number(case.error)
    reasons = {
        Reason.NO_RESULT: "it was timed the authors' way",
        Reason.NO_TIME: f"it has no time{missing}",
        Reason.NO_SPEEDUP: f"it has no speedup over {place.baseline}{missing}",
        Reason.NO_INTERVAL: f"its speedup of {speedup} has too few samples for an interval",
        Reason.SPEED_WITHIN_INTERVAL: f"its speedup is {speedup}, and 1 within the interval {_ends(case.speedup)}",
        Reason.NO_ERROR: f"its error, or that of trivial answers, is not known{missing}",
        Reason.ERROR_WITHIN_INTERVAL: f"its error of {error} {_ends(case.error)} and that of {_named(finding.against)}"
        " are not apart",
    }
    return reasons[finding.reason]


def _but(place: Place, finding: Finding) -> str:
    """The limits of a verdict that calls a method useful."""
    closer = finding.slower_and_closer
    if closer is not None:
        slower = f"{closer.name}, at {_number(closer.speedup)} times the speed of {place.baseline},"
        return f", though {slower} has an error of {_number(closer.error)}"
    return "" if finding.num_beside else ", as far as is known: no trivial method was measured beside it"


def _named(case: Case | None) -> str:
    return "" if case is None else f"{case.name} ({_number(case.error)})"


def _number(interval: Interval | None) -> str:
    return "" if interval is None else significant(interval.value)


def _ends(interval: Interval | None) -> str:
    if interval is None or not interval.has_width:
        return "(no interval)"
    return f"({significant(interval.low)} to {significant(interval.high)})"
