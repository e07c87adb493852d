"""Verdicts of a run on a published claim, and the numbers behind them. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from hyperbench.analyze.format import ratio, significant


class Verdict(StrEnum):
    """The verdict on a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "not measured here"


@dataclass(frozen=True)
class Number:
    """A measured number with its 95 % interval and its place in the run; `is_ratio` if it is a speedup."""

    label: str
    value: float
    low: float
    high: float
    is_ratio: bool = False

    @property
    def text(self) -> str:
        """The number as a reader sees it: "forward 27.2× (26.9× to 27.5×)"."""
        show = ratio if self.is_ratio else significant
        interval = f" ({show(self.low)} to {show(self.high)})" if self.low < self.high else ""
        return f"{self.label} {show(self.value)}{interval}"

    def above(self, limit: float) -> Verdict:
        """The verdict on a claim that it is at least `limit`; open where the interval lies on both sides."""
        if self.low >= limit:
            return Verdict.HOLDS
        return Verdict.FAILS if self.high < limit else Verdict.OPEN

    def below(self, limit: float) -> Verdict:
        """The verdict on a claim that it is at most `limit`; open where the interval lies on both sides."""
        if self.high <= limit:
            return Verdict.HOLDS
        return Verdict.FAILS if self.low > limit else Verdict.OPEN


@dataclass(frozen=True)
class Finding:
    """A verdict of one run on a claim, with the reason and the numbers behind it."""

    verdict: Verdict
    reason: str = ""
    numbers: tuple[Number, ...] = ()


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a claim of several parts: one that does not hold decides, then one that is open."""
    found = set(verdicts)
    return next(verdict for verdict in (Verdict.FAILS, Verdict.OPEN, Verdict.HOLDS) if verdict in found)
