"""Power laws y = factor x^exponent fitted to a few points: pure functions, no torch, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


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
