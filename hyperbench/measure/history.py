"""What is known from the records that there are: what is finished, and what need not be tried. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from hyperbench.measure import grid
from hyperbench.schema import Point, Record, Stage, Status, Timing
from hyperbench.validate import ProtocolConfig


class History:
    """Takes note of every record, of earlier sessions and of this one.

    Rounds before `first_round` are of another origin: of those, `past` knows which passes were too slow for another
    round, and of the others `limits`. `finished` holds the keys of all records, `stages` which stages have one.
    """

    def __init__(self, protocol: ProtocolConfig, first_round: int) -> None:
        self.finished: set[grid.Key] = set()
        self.stages = grid.FinishedStages()
        self.limits, self.past = grid.RoundLimits(protocol), grid.RoundLimits(protocol)
        self._first_round = first_round
        self._oom: dict[str, Point] = {}
        self._incorrect: dict[tuple[str, str], str] = {}

    def add(self, record: Record) -> None:
        """Take note of a record."""
        first = self._first_round
        self.finished.add(record.key)
        (self.past if getattr(record, "round", first) < first else self.limits).add(record)
        if isinstance(record, Stage):
            self.stages.add(record)
        if record.status is Status.OOM:
            self._oom[record.point.point_id] = record.point
        # What other code got wrong may be right now.
        if isinstance(record, Timing) and record.status is Status.INCORRECT and record.round >= first:
            self._incorrect[record.point.point_id, str(record.pass_)] = record.message

    def hopeless(self, todos: Sequence[grid.Todo]) -> list[tuple[grid.Todo, Status, str]]:
        """What is not to be tried, with the status and the message that it gets; ask again when that is written.

        Passes that were wrong in an earlier round (later ones have no reference to see it by), else cells of which a
        shorter one ran out of memory.
        """
        return self._wrong(todos) or self._too_large(todos)

    def _wrong(self, todos: Sequence[grid.Todo]) -> list[tuple[grid.Todo, Status, str]]:
        return [
            (grid.Todo(wanted.cell, (pass_,), ()), Status.INCORRECT, self._incorrect[place])
            for wanted in todos
            for pass_ in wanted.passes
            if (place := (wanted.cell.point.point_id, str(pass_))) in self._incorrect
        ]

    def _too_large(self, todos: Sequence[grid.Todo]) -> list[tuple[grid.Todo, Status, str]]:
        found = ((wanted, grid.expects_skip(wanted.cell.point, self._oom.values())) for wanted in todos)
        return [
            (wanted, Status.SKIPPED_AFTER_OOM, f"not tried: it ran out of memory at seq_len={shorter.seq_len}")
            for wanted, shorter in found
            if shorter is not None
        ]
