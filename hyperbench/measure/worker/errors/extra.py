"""Further measures of a method's error, where `error.extra` asks for them, beside those that every point has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan
from hyperbench.config.types import ErrorConfig
from hyperbench.measure import work_items
from hyperbench.measure.inputs import Inputs
from hyperbench.measure.worker.errors.recall import caught_masses
from hyperbench.measure.worker.errors.reference import Reference
from hyperbench.measure.worker.errors.rows import Estimate
from hyperbench.measure.worker.errors.theory import input_properties
from hyperbench.store.schema import Point

_DENOMINATOR_QUANTILES = {"den_rel_p50": 0.5, "den_rel_p90": 0.9, "den_rel_p99": 0.99}
Errors = dict[str, Estimate]


@dataclass(frozen=True)
class Answer:
    """The answer of a method at a point under one seed, on inputs q (B, H, N, D), k and v (B, Hkv, N, D).

    `out` (B, H, N, Dv), `lse` (B, H, N) where the method returns it, `plan` makes the plan that it attended at, if it
    has one, `of_seed` gives the output under any seed.
    """

    point: Point
    inputs: Inputs
    out: Tensor
    lse: Tensor | None
    plan: Callable[[], AttentionPlan] | None
    of_seed: Callable[[int], Tensor]


@dataclass
class ExtraErrors:
    """The further measures of one group of points; those of its input, or over all seeds of a point, are made once."""

    error: ErrorConfig
    _of_input: Errors | None = None
    _biases: dict[str, Errors] = field(default_factory=dict)

    @property
    def need_output(self) -> bool:
        """True if the output of each seed is looked at again."""
        return bool(set(self.error.extra) - {"theory"})

    def of_input(self, point: Point, inputs: Inputs, dtype: torch.dtype) -> Errors:
        """The properties of the group's input, computed in `dtype`."""
        if "theory" not in self.error.extra:
            return {}
        if self._of_input is None:
            self._of_input = input_properties(inputs, is_causal=point.is_causal, dtype=dtype, seed=point.seed)
        return self._of_input

    @torch.no_grad()
    def around(self, errors: Errors, answer: Answer, reference: Reference, whole: Reference) -> Errors:
        """Errors with further ones of an answer: first those that only some methods have, last those of every method.

        `reference` is that of the answer's seed, `whole` the one that all seeds together are compared with.
        """
        return self._of_some(answer, reference) | errors | self._of_every(answer, reference, whole)

    def _of_some(self, answer: Answer, reference: Reference) -> Errors:
        """Measures of a plan, and of a log-sum-exp."""
        found: Errors = {}
        if "recall" in self.error.extra and answer.plan is not None:
            q, k, _ = answer.inputs
            found |= caught_masses(q, k, answer.plan(), reference)
        if "denominator" in self.error.extra and answer.lse is not None:
            found |= denominator_errors(answer.lse, reference)
        return found

    def _of_every(self, answer: Answer, reference: Reference, whole: Reference) -> Errors:
        """Errors of each head of the output, and over all seeds."""
        found = head_errors(answer.out, reference) if "per_head" in self.error.extra else {}
        if "bias" not in self.error.extra:
            return found
        point = answer.point
        if point.point_id not in self._biases:
            seeds, rows = work_items.draw_seeds(point, self.error), whole.rows.positions
            self._biases[point.point_id] = bias_errors([answer.of_seed(seed)[:, :, rows] for seed in seeds], whole)
        return found | self._biases[point.point_id]


def head_errors(out: Tensor, reference: Reference) -> Errors:
    """Relative Frobenius error of each head of an output (B, H, N, Dv), over the batch; their median and maximum."""
    rows, exact = reference.rows, reference.out
    difference = out[:, :, rows.positions].to(exact.dtype) - exact
    parts, wholes = (x.double().square().sum(dim=(0, 3)) for x in (difference, exact))
    heads = [rows.root_of_ratio(part, whole) for part, whole in zip(parts, wholes, strict=True)]
    median, largest = _middle(heads), _middle([max(heads)])
    summary = zip(work_items.HEAD_SUMMARY, (median, largest), strict=True)
    return {**dict(summary), **{work_items.head_metric(i): error for i, error in enumerate(heads)}}


def _middle(estimates: Sequence[Estimate]) -> Estimate:
    """The median of estimates, with the mean of the middle intervals."""
    ordered = sorted(estimates)
    middle = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    value = _mean([float(one) for one in middle])
    bounds = [(one.low, one.high) for one in middle if one.low is not None and one.high is not None]
    if len(bounds) < len(middle):
        return Estimate(value)
    return Estimate(value, _mean([low for low, _ in bounds]), _mean([high for _, high in bounds]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def denominator_errors(lse: Tensor, reference: Reference) -> Errors:
    """Quantiles over rows of |D'_ii / D_ii - 1|, from the log-sum-exp (B, H, N) of a method."""
    rows = reference.rows
    off = (lse[:, :, rows.positions].to(reference.lse.dtype) - reference.lse).expm1().abs()
    return {metric: rows.quantile(off, level) for metric, level in _DENOMINATOR_QUANTILES.items()}


def bias_errors(outs: Sequence[Tensor], reference: Reference) -> Errors:
    """Bias and standard deviation over draws, relative to the exact output, from outputs (B, H, R, Dv) at its rows.

    With S draws O_s of mean O and variance W = sum_s (O_s - O)^2 / (S - 1): std^2 = sum W / |exact|^2, and bias^2 =
    (|O - exact|^2 - sum W / S) / |exact|^2, from which the noise of the mean of so few draws is taken off; zero where
    nothing is left. One output alone, of a method that draws nothing, is all bias.
    """
    exact, count = reference.out, len(outs)
    mean, spread = torch.zeros_like(exact), torch.zeros_like(exact)
    for index, out in enumerate(outs, start=1):
        step = out.to(exact.dtype) - mean
        mean += step / index
        spread += step * (out.to(exact.dtype) - mean)
    variance = spread / max(count - 1, 1)
    squares = {"out_bias_rel_fro": (mean - exact).square() - variance / count, "out_std_rel_fro": variance}
    whole = exact.double().square().sum(dim=(0, 1, 3))
    return {
        metric: reference.rows.root_of_ratio(square.double().sum(dim=(0, 1, 3)), whole)
        for metric, square in squares.items()
    }
