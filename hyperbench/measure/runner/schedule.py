"""Which rounds a group of points gets, and in which order its methods are measured in each of them. No torch.

A round is a fresh worker process. What a method leaves behind (a warm cache, a hot chip, a grown heap) meets the one
measured after it, so the order changes from round to round, and over the rounds no method is favoured.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

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


class Plan:
    """The rounds of every group under the origin that begins with `first_round`, on what is finished already.

    An origin is one state of code, libraries and driver. Rounds that an earlier one finished for a whole group count;
    the rest of the protocol's rounds are measured anew, all methods of the group, so that every round has one origin.
    `limits` knows which passes are too slow for another round of this origin, `past` for another one of those before.
    """

    def __init__(
        self,
        config: RunConfig,
        groups: Iterable[work_items.Group],
        first_round: int,
        finished: set[work_items.Key],
        stages: work_items.FinishedStages,
        limits: work_items.RoundLimits | None = None,
        past: work_items.RoundLimits | None = None,
    ) -> None:
        self._config = config
        self._seed = config.config_hash
        self._stages = stages if config.stages else None
        self._limits, self._past = limits, past
        self._rounds = {
            group.key: range(first_round, first_round + self._missing(group, first_round, finished)) for group in groups
        }
        self.first_round = first_round

    @property
    def rounds(self) -> range:
        """All rounds that some group gets."""
        return range(self.first_round, max((r.stop for r in self._rounds.values()), default=self.first_round))

    def todos(self, group: work_items.Group, round_: int, finished: set[work_items.Key]) -> tuple[work_items.Todo, ...]:
        """What the cells of a group still need in a round, in the order of that round."""
        if round_ not in self._rounds[group.key]:
            return ()
        found = self._needs(group, round_, finished, self._limits, errors_in=self.first_round)
        places = order(len(found), round_, f"{self._seed}:{group.key}")
        return tuple(found[place] for place in places if not found[place].is_empty)

    def _missing(self, group: work_items.Group, first_round: int, finished: set[work_items.Key]) -> int:
        """The rounds that earlier origins left to be measured; one at least where errors are missing."""
        left = self._config.protocol.rounds
        left -= sum(
            all(wanted.is_empty for wanted in self._needs(group, round_, finished, self._past, errors_in=None))
            for round_ in range(first_round)
        )
        if left < 1 and any(
            w.seeds for w in self._needs(group, first_round, finished, self._limits, errors_in=first_round)
        ):
            return 1
        return max(0, left)

    def _needs(
        self,
        group: work_items.Group,
        round_: int,
        finished: set[work_items.Key],
        limits: work_items.RoundLimits | None,
        *,
        errors_in: int | None,
    ) -> list[work_items.Todo]:
        config = self._config
        return [
            work_items.todo(
                cell, config.passes, config.error, round_, finished, self._stages, errors_in=errors_in, limits=limits
            )
            for cell in group.cells
        ]
