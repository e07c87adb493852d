"""Properties of an honest method at the very point that is timed: two calls, none in float64.

The examination on short inputs (see hyperbench.measure.worker.gate.properties) does not see what a method does at long
ones alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyperbench.measure.inputs import Inputs
from hyperbench.measure.worker.errors import accuracy
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.gate.checks import MEMOISED_IN_PLACE, NOT_CAUSAL, copies, difference, replaced
from hyperbench.measure.worker.subject import Subject


def examine_at_point(subject: Subject, inputs: Inputs, base: Tensor) -> None:
    """Change the inputs where they lie, behind one position, and look at what the method makes of it.

    `base` is its output (B, H, N, Dv) on the inputs as they are; afterwards they are that again. Raises IncorrectError
    if the output is not that of the same values elsewhere, if that of the last position takes no notice of other
    values, or if, under a causal mask, one up to the position does.
    """
    method, point = subject.method, subject.point
    changed = _changed(inputs, point.is_causal, point.is_causal and not subject.causal_in_q)
    with torch.no_grad(), replaced(inputs, changed):
        got = accuracy.check_output(subject.call(*inputs), inputs[0], inputs[2], finite=not point.is_causal).clone()
        elsewhere = subject.call(*copies(inputs))
    where = f"; so at seq_len={point.seq_len}, whatever it does at shorter ones"
    tolerance = accuracy.EXACT_TOLERANCES[point.dtype]
    moved = difference(elsewhere, got, method, point.dtype)
    if moved is not None:
        raise IncorrectError(f"{MEMOISED_IN_PLACE} (relative difference {moved:.3g}){where}")
    last = got[:, :, -1], base[:, :, -1]
    if "v" not in method.ignores and not torch.equal(inputs[2], changed[2]) and torch.equal(*last):
        raise IncorrectError(
            f"the output of the last position stays the same when the values of other positions change{where}"
        )
    if point.is_causal:
        t = _position(point.seq_len)
        before, after = base[:, :, : t + 1], got[:, :, : t + 1]
        rounds = subject.item.exact or not method.deterministic
        stays = accuracy.relative_frobenius(after, before) <= tolerance if rounds else torch.equal(after, before)
        if not stays:
            raise IncorrectError(f"{NOT_CAUSAL} {t} change with the keys or the values after it{where}")


def _position(seq_len: int) -> int:
    """A position that is no round number of blocks for most of their sizes."""
    return seq_len // 3


def _changed(inputs: Inputs, is_causal: bool, keep_queries: bool) -> Inputs:
    """The inputs with others at all positions but the last, of a causal point at those behind one position.

    Keys are others, in another order of their sizes; values have the other sign.
    """
    q, k, v = copies(inputs)
    part = slice(_position(q.shape[2]) + 1 if is_causal else 0, q.shape[2] - 1)
    if not keep_queries:
        q[:, :, part] = q[:, :, part].roll(1, 2)
    k[:, :, part] = -k[:, :, part].roll(1, 2)
    v[:, :, part] = -v[:, :, part]
    return q, k, v
