"""Rows on which an output is compared: all, or a part drawn by position, and estimates from such a part.

A total over all rows is estimated by the sum over the drawn ones, each weighed by the inverse of its chance to be drawn
(Horvitz-Thompson). Rows are drawn one from each of as many strata of neighbouring positions; the variance is estimated
from differences of neighbours (Wolter, Introduction to Variance Estimation, ch. 8).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Standard errors on either side of an interval of 95 %.
_Z = 1.96
#: Under a causal mask, the part of the rows whose chances fall with the number of keys they see.
_EARLY_PART = 0.5


class Estimate(float):
    """A number with the 95 % interval in which the true one lies, where it is estimated from a part of the rows."""

    low: float | None
    high: float | None

    def __new__(cls, value: float, low: float | None = None, high: float | None = None) -> Estimate:
        """A number; without an interval it is exact."""
        made = super().__new__(cls, value)
        made.low, made.high = low, high
        return made


@dataclass(frozen=True)
class Rows:
    """Positions (R,), ascending, with the inverse (R,) of the chance of each; all of them have no weights."""

    positions: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        return Rows(self.positions.to(device), None if self.weights is None else self.weights.to(device))

    def root_of_ratio(self, parts: Tensor, wholes: Tensor) -> Estimate:
        """The root of the total of `parts` over that of `wholes`, each (R,); the latter are not negative.

        Nothing over nothing is nothing, anything else over nothing infinite. A total below nothing, as the difference
        of two estimates may have, counts as nothing.
        """
        parts, wholes = parts.double(), wholes.double()
        weights = torch.ones_like(parts) if self.weights is None else self.weights
        part, whole = float((weights * parts).sum()), float((weights * wholes).sum())
        if whole == 0.0 or part <= 0.0:
            value = 0.0 if part <= 0.0 else math.inf
            return Estimate(value) if self.weights is None else Estimate(value, value, value)
        ratio = part / whole
        if self.weights is None:
            return Estimate(math.sqrt(ratio))
        deviation = self._deviation(parts - ratio * wholes) / part
        # In logarithms, where the interval is symmetric; the root halves it.
        factor = math.exp(min(0.5 * _Z * deviation, 700.0))
        value = math.sqrt(ratio)
        return Estimate(value, value / factor, value * factor)

    def mean(self, values: Tensor) -> Estimate:
        """The mean of values (R,) that are not negative."""
        values = values.double()
        if self.weights is None:
            return Estimate(float(values.mean()))
        total = float(self.weights.sum())
        mean = float((self.weights * values).sum()) / total
        half = _Z * self._deviation(values - mean) / total
        return Estimate(mean, max(0.0, mean - half), mean + half)

    def quantile(self, values: Tensor, level: float) -> Estimate:
        """The quantile of values (..., R): the least that so large a part does not exceed."""
        if self.weights is None:
            return Estimate(float(_order_statistic(values.flatten(), level)))
        flat, weights = values.flatten().double(), self.weights.expand(values.shape).flatten()
        value = _weighted_quantile(flat, weights, level)
        below = (values <= value).double().flatten(0, -2).mean(0) - level
        half = _Z * self._deviation(below) / float(self.weights.sum())
        low, high = (_weighted_quantile(flat, weights, min(max(level + d, 0.0), 1.0)) for d in (-half, half))
        return Estimate(value, min(low, value), max(high, value))

    def largest(self, values: Tensor) -> Estimate:
        """The largest of values (..., R); of a part it is the least that the true one can be."""
        value = float(values.max())
        return Estimate(value) if self.weights is None else Estimate(value, value, math.inf)

    def _deviation(self, values: Tensor) -> float:
        """The standard error of the total of values (R,) whose estimate is about zero."""
        assert self.weights is not None
        # A row that is drawn for certain adds nothing to it.
        scaled = (self.weights * values * (1.0 - 1.0 / self.weights).clamp(min=0.0).sqrt())[self.weights > 1.0]
        count = len(scaled)
        if count < 2:
            return 0.0 if count == 0 else float(scaled.abs().sum())
        return math.sqrt(0.5 * count / (count - 1) * float(scaled.diff().square().sum()))


def all_rows(seq_len: int) -> Rows:
    """All rows."""
    return Rows(torch.arange(seq_len, device="cpu"))


def draw_rows(seq_len: int, num_rows: int, is_causal: bool, seed: int) -> Rows:
    """Rows of a part of the positions, drawn one from each stratum.

    Without a mask the strata are of one length. Under a causal mask early rows see few keys and have large outputs:
    half of the chances fall as 1 / (i + 1), so that strata grow with the position, and the first rows are certain.
    """
    shares = torch.full((seq_len,), 1.0 / seq_len, dtype=torch.float64, device="cpu")
    if is_causal:
        falling = 1.0 / torch.arange(1, seq_len + 1, dtype=torch.float64, device="cpu")
        shares = _EARLY_PART * falling / falling.sum() + (1.0 - _EARLY_PART) * shares
    certain = 0
    # Shares never grow with the position: the certain rows are the first ones.
    while True:
        chances = (num_rows - certain) * shares[certain:] / shares[certain:].sum()
        more = int((chances >= 1.0).sum())
        if more == 0 or certain + more >= num_rows:
            break
        certain += more
    generator = torch.Generator(device="cpu").manual_seed(seed)
    strata = num_rows - certain
    points = torch.arange(strata, device="cpu") + torch.rand(
        strata, generator=generator, dtype=torch.float64, device="cpu"
    )
    drawn = torch.searchsorted(chances.cumsum(0), points).clamp(max=len(chances) - 1)
    first = torch.arange(certain, device="cpu")
    weights = torch.cat([torch.ones(certain, dtype=torch.float64, device="cpu"), 1.0 / chances[drawn]])
    return Rows(torch.cat([first, drawn + certain]), weights)


def _order_statistic(values: Tensor, level: float) -> Tensor:
    # torch.quantile refuses more than 16 million values; an order statistic does not.
    index = min(values.numel() - 1, int(level * values.numel()))
    return values.kthvalue(index + 1).values if values.device.type == "cpu" else values.sort().values[index]


def _weighted_quantile(values: Tensor, weights: Tensor, level: float) -> float:
    ordered, order = values.sort()
    reached = weights[order].cumsum(0)
    index = int(torch.searchsorted(reached, level * float(reached[-1])))
    return float(ordered[min(index, len(ordered) - 1)])
