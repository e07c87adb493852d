"""Sensitivity of a model's layers: what one layer costs that attends by a method while all others are exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperbench.analyze.format import printable
from hyperbench.analyze.scores.labels import labels
from hyperbench.analyze.scores.summary import ABOVE, Scored, scored
from hyperbench.config.tasks import LAYERS
from hyperbench.stats.means import Mean

if TYPE_CHECKING:
    import pandas as pd

_ABOVE_EXACT = f"perplexity{ABOVE}"
#: Fewer layers make no order.
_LEAST = 2


@dataclass(frozen=True)
class Curve:
    """A method at one length: the loss of each layer above exact attention's, by layer, and a point of it."""

    name: str
    seq_len: int
    costs: dict[int, Mean]
    first: Scored

    @property
    def order(self) -> tuple[int, ...]:
        """The layers from the one that costs least to the one that costs most."""
        return tuple(sorted(self.costs, key=lambda layer: (self.costs[layer].value, layer)))


def curves(scores: pd.DataFrame, baseline: str = "flash2") -> list[Curve]:
    """The curves of each length, for methods that were measured in several single layers. Raises ValueError as
    `scored` does.
    """
    if LAYERS not in scores:
        return []
    single = [
        one
        for one in scored(scores, baseline)
        if _ABOVE_EXACT in one.values and not one.is_exact and str(one.row[LAYERS]).isdecimal()
    ]
    found: dict[tuple[str, str, int], Curve] = {}
    for name, one in zip(labels(single), single, strict=True):
        task, seq_len = str(one.row["input"]), int(one.row["seq_len"])
        curve = found.setdefault((task, name, seq_len), Curve(name, seq_len, {}, one))
        curve.costs[int(one.row[LAYERS])] = Mean(*map(math.log, one.values[_ABOVE_EXACT]))
    return [curve for curve in found.values() if len(curve.costs) >= _LEAST]


def order_lines(scores: pd.DataFrame, baseline: str = "flash2") -> list[str]:
    """A line for each curve with its layers in order, as input.layers takes them."""
    return [
        f"{printable(curve.name)}, {curve.seq_len:,} tokens: layers from the least costly on; the first k of them are "
        f"input.layers=[{','.join(map(str, curve.order))}]"
        for curve in curves(scores, baseline)
    ]
