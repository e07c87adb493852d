"""Growth of a quantity with the sequence length as a power law: pure functions, no torch, no I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

#: Fewer lengths than this leave nothing over to tell how well a power law fits.
MIN_LENGTHS = 3
#: Two-sided 95 % quantiles of Student's t by degrees of freedom; the last one serves for more.
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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
    half = _T_95[min(count - 2, len(_T_95)) - 1] * math.sqrt(rest / (count - 2) / spread)
    return Exponent(slope, slope - half, slope + half)
