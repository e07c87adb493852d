"""Order of the methods of a group in each round. No torch.

A round is a fresh worker process. What a method leaves behind (a warm cache, a hot chip, a grown heap) meets the one
measured after it, so the order changes from round to round, and over the rounds no method is favoured.
"""

from __future__ import annotations

import random

from hyperbench.config.compose import RunConfig
from hyperbench.measure import work_items


def order(count: int, round_: int, seed: str) -> tuple[int, ...]:
    """The places 0 to count-1 in the order in which a round measures them; drawn by the seed, and balanced.

    Rounds come in squares of `count`: within one, everything stands once at every place. As in a Williams design, each
    is followed by each other one equally often, over one square where count is even and over two where it is odd.
    """
    square, row = divmod(round_, count)
    names = random.Random(f"{seed}:{square // 2}").sample(range(count), count)
    rows = random.Random(f"{seed}:{square // 2}:{square % 2}").sample(range(count), count)
    # 0, 1, -1, 2, -2, ...: the steps between neighbours are all different.
    zigzag = [(step + 1) // 2 if step % 2 else -(step // 2) for step in range(count)]
    found = [names[(step + rows[row]) % count] for step in zigzag]
    return tuple(reversed(found) if count % 2 and square % 2 else found)


def items_of(
    group: work_items.Group, round_: int, config: RunConfig, progress: work_items.Progress
) -> tuple[work_items.WorkItem, ...]:
    """The work items of a group in a round, in the order of that round, as far as something is left to do."""
    points = group.points
    places = order(len(points), round_, f"{config.config_hash}:{group.key}")
    items = (work_items.remaining(points[place], config, round_, progress) for place in places)
    return tuple(item for item in items if not item.is_empty)
