"""Rules by which a run is held against a published claim. Pure functions of a claim and a view.

A claim holds, or does not hold, only where the whole 95 % interval of what was measured says so. What needs other
hardware, other inputs or more measurements is not measured here, with the reason; a number that was measured all the
same stands beside it. claims.yaml names the rule of each claim, with its parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hyperbench.analyze.claims.findings import Finding, Number, Verdict, worst
from hyperbench.analyze.claims.model_rules import LongBenchScores, PatchedModel
from hyperbench.analyze.claims.published import METHODS, Claim
from hyperbench.analyze.format import MASK_LABELS, PASS_LABELS, is_null, machine_of, plain, ratio
from hyperbench.analyze.joins import records
from hyperbench.analyze.view import View
from hyperbench.config.catalog import check_name
from hyperbench.stats.power_law import MIN_LENGTHS, exponent
from hyperbench.store.parameters import OF_INPUT, input_parameters
from hyperbench.store.plain_data import decoded

if TYPE_CHECKING:
    import pandas as pd

#: Keys of a claim's setting that a row must share; other keys in which it differs are told beside the number.
_SHARED = ("seq_len", "is_causal", "pass", "head_dim", "block_size", "sample_size")
_TOLD = ("batch", "heads", "dtype", "num_projections", "min_seq_len", "sampling", "pairing", "input")
#: What the rows of one curve of speedups over the sequence length have in common.
_CURVE = (
    "run_id", "method", "is_causal", "pass", "batch", "heads", "kv_heads", "head_dim", "dtype", "block_size",
    "sample_size", "num_projections", "min_seq_len", "sampling", "pairing", "input", "seed", "protocol",
)  # fmt: skip
_Row = Mapping[str, Any]


class Rule(Protocol):
    """A rule with its parameters."""

    def judge(self, claim: Claim, view: View) -> Finding:
        """The verdict of a run on the claim."""
        ...


@dataclass(frozen=True)
class SpeedupAtLeast:
    """The claim's speedup or more, at its length, mask and passes.

    `hardware`: the GPU that it was published for; numbers of other machines are for orientation. `tolerance`: the part
    of the published value by which that may be off itself.
    """

    hardware: str = ""
    tolerance: float = 0.0

    def judge(self, claim: Claim, view: View) -> Finding:
        """Holds where the interval of every pass lies above the published value. Raises ValueError if there is none."""
        if claim.value is None:
            raise ValueError(f"claim {claim.id}: check.rule=speedup_at_least needs a value, and it has none")
        rows = list(_nearest_rows(claim, _comparable(claim, view)))
        numbers = tuple(
            Number(PASS_LABELS[row["pass"]], row["speedup"], row["speedup_low"], row["speedup_high"], is_ratio=True)
            for row in rows
        )
        if self.hardware and (reason := _other_hardware(self.hardware, view)):
            return Finding(Verdict.OPEN, reason, numbers)
        if not rows:
            return Finding(Verdict.OPEN, f"no speedup of {' or '.join(METHODS)} at {_place(claim)}")
        least = claim.value * (1.0 - self.tolerance)
        verdicts = [number.above(least) for number in numbers]
        wide = [
            f"the interval of {number.label} includes {ratio(least)}: too few rounds"
            for number, verdict in zip(numbers, verdicts, strict=True)
            if verdict is Verdict.OPEN
        ]
        differing = list(dict.fromkeys(text for row in rows for text in _differing(claim, row)))
        told = [f"differs from the published setting in {', '.join(differing)}"] if differing else []
        return Finding(worst(verdicts), "; ".join([*wide, *told]), numbers)


@dataclass(frozen=True)
class SpeedupGrows:
    """A speedup that grows with the sequence length, for every pass and mask, on whatever machine."""

    def judge(self, claim: Claim, view: View) -> Finding:
        """Holds where every curve of three lengths or more grows as a power of n above 0, and no step leads down."""
        verdicts, numbers, drops = [], [], []
        for curve in _curves(_comparable(claim, view), _CURVE, "speedup"):
            rows = records(curve)
            place = f"{PASS_LABELS[rows[0]['pass']]} {MASK_LABELS[bool(rows[0]['is_causal'])]}"
            number = _exponent(place, curve, "speedup")
            down = [
                f"{place}: from {ratio(one['speedup'])} at n = {one['seq_len']:,} down to {ratio(next_['speedup'])} at"
                f" {next_['seq_len']:,}"
                for one, next_ in pairwise(rows)
                if next_["speedup_high"] < one["speedup_low"]
            ]
            numbers.append(number)
            drops += down
            verdicts.append(Verdict.FAILS if down else number.above(0.0))
        if not verdicts:
            return Finding(Verdict.OPEN, f"no speedups at {MIN_LENGTHS} lengths or more within {_place(claim)}")
        return Finding(worst(verdicts), "; ".join(drops), tuple(numbers))


@dataclass(frozen=True)
class GrowsSublinearly:
    """A property of the input, written as an error metric, that grows more slowly than the sequence length.

    `inputs`: the inputs that the claim is of; numbers of others are for orientation.
    """

    metric: str
    inputs: tuple[str, ...]

    def judge(self, claim: Claim, view: View) -> Finding:
        """Holds where it grows as a power of n below 1 on every such input, layer and mask that the run has."""
        frame = view.timings
        if self.metric not in frame or not frame[self.metric].notna().any():
            return Finding(Verdict.OPEN, f"{self.metric} was not measured; error.extra=[theory] measures it")
        given = input_parameters(frame.columns)
        same = ("run_id", "is_causal", "batch", "heads", "head_dim", "dtype", "input", "seed", *given)
        curves = list(_curves(frame.drop_duplicates([*same, "seq_len"]), same, self.metric))
        if not curves:
            return Finding(Verdict.OPEN, f"{self.metric} was measured at fewer than {MIN_LENGTHS} lengths")
        ours = [curve for curve in curves if _family(curve) in self.inputs]
        told = [name for name in given if frame[name].nunique() > 1]
        numbers = tuple(_exponent(_input_place(curve, told), curve, self.metric) for curve in ours or curves)
        if not ours:
            families = ", ".join(sorted({_family(curve) for curve in curves}))
            reason = f"the claim is of inputs of models ({', '.join(self.inputs)}); this run has {families}"
            return Finding(Verdict.OPEN, reason, numbers)
        return Finding(worst(number.below(1.0) for number in numbers), "", numbers)


RULES: dict[str, type[Any]] = {
    "speedup_at_least": SpeedupAtLeast,
    "speedup_grows": SpeedupGrows,
    "grows_sublinearly": GrowsSublinearly,
}
#: Rules that read the scores of language models, and no timings.
MODEL_RULES: dict[str, type[Any]] = {"patched_model": PatchedModel, "longbench_scores": LongBenchScores}


def rule_of(claim: Claim) -> Rule:
    """The rule that a claim names. Raises ValueError (one line) on an unknown one or on parameters it does not take."""
    rules = RULES | MODEL_RULES
    check_name(f"claim {claim.id}: check.rule", claim.check.get("rule"), rules)
    parameters = {name: value for name, value in claim.check.items() if name != "rule"}
    try:
        rule: Rule = decoded(rules[claim.check["rule"]], parameters)
    except ValueError as error:
        raise ValueError(f"claim {claim.id}: check: {error}") from None
    return rule


def _comparable(claim: Claim, view: View) -> pd.DataFrame:
    """The rows with a speedup that share with the claim's setting what they must share."""
    frame = view.timings
    if frame.empty:
        return frame
    # Numbers of protocol=paper are no result by themselves.
    known = frame[frame["method"].isin(METHODS) & frame["speedup"].notna() & (frame["protocol"] != "paper")]
    shared = [key for key in _SHARED if key in claim.setting]
    alike = [all(_is_in(row[key], claim.setting[key]) for key in shared) for row in records(known)]
    return known[np.array(alike, dtype=bool)]


def _nearest_rows(claim: Claim, rows: pd.DataFrame) -> Iterator[_Row]:
    """For each pass the row that differs least from the claim's setting; of several such the fastest ("up to")."""
    for pass_ in PASS_LABELS:
        of_pass = records(rows[rows["pass"] == pass_])
        if of_pass:
            yield min(of_pass, key=lambda row: (len(_differing(claim, row)), -row["speedup"]))


def _differing(claim: Claim, row: _Row) -> list[str]:
    keys = [key for key in _TOLD if key in claim.setting and not _is_in(row[key], claim.setting[key])]
    return [f"{key} ({plain(row[key]) or 'none'} here, {plain(claim.setting[key])} there)" for key in keys]


def _is_in(cell: Any, wanted: Any) -> bool:
    return not is_null(cell) and cell in (wanted if isinstance(wanted, list) else [wanted])


def _other_hardware(wanted: str, view: View) -> str:
    """The reason why a run is not of the hardware that a number was published for; "" if it is."""
    if "cuda" not in set(view.timings["device"]):
        return f"published for an {wanted}: needs CUDA, and this run is of a CPU"
    # As a word: an A10 is no A100.
    is_it = re.search(rf"\b{re.escape(wanted)}\b", machine_of(view.environment))
    return "" if is_it else f"published for an {wanted}, and this run is of another GPU"


def _place(claim: Claim) -> str:
    """The place of a claim's setting in a run, in words."""
    lengths = claim.setting.get("seq_len", [])
    ends = [f"{n:,}" for n in ([lengths[0], lengths[-1]] if isinstance(lengths, list) else [lengths])]
    parts = [f"n = {' to '.join(ends)}"]
    if "is_causal" in claim.setting:
        parts.append(MASK_LABELS[claim.setting["is_causal"]])
    sizes = {"block_size": "b", "sample_size": "m", "head_dim": "d"}
    return ", ".join([*parts, *(f"{sizes[key]} = {claim.setting[key]}" for key in sizes if key in claim.setting)])


def _curves(rows: pd.DataFrame, same: Iterable[str], column: str) -> Iterator[pd.DataFrame]:
    """The curves of a column over the sequence length, in its order: three lengths or more, and one row at each."""
    if rows.empty:
        return
    known = rows[(rows[column] > 0) & (rows[column] < math.inf)]
    for _, curve in known.groupby(list(same), dropna=False, sort=False):
        if len(curve) >= MIN_LENGTHS and not curve["seq_len"].duplicated().any():
            yield curve.sort_values("seq_len", kind="stable")


def _exponent(label: str, curve: pd.DataFrame, column: str) -> Number:
    """The exponent with which a column grows along a curve."""
    lengths = [float(n) for n in curve["seq_len"]]
    found = exponent(lengths, [float(value) for value in curve[column]])
    return Number(f"{label}, n = {lengths[0]:,.0f} to {lengths[-1]:,.0f}: exponent of n", *found)


def _family(curve: pd.DataFrame) -> str:
    """The name of a curve's input without the parameters that tables put behind it."""
    return str(curve.iloc[0]["input"]).partition(" ")[0]


def _input_place(curve: pd.DataFrame, told: Iterable[str]) -> str:
    first = records(curve.head(1))[0]
    parameters = [f"{name.removeprefix(OF_INPUT)} {plain(first[name])}" for name in told if not is_null(first[name])]
    return ", ".join([first["input"], *parameters, MASK_LABELS[bool(first["is_causal"])]])
