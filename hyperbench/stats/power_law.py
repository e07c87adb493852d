"""Power laws y = factor x^exponent fitted to a few points, and the interval of an exponent: pure functions, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

#: Fewer lengths than this leave nothing over to tell how well a power law fits.
MIN_LENGTHS = 3
#: Two-sided 95 % quantiles of Student's t by degrees of freedom; the last one serves for more.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student_t(degrees: int) -> float:
    """The two-sided 95 % quantile of Student's t; from ten degrees of freedom on that of ten."""
    return _T_95[min(degrees, len(_T_95)) - 1]


@dataclass(frozen=True)
class PowerLaw:
    """A fitted power law; from one point to the next the exponent lies between `least` and `most`."""

    exponent: float
    factor: float
    least: float
    most: float

    def at(self, x: float) -> float:
        """The value of the law at a positive x."""
        return self.factor * float(x**self.exponent)


def power_law(points: Iterable[tuple[float, float]]) -> PowerLaw | None:
    """The power law of points (x, y), by least squares in logarithms; None below two different x.

    Points that have no logarithm (zero, negative, not finite) are left out; several at one x count by their mean.
    """
    logs: dict[float, list[float]] = {}
    for x, y in points:
        if 0.0 < x < math.inf and 0.0 < y < math.inf:
            logs.setdefault(math.log(x), []).append(math.log(y))
    if len(logs) < 2:
        return None
    xs = sorted(logs)
    ys = [statistics.fmean(logs[x]) for x in xs]
    line = statistics.linear_regression(xs, ys)
    steps = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True))]
    return PowerLaw(line.slope, math.exp(line.intercept), min(steps), max(steps))


class Exponent(NamedTuple):
    """The exponent of a power law with its 95 % interval."""

    value: float
    low: float
    high: float


def exponent(lengths: Sequence[float], values: Sequence[float]) -> Exponent:
    """The exponent e of values ~ lengths^e: least squares on logarithms, the interval by Student's t.

    Raises ValueError unless there are three lengths or more, not all alike, and everything is positive and finite.
    """
    if len(lengths) != len(values) or len(lengths) < MIN_LENGTHS:
        raise ValueError(f"an exponent needs as many values as lengths, and at least {MIN_LENGTHS}")
    if not all(0 < number < math.inf for number in (*lengths, *values)):
        raise ValueError("an exponent needs positive, finite lengths and values")
    x, y = [math.log(n) for n in lengths], [math.log(v) for v in values]
    count = len(x)
    x_mean, y_mean = math.fsum(x) / count, math.fsum(y) / count
    spread = math.fsum((a - x_mean) ** 2 for a in x)
    if spread == 0.0:
        raise ValueError("an exponent needs lengths that differ")
    slope = math.fsum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    rest = math.fsum((b - y_mean - slope * (a - x_mean)) ** 2 for a, b in zip(x, y, strict=True))
    half = student_t(count - 2) * math.sqrt(rest / (count - 2) / spread)
    return Exponent(slope, slope - half, slope + half)
