"""Rules for claims about language models with HyperAttention in their layers. Pure functions of a claim and a view.

A claim about a model is held against runs of that model; numbers of others stand beside it for orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hyperbench.analyze.claims.findings import Finding, Number, Verdict, worst
from hyperbench.analyze.claims.published import METHODS, Claim
from hyperbench.analyze.format import printable
from hyperbench.analyze.joins import records
from hyperbench.analyze.scores.groups import Grouped, group_tables
from hyperbench.analyze.scores.labels import labels
from hyperbench.analyze.scores.summary import Scored, model_name, scored
from hyperbench.analyze.view import View

if TYPE_CHECKING:
    import pandas as pd

_RATIO, _SPEEDUP = "perplexity_over_exact", "attention_speedup"
_BEST_FIRST = (Verdict.HOLDS, Verdict.OPEN, Verdict.FAILS)


@dataclass(frozen=True)
class PatchedModel:
    """Some last layers patched that make attention so many times as fast, at a perplexity no more times as high.

    `model`: the model that the claim is of, `speedup`: that of attention over all layers, `over_exact`: the ratio of
    the perplexities (e to the power of the loss), patched over exact, on the same texts.
    """

    model: str
    speedup: float
    over_exact: float

    def judge(self, claim: Claim, view: View) -> Finding:
        """Holds where one number of layers of one method does both, by the whole intervals, at the claim's length."""
        found = [
            one
            for one in ([] if view.scores is None else scored(view.scores, view.baseline))
            if one.row["method"] in METHODS and not one.is_exact and {_RATIO, _SPEEDUP} <= one.values.keys()
        ]
        if view.scores is None or not found:
            return Finding(Verdict.OPEN, "no perplexity of a patched language model; sweep=patched_layers measures it")
        if reason := _other_model(self.model, view.scores):
            return Finding(Verdict.OPEN, reason, _numbers(_furthest(found)))
        length = claim.setting.get("seq_len")
        there = [one for one in found if one.row["seq_len"] == length]
        if not there:
            return Finding(Verdict.OPEN, f"no perplexity at n = {length:,}", _numbers(_furthest(found)))
        verdicts = [(self._verdict(one), one) for one in there]
        verdict, best = min(verdicts, key=lambda pair: _BEST_FIRST.index(pair[0]))
        return Finding(verdict, "", _numbers([best]))

    def _verdict(self, one: Scored) -> Verdict:
        ratio, speedup = _numbers([one])
        return worst([ratio.below(self.over_exact), speedup.above(self.speedup)])


@dataclass(frozen=True)
class LongBenchScores:
    """Scores of LongBench by patched layers, whose published values are not available: shown, and never judged."""

    model: str

    def judge(self, claim: Claim, view: View) -> Finding:
        """Not measured here; the means over the groups stand beside it."""
        tables = [] if view.scores is None else group_tables(view.scores, view.baseline)
        if view.scores is None or not tables:
            return Finding(Verdict.OPEN, "no scores of LongBench; `hyperbench run sweep=longbench data=DIR` has some")
        rows = [row for row in tables[-1].rows if row.first.is_exact or row.first.row["method"] in METHODS]
        names = labels([row.first for row in rows])
        numbers = tuple(found for name, row in zip(names, rows, strict=True) for found in _mean_of(name, row))
        reason = _other_model(self.model, view.scores) or "the published values are not available here"
        return Finding(Verdict.OPEN, reason, numbers)


def _other_model(wanted: str, scores: pd.DataFrame) -> str:
    """The reason why scores are not of the model that a claim is of; "" if they are."""
    names = list(dict.fromkeys(map(model_name, records(scores))))
    is_it = any(wanted.lower() in name.lower() for name in names)
    return "" if is_it else f"the claim is of {wanted}; this run is of another model ({printable(', '.join(names))})"


def _furthest(found: Sequence[Scored]) -> list[Scored]:
    """Of each method the point with the most layers at the largest length."""

    def place(one: Scored) -> tuple[Any, ...]:
        return one.row["seq_len"], one.layers

    return [
        max((one for one in found if one.row["method"] == method), key=place)
        for method in METHODS
        if any(one.row["method"] == method for one in found)
    ]


def _numbers(found: Sequence[Scored]) -> tuple[Number, ...]:
    numbers = []
    for one in found:
        place = f"{one.row['method']}, L = {one.layers}, n = {one.row['seq_len']:,}:"
        numbers += [
            Number(f"{place} perplexity over exact", *one.values[_RATIO]),
            Number(f"{place} attention", *one.values[_SPEEDUP], is_ratio=True),
        ]
    return tuple(numbers)


def _mean_of(name: str, row: Grouped) -> list[Number]:
    where = "exact" if row.first.is_exact else f"{name}, L = {row.first.layers}"
    return [] if row.mean is None else [Number(f"{where}: mean over the groups", *row.mean)]
