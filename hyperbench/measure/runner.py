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
from hyperbench.measure.child import Child, WorkerGone, WorkerTimeout
from hyperbench.measure.wire import Task
from hyperbench.schema import Point, Record, Stage, Status, Timing, from_json
from hyperbench.store import Journal

_START_LIMIT_S = 300.0
_SIGKILL = -9
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


@dataclass
class Outcome:
    """What a run has written: how many rows of times and of stages of each status, and whether it was interrupted."""

    statuses: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    stage_statuses: Counter[str] = field(default_factory=Counter)


class MeasureError(ChildProcessError):
    """The run cannot go on at all: its workers do not start."""


class Runner:
    """Measures all cells that are not finished yet.

    `history` are the records that the journal holds already. `spawn` starts a worker process.
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
        flops_per_s: float = 1e11,
    ) -> None:
        self._config = config
        self._groups = grid.group(cells)
        self._points = {cell.point.point_id: cell for cell in cells}
        self._journal = journal
        self._spawn = spawn
        self._listener = listener
        self._flops_per_s = flops_per_s
        self._child: Child | None = None
        self._costs: dict[tuple[str, str], float] = {}
        self._finished: set[grid.Key] = set()
        self._stages = grid.FinishedStages()
        self._limits = grid.RoundLimits(config.protocol)
        self._oom: dict[str, Point] = {}
        self._no_reference: dict[str, str] = {}
        for record in history:
            if record.status.has_timing or not retry_failed:
                self._note(record)

    def remaining_s(self) -> float:
        """Seconds that everything not finished is likely to take."""
        rounds = range(self._config.protocol.rounds)
        todos = (wanted for round_ in rounds for group in self._groups for wanted in self._todos(group, round_))
        return sum(sum(grid.estimate_s(w, self._config, self._flops_per_s).values()) for w in todos)

    def run(self) -> Outcome:
        """Measure until all is done or Ctrl-C. Raises MeasureError if workers do not start."""
        outcome = Outcome()
        try:
            for round_ in range(self._config.protocol.rounds):
                # A round is a fresh process: what differs between processes is part of the noise.
                self._end_child()
                for group in self._groups:
                    self._measure(group, round_, outcome)
        except KeyboardInterrupt:
            outcome.interrupted = True
        finally:
            self._end_child()
        return outcome

    def _measure(self, group: grid.Group, round_: int, outcome: Outcome) -> None:
        """Bring one group to its end, with as many workers as it takes."""
        self._costs = {
            (wanted.cell.point.point_id, part): cost_s
            for wanted in self._todos(group, round_)
            for part, cost_s in grid.estimate_s(wanted, self._config, self._flops_per_s).items()
        }
        while todos := self._todos(group, round_):
            skipped = False
            for wanted in todos:
                shorter = grid.expects_skip(wanted.cell.point, self._oom.values())
                if shorter is not None:
                    message = f"not tried: it ran out of memory at seq_len={shorter.seq_len}"
                    self._give_up(wanted, round_, Status.SKIPPED_AFTER_OOM, message, outcome)
                    skipped = True
            if skipped:
                continue
            with_reference = group.key not in self._no_reference
            self._run_worker(group, todos, round_, outcome)
            gave_up_reference = with_reference and group.key in self._no_reference
            if self._todos(group, round_) == todos and not gave_up_reference:
                for wanted in todos:
                    self._give_up(wanted, round_, Status.ERROR, "the worker reported nothing for it", outcome)
        for part in list(self._costs):
            self._advance(part)

    def _todos(self, group: grid.Group, round_: int) -> tuple[grid.Todo, ...]:
        config = self._config
        stages = self._stages if config.stages else None
        found = (
            grid.todo(cell, config.passes, config.error, round_, self._finished, stages, self._limits)
            for cell in group.cells
        )
        return tuple(wanted for wanted in found if not wanted.is_empty)

    def _run_worker(self, group: grid.Group, todos: tuple[grid.Todo, ...], round_: int, outcome: Outcome) -> None:
        """Send the group to a worker and listen until it is done or the worker is gone."""
        config = self._config
        child = self._ready_child()
        task = Task(
            todos, config.passes, config.protocol, config.error, round_, config.device.threads,
            self._no_reference.get(group.key, ""),
        )  # fmt: skip
        unit: dict[str, Any] = {"unit": "start", "point_id": None}
        try:
            child.send(task)
            while (message := child.receive(config.protocol.timeout_s))["event"] != "done":
                if message["event"] == "leave":
                    return self._end_child()
                if message["event"] == "record":
                    self._write(from_json(message["record"]), outcome)
                else:
                    unit = message
                    self._listener.begin(self._label(group, unit))
        except WorkerTimeout:
            self._end_child()
            limit_s = config.protocol.timeout_s
            self._blame(group, round_, unit, Status.TIMEOUT, f"took longer than {limit_s:g} s", outcome)
        except WorkerGone as gone:
            self._end_child()
            status = Status.OOM if gone.returncode == _SIGKILL else Status.ERROR
            self._blame(group, round_, unit, status, str(gone), outcome)

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
        self._journal.append(record)
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
        self._finished.add(record.key)
        self._limits.add(record)
        if isinstance(record, Stage):
            self._stages.add(record)
        if record.status is Status.OOM:
            self._oom[record.point.point_id] = record.point

    def _ready_child(self) -> Child:
        if self._child is None:
            child = self._child = self._spawn()
            try:
                child.receive(_START_LIMIT_S)
            except (WorkerGone, WorkerTimeout) as error:
                reason = str(error) or f"it was not ready within {_START_LIMIT_S:g} s"
                raise MeasureError(
                    f"a worker process did not start: {reason}; see worker.log in the run's folder"
                ) from None
        return self._child

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _label(self, group: grid.Group, unit: dict[str, Any]) -> str:
        cell = self._points.get(unit["point_id"])
        what = unit["unit"] if unit["unit"] in ("reference", "inputs") else getattr(cell and cell.point, "method", "")
        # What changes comes first: a narrow terminal shows the beginning.
        parts = (str(what), unit.get("pass") or unit.get("stage") or "", group.label)
        return " ".join(part for part in parts if part)
