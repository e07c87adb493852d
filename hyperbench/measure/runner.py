"""The parent: hands groups of cells to worker processes, writes what they report, and survives whatever they do.

A crash, a timeout or exhausted memory becomes rows, a new worker takes the rest, and the sweep goes on. No torch here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hyperbench.config import RunConfig
from hyperbench.measure import grid
from hyperbench.measure.account import Account, part_of
from hyperbench.measure.child import Child, WorkerGone, WorkerTimeout
from hyperbench.measure.estimate import Speed, group_s, plan_s
from hyperbench.measure.interrupts import AtOnce, Interrupts
from hyperbench.measure.rounds import Plan
from hyperbench.measure.wire import Task
from hyperbench.record_json import from_json
from hyperbench.schema import ErrorRow, Point, Record, Stage, Status, Timing
from hyperbench.store import Journal

_START_LIMIT_S = 300.0
_SIGKILL = -9
#: What a worker says when it will measure no more of a task.
_LAST_WORDS = ("done", "leave", "stopped")
#: Rows that are no failure; `unsupported` is an answer.
GOOD_STATUSES = (Status.OK, Status.THROTTLED, Status.UNSUPPORTED)


class Listener(Protocol):
    """Hears how a run gets on."""

    def begin(self, label: str) -> None:
        """A new piece of work begins."""
        ...

    def finished(self, cost_s: float) -> None:
        """A part of a cell, of this estimated cost, is done."""
        ...

    def row(self, record: Record) -> None:
        """A record has been written."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know."""
        ...


@dataclass
class Outcome:
    """What a run has written: how many rows of times and of stages of each status, and whether it was interrupted.

    `time` says where the time went (see Account.report); empty where nobody kept account.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    stage_statuses: Counter[str] = field(default_factory=Counter)
    time: dict[str, Any] = field(default_factory=dict)


class MeasureError(ChildProcessError):
    """The run cannot go on at all: its workers do not start."""


class Runner:
    """Measures all cells that are not finished yet.

    `history` are the records that the journal holds already; rounds before `first_round` are of another origin, they
    count as far as a group is finished in them and are not added to. `spawn` starts a worker process.
    """

    def __init__(
        self,
        config: RunConfig,
        cells: Sequence[grid.Cell],
        journal: Journal,
        spawn: Callable[[], Child],
        listener: Listener,
        *,
        history: Iterable[Record] = (),
        retry_failed: bool = False,
        speed: Speed | None = None,
        first_round: int = 0,
        account: Account | None = None,
    ) -> None:
        self._config = config
        self._groups = grid.group(cells)
        self._points = {cell.point.point_id: cell for cell in cells}
        self._journal = journal
        self._spawn = spawn
        self._listener = listener
        self._speed = speed or Speed()
        self._account = account or Account()
        self._interrupts = Interrupts(self._interrupt_child)
        self._child: Child | None = None
        self._start_cost_s = 0.0
        self._costs: dict[tuple[str, str], float] = {}
        self._finished: set[grid.Key] = set()
        self._stages = grid.FinishedStages()
        self._limits, self._past = grid.RoundLimits(config.protocol), grid.RoundLimits(config.protocol)
        self._oom: dict[str, Point] = {}
        self._no_reference: dict[str, str] = {}
        self._first_round = first_round
        self._incorrect: dict[tuple[str, str], str] = {}
        self._killed: set[tuple[Any, ...]] = set()
        for record in history:
            if record.status.has_timing or not retry_failed:
                self._note(record)
        self._plan = Plan(config, self._groups, first_round, self._finished, self._stages, self._limits, self._past)

    def remaining_s(self) -> float:
        """Seconds that everything not finished is likely to take; zero if all is."""
        return sum(plan_s(self._groups, self._plan, self._finished, self._config, self._speed).values())

    def run(self) -> Outcome:
        """Measure until all is done or Ctrl-C. Raises MeasureError if workers do not start, AtOnce at a second one."""
        outcome = Outcome()
        self._account.switch("workers")
        try:
            with self._interrupts:
                for round_ in self._plan.rounds:
                    self._run_round(round_, outcome)
        except AtOnce:
            raise
        except KeyboardInterrupt:
            outcome.interrupted = True
        finally:
            self._account.switch("workers")
            self._end_child()
        return outcome

    def _run_round(self, round_: int, outcome: Outcome) -> None:
        # A round is a fresh process: what differs between processes is part of the noise.
        self._end_child()
        if any(self._plan.todos(group, round_, self._finished) for group in self._groups):
            self._start_cost_s = self._speed.start_s
        for group in self._groups:
            self._measure(group, round_, outcome)
        self._started()

    def _measure(self, group: grid.Group, round_: int, outcome: Outcome) -> None:
        """Bring one group to its end, with as many workers as it takes."""
        self._costs = group_s(self._todos(group, round_), self._config, self._speed)
        while todos := self._todos(group, round_):
            self._end_if_asked()
            skipped = self._refuse_again(todos, round_, outcome)
            for wanted in todos:
                shorter = grid.expects_skip(wanted.cell.point, self._oom.values())
                if shorter is not None:
                    message = f"not tried: it ran out of memory at seq_len={shorter.seq_len}"
                    self._give_up(wanted, round_, Status.SKIPPED_AFTER_OOM, message, outcome)
                    skipped = True
            if skipped:
                continue
            with_reference = group.key not in self._no_reference
            again = self._run_worker(group, todos, round_, outcome)
            self._end_if_asked()
            gave_up_reference = with_reference and group.key in self._no_reference
            if self._todos(group, round_) == todos and not gave_up_reference and not again:
                for wanted in todos:
                    self._give_up(wanted, round_, Status.ERROR, "the worker reported nothing for it", outcome)
        for part in list(self._costs):
            self._advance(part)

    def _refuse_again(self, todos: tuple[grid.Todo, ...], round_: int, outcome: Outcome) -> bool:
        """Refuse passes that were wrong in an earlier round; whether there were any.

        Later rounds have no reference to see it by.
        """
        refused = False
        for wanted in todos:
            for pass_ in wanted.passes:
                message = self._incorrect.get((wanted.cell.point.point_id, str(pass_)))
                if message is not None:
                    self._give_up(grid.Todo(wanted.cell, (pass_,), ()), round_, Status.INCORRECT, message, outcome)
                    refused = True
        return refused

    def _todos(self, group: grid.Group, round_: int) -> tuple[grid.Todo, ...]:
        return self._plan.todos(group, round_, self._finished)

    def _run_worker(self, group: grid.Group, todos: tuple[grid.Todo, ...], round_: int, outcome: Outcome) -> bool:
        """Send the group to a worker and listen until it is done or gone; whether the same is to be tried once more."""
        config = self._config
        child = self._ready_child(round_)
        task = Task(
            todos, config.passes, config.protocol, config.error, round_, config.device.threads,
            self._no_reference.get(group.key, ""),
        )  # fmt: skip
        unit: dict[str, Any] = {"unit": "start", "point_id": None}
        try:
            child.send(task)
            while (message := child.receive(config.protocol.timeout_s))["event"] not in _LAST_WORDS:
                if message["event"] == "record":
                    self._write(from_json(message["record"]), outcome)
                else:
                    unit = message
                    self._account.switch(part_of(unit["unit"]))
                    self._listener.begin(self._label(group, unit))
            self._account.switch("workers")
            if message["event"] != "done":
                self._end_child()
        except WorkerTimeout:
            self._account.switch("workers")
            self._end_child()
            limit_s = config.protocol.timeout_s
            self._blame(group, round_, unit, Status.TIMEOUT, f"took longer than {limit_s:g} s", outcome)
        except WorkerGone as gone:
            self._account.switch("workers")
            self._end_child()
            if self._interrupts.asked:
                return False
            if self._may_be_no_fault(gone, round_, unit):
                return True
            status = Status.OOM if gone.returncode == _SIGKILL else Status.ERROR
            self._blame(group, round_, unit, status, str(gone), outcome)
        return False

    def _may_be_no_fault(self, gone: WorkerGone, round_: int, unit: dict[str, Any]) -> bool:
        """Whether a worker was killed at this for the first time, and not by the kernel: it is then tried once more."""
        if gone.returncode != _SIGKILL or gone.out_of_memory:
            return False
        place = (round_, *(unit.get(key) for key in ("unit", "point_id", "pass", "stage")))
        is_first = place not in self._killed
        self._killed.add(place)
        return is_first

    def _blame(
        self,
        group: grid.Group,
        round_: int,
        unit: dict[str, Any],
        status: Status,
        message: str,
        outcome: Outcome,
    ) -> None:
        """Put the end of a worker down to what it was doing, so that the next worker does not meet the same end."""
        if unit["unit"] == "reference" and group.key not in self._no_reference:
            self._no_reference[group.key] = f"no reference: {message}"
            return
        common = unit["unit"] in ("start", "inputs", "reference")
        blamed = [w for w in self._todos(group, round_) if common or w.cell.point.point_id == unit["point_id"]]
        # A worker that dies with nothing left to blame would be started for ever.
        for wanted in blamed or self._todos(group, round_):
            self._give_up(wanted, round_, status, f"{unit['unit']}: {message}", outcome)

    def _give_up(self, wanted: grid.Todo, round_: int, status: Status, message: str, outcome: Outcome) -> None:
        config = self._config
        for record in grid.failed_records(
            wanted, config.passes, config.error, config.protocol.name, round_, status, message
        ):
            self._write(record, outcome)

    def _write(self, record: Record, outcome: Outcome) -> None:
        # The errors of a seed are measured together: after a kill some of them come a second time.
        if isinstance(record, ErrorRow) and record.key in self._finished:
            return
        self._journal.append(record)
        self._account.sampled(record)
        part = "check"
        if isinstance(record, Timing):
            outcome.statuses[record.status] += 1
            part = str(record.pass_)
        elif isinstance(record, Stage):
            outcome.stage_statuses[record.status] += 1
            part = "stages"
        self._note(record)
        self._listener.row(record)
        self._advance((record.point.point_id, part))

    def _advance(self, part: tuple[str, str]) -> None:
        cost_s = self._costs.pop(part, None)
        if cost_s is not None:
            self._listener.finished(cost_s)

    def _note(self, record: Record) -> None:
        first = self._first_round
        self._finished.add(record.key)
        (self._past if getattr(record, "round", first) < first else self._limits).add(record)
        if isinstance(record, Stage):
            self._stages.add(record)
        if record.status is Status.OOM:
            self._oom[record.point.point_id] = record.point
        # What other code got wrong may be right now.
        if isinstance(record, Timing) and record.status is Status.INCORRECT and record.round >= first:
            self._incorrect[record.point.point_id, str(record.pass_)] = record.message

    def _ready_child(self, round_: int) -> Child:
        while self._child is None:
            child = self._child = self._spawn()
            try:
                child.receive(_START_LIMIT_S)
            except (WorkerGone, WorkerTimeout) as error:
                self._end_if_asked()
                if isinstance(error, WorkerGone) and self._may_be_no_fault(error, round_, {"unit": "start"}):
                    self._end_child()
                    continue
                reason = str(error) or f"it was not ready within {_START_LIMIT_S:g} s"
                raise MeasureError(
                    f"a worker process did not start: {reason}; see worker.log in the run's folder"
                ) from None
            self._started()
        return self._child

    def _started(self) -> None:
        if self._start_cost_s:
            self._listener.finished(self._start_cost_s)
            self._start_cost_s = 0.0

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _interrupt_child(self) -> None:
        if self._child is not None:
            self._child.interrupt()

    def _end_if_asked(self) -> None:
        if self._interrupts.asked:
            raise KeyboardInterrupt

    def _label(self, group: grid.Group, unit: dict[str, Any]) -> str:
        cell = self._points.get(unit["point_id"])
        what = unit["unit"] if unit["unit"] in ("reference", "inputs") else getattr(cell and cell.point, "method", "")
        # What changes comes first: a narrow terminal shows the beginning.
        parts = (str(what), unit.get("pass") or unit.get("stage") or "", group.label)
        return " ".join(part for part in parts if part)
