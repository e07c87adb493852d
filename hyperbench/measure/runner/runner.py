"""The parent: hands groups of points to worker processes, writes what they report, and survives whatever they do.

A crash, a timeout or exhausted memory becomes rows, a new worker takes the rest, and the sweep goes on. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hyperbench.config.compose import RunConfig
from hyperbench.measure import work_items
from hyperbench.measure.messages import Task
from hyperbench.measure.runner.estimate import Speed, group_s, plan_s
from hyperbench.measure.runner.failure_policy import START, FailurePolicy, Unit, status_of
from hyperbench.measure.runner.history import History
from hyperbench.measure.runner.interrupts import AtOnce, Interrupts
from hyperbench.measure.runner.outcome import Listener, Outcome
from hyperbench.measure.runner.schedule import items_of
from hyperbench.measure.runner.time_breakdown import Account, part_of
from hyperbench.measure.runner.worker_process import Child, WorkerGone, WorkerTimeout
from hyperbench.store.journal import Journal
from hyperbench.store.record_json import from_json
from hyperbench.store.schema import ErrorRow, Point, Record, Status, Timing

_START_LIMIT_S = 300.0
#: What a worker says when it will measure no more of a task.
_LAST_WORDS = ("done", "leave", "stopped")


class MeasureError(ChildProcessError):
    """The run cannot go on at all: its workers do not start."""


class Runner:
    """Measurement of all points, as far as they are not finished yet.

    `history` are the records that the journal holds already, `spawn` starts a worker process.
    """

    def __init__(
        self,
        config: RunConfig,
        points: Sequence[Point],
        journal: Journal,
        spawn: Callable[[], Child],
        listener: Listener,
        *,
        history: Iterable[Record] = (),
        retry_failed: bool = False,
        speed: Speed | None = None,
        account: Account | None = None,
    ) -> None:
        self._config = config
        self._groups = work_items.group(points)
        self._points = {point.point_id: point for point in points}
        self._journal = journal
        self._spawn = spawn
        self._listener = listener
        self._speed = speed or Speed()
        self._account = account or Account()
        self._interrupts = Interrupts(self._interrupt_child)
        self._child: Child | None = None
        self._start_cost_s = 0.0
        self._costs: dict[tuple[str, str], float] = {}
        self._policy = FailurePolicy()
        self._unit = START
        self._history = History(config.protocol, (r for r in history if r.status.has_timing or not retry_failed))

    def remaining_s(self) -> float:
        """Seconds that everything not finished is likely to take; zero if all is."""
        return sum(plan_s(self._groups, self._history.progress, self._config, self._speed).values())

    def run(self) -> Outcome:
        """Measure until all is done or Ctrl-C. Raises MeasureError if workers do not start, AtOnce at a second one."""
        outcome = Outcome()
        self._account.switch("workers")
        try:
            with self._interrupts:
                for round_ in range(self._config.protocol.rounds):
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
        if any(self._items(group, round_) for group in self._groups):
            self._start_cost_s = self._speed.start_s
        for group in self._groups:
            self._measure(group, round_, outcome)
        self._started()

    def _measure(self, group: work_items.Group, round_: int, outcome: Outcome) -> None:
        """Bring one group to its end, with as many workers as it takes."""
        self._costs = group_s(self._items(group, round_), self._config, self._speed)
        while items := self._items(group, round_):
            self._end_if_asked()
            if hopeless := self._history.hopeless(items):
                for item, status, message in hopeless:
                    self._give_up(item, round_, status, message, outcome)
                continue
            with_reference = group.key not in self._policy.no_reference
            again = self._run_worker(group, items, round_, outcome)
            self._end_if_asked()
            gave_up_reference = with_reference and group.key in self._policy.no_reference
            if self._items(group, round_) == items and not gave_up_reference and not again:
                for item in self._policy.silent(items, self._unit):
                    self._give_up(item, round_, Status.ERROR, "the worker reported nothing for it", outcome)
        for part in list(self._costs):
            self._advance(part)

    def _items(self, group: work_items.Group, round_: int) -> tuple[work_items.WorkItem, ...]:
        return items_of(group, round_, self._config, self._history.progress)

    def _run_worker(
        self, group: work_items.Group, items: tuple[work_items.WorkItem, ...], round_: int, outcome: Outcome
    ) -> bool:
        """Send the group to a worker and listen until it is done or gone; true if the same is to be tried once more."""
        config = self._config
        child = self._ready_child(round_)
        task = Task(
            items, config.passes, config.protocol, config.error, round_, config.device.threads,
            self._policy.no_reference.get(group.key, ""),
            self._history.without_backward(items, config.passes, round_),
        )  # fmt: skip
        unit = self._unit = START
        try:
            child.send(task)
            while (message := child.receive(config.protocol.timeout_s))["event"] not in _LAST_WORDS:
                if message["event"] == "record":
                    self._write(from_json(message["record"]), outcome)
                else:
                    unit = self._unit = message
                    self._account.switch(part_of(unit["unit"]))
                    self._listener.begin(self._label(group, unit))
            self._account.switch("workers")
            if message["event"] != "done":
                self._end_child()
        except WorkerTimeout:
            self._account.switch("workers")
            self._end_child()
            limit_s = config.protocol.timeout_s
            self._give_up_blamed(group, round_, unit, Status.TIMEOUT, f"took longer than {limit_s:g} s", outcome)
        except WorkerGone as gone:
            self._account.switch("workers")
            self._end_child()
            if self._interrupts.asked:
                return False
            if self._policy.may_be_no_fault(gone, round_, unit):
                return True
            self._give_up_blamed(group, round_, unit, status_of(gone), str(gone), outcome)
        return False

    def _give_up_blamed(
        self, group: work_items.Group, round_: int, unit: Unit, status: Status, message: str, outcome: Outcome
    ) -> None:
        for item in self._policy.blamed(group, self._items(group, round_), unit, message):
            self._give_up(item, round_, status, f"{unit['unit']}: {message}", outcome)

    def _give_up(self, item: work_items.WorkItem, round_: int, status: Status, message: str, outcome: Outcome) -> None:
        config = self._config
        for record in work_items.failed_records(
            item, config.passes, config.error, config.protocol.name, round_, status, message
        ):
            self._write(record, outcome)

    def _write(self, record: Record, outcome: Outcome) -> None:
        # The errors of a seed are measured together: after a kill some of them come a second time.
        if isinstance(record, ErrorRow) and record.key in self._history.progress.finished:
            return
        self._journal.append(record)
        self._account.sampled(record)
        part = "check"
        if isinstance(record, Timing):
            (outcome.stage_statuses if record.stage else outcome.statuses)[record.status] += 1
            part = "stages" if record.stage else str(record.pass_)
        self._history.add(record)
        self._listener.row(record)
        self._advance((record.point.point_id, part))

    def _advance(self, part: tuple[str, str]) -> None:
        cost_s = self._costs.pop(part, None)
        if cost_s is not None:
            self._listener.finished(cost_s)

    def _ready_child(self, round_: int) -> Child:
        while self._child is None:
            child = self._child = self._spawn()
            # Whoever asked before the child was known here has not reached it.
            self._end_if_asked()
            try:
                child.receive(_START_LIMIT_S)
            except (WorkerGone, WorkerTimeout) as error:
                self._end_if_asked()
                if isinstance(error, WorkerGone) and self._policy.may_be_no_fault(error, round_, START):
                    self._end_child()
                    continue
                reason = str(error) or f"it was not ready within {_START_LIMIT_S:g} s"
                raise MeasureError(
                    f"a worker process did not start: {reason}; see worker.log in the run's folder"
                ) from None
            self._started()
            self._end_if_asked()
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

    def _label(self, group: work_items.Group, unit: Unit) -> str:
        point = self._points.get(unit["point_id"])
        what = unit["unit"] if unit["unit"] in ("reference", "inputs") else getattr(point, "method", "")
        # What changes comes first: a narrow terminal shows the beginning.
        parts = (str(what), unit.get("pass") or unit.get("stage") or "", group.label)
        return " ".join(part for part in parts if part)
