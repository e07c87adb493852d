"""Trade-offs of a gain (speed: more is better) and a loss (error: less is better): Pareto front, dominated region."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Gain and loss, both numbers.
Choice = tuple[float, float]


def pareto_front(choices: Sequence[Choice]) -> list[int]:
    """Indices of the choices that no other dominates, in the order of their gains.

    A choice dominates another if it has no less gain and no more loss, and is not equal to it; of equal ones the first
    stands for all.
    """
    best_first = sorted(range(len(choices)), key=lambda i: (-choices[i][0], choices[i][1], i))
    front: list[int] = []
    least = math.inf
    for i in best_first:
        if choices[i][1] < least:
            front.append(i)
            least = choices[i][1]
    return front[::-1]


def dominated_outline(choices: Sequence[Choice], least_gain: float, most_loss: float) -> list[Choice]:
    """Corners of the region that the choices dominate: no more gain and no less loss than one of them, within bounds.

    Stairs from the least gain to the greatest of a choice, then back along the most loss; empty without a choice.
    """
    front = [choices[i] for i in pareto_front(choices)]
    if not front:
        return []
    corners, reached = [(least_gain, most_loss)], least_gain
    for gain, loss in front:
        corners += [(reached, loss), (gain, loss)]
        reached = gain
    return [*corners, (reached, most_loss)]
