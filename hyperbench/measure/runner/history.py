"""What is known from the records that there are: what is finished, and what need not be tried. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hyperbench.config.types import ProtocolConfig
from hyperbench.measure import work_items
from hyperbench.measure.runner.worker_process import tells_of_a_crash
from hyperbench.store.schema import ErrorRow, Pass, Point, Record, Status, Timing

Hopeless = tuple[work_items.Todo, Status, str]


class History:
    """Takes note of every record, of earlier sessions and of this one.

    Rounds before `first_round` are of another origin: of those, `past` knows which passes were too slow for another
    round, and of the others `limits`. `finished` holds the keys of all records, `stages` which stages have one.
    """

    def __init__(self, protocol: ProtocolConfig, first_round: int) -> None:
        self.finished: set[work_items.Key] = set()
        self.stages = work_items.FinishedStages()
        self.limits, self.past = work_items.RoundLimits(protocol), work_items.RoundLimits(protocol)
        self._first_round = first_round
        # What ran out of memory, by its kind: the whole of a point, or one of its parts alone.
        self._oom: dict[str, dict[str, Point]] = {"all": {}, "backward": {}, "stages": {}}
        self._refused: dict[tuple[str, str], tuple[Status, str]] = {}
        self._failed_backward: dict[tuple[str, int, str], tuple[Status, str]] = {}

    def add(self, record: Record) -> None:
        """Take note of a record."""
        first = self._first_round
        self.finished.add(record.key)
        (self.past if getattr(record, "round", first) < first else self.limits).add(record)
        if isinstance(record, Timing) and record.stage:
            self.stages.add(record)
        if record.status is Status.OOM:
            self._oom[_part_of(record)][record.point.point_id] = record.point
        if isinstance(record, Timing) and record.pass_ is not Pass.FORWARD and not record.status.has_timing:
            failed = record.point.point_id, record.round, str(record.pass_)
            self._failed_backward[failed] = record.status, record.message
        # What other code got wrong may be right now.
        if isinstance(record, Timing) and not record.stage and _stays_so(record) and record.round >= first:
            self._refused[record.point.point_id, str(record.pass_)] = record.status, record.message

    def hopeless(self, todos: Sequence[work_items.Todo]) -> list[Hopeless]:
        """What is not to be tried, with the status and the message that it gets; ask again when that is written.

        Passes that were wrong, hung or ended their worker in an earlier round, else what ran out of memory at a shorter
        point: all of the cell, or, where the forward pass did not, its backward passes or its stages.
        """
        return self._refused_before(todos) or self._too_large(todos)

    def without_backward(
        self, todos: Sequence[work_items.Todo], passes: Iterable[str], round_: int
    ) -> dict[str, tuple[Status, str]]:
        """The points, by id, of which every backward pass has failed in this round, each with how.

        None is to be called for the errors of its gradients alone.
        """
        backward = [str(p) for p in passes if p != Pass.FORWARD]
        found = {}
        for wanted in todos:
            point_id = wanted.cell.point.point_id
            failed = [self._failed_backward.get((point_id, round_, p)) for p in backward]
            if failed and failed[0] is not None and None not in failed:
                found[point_id] = failed[0]
        return found

    def _refused_before(self, todos: Sequence[work_items.Todo]) -> list[Hopeless]:
        return [
            (work_items.Todo(wanted.cell, (pass_,), ()), *self._refused[place])
            for wanted in todos
            for pass_ in wanted.passes
            if (place := (wanted.cell.point.point_id, str(pass_))) in self._refused
        ]

    def _too_large(self, todos: Sequence[work_items.Todo]) -> list[Hopeless]:
        found = []
        for wanted in todos:
            parts = {
                "all": wanted,
                "backward": work_items.Todo(wanted.cell, tuple(p for p in wanted.passes if p is not Pass.FORWARD), ()),
                "stages": work_items.Todo(wanted.cell, (), (), wanted.stages, wanted.timed_stages),
            }
            for name, part in parts.items():
                shorter = work_items.expects_skip(wanted.cell.point, self._oom[name].values())
                if shorter is not None and not part.is_empty:
                    message = f"not tried: it ran out of memory at seq_len={shorter.seq_len}"
                    found.append((part, Status.SKIPPED_AFTER_OOM, message))
                    if name == "all":
                        break
        return found


def _part_of(record: Record) -> str:
    """What of its point a record is about, as far as it says: not more than its backward passes, or its stages."""
    if isinstance(record, Timing) and record.stage:
        return "stages"
    of_gradients = isinstance(record, ErrorRow) and record.metric in work_items.GRAD_METRICS
    of_a_pass = isinstance(record, Timing) and record.pass_ is not Pass.FORWARD
    return "backward" if of_gradients or of_a_pass else "all"


def _stays_so(record: Timing) -> bool:
    """Whether a failure is one that another round would only pay for again.

    Later rounds have no reference to see a wrong answer by; a pass that hangs costs the limit each time.
    """
    crashed = record.status is Status.ERROR and tells_of_a_crash(record.message)
    return crashed or record.status in (Status.INCORRECT, Status.TIMEOUT)
