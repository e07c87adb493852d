"""The parent: hands groups of points to worker processes, writes what they report, and survives whatever they do.

A crash, a timeout or exhausted memory becomes rows, a new worker takes the rest, and the sweep goes on. No torch here.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable
from dataclasses import replace

from hyperbench.child.code import difference
from hyperbench.measure.messages import NEXT, Event, Message, State, Task, Unit, Work
from hyperbench.measure.runner.estimate import group_s, plan_s
from hyperbench.measure.runner.failures import FailurePolicy, History, failure_of
from hyperbench.measure.runner.interrupts import ASKING, AtOnce, Interrupts
from hyperbench.measure.runner.outcome import Listener, Outcome, TimeBreakdown, part_of
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.schedule import items_of
from hyperbench.measure.runner.worker_process import Child, WorkerGone, WorkerTimeout
from hyperbench.measure.tries import Tries
from hyperbench.measure.work_items import Failure, Group, WorkItem, example_part, failed_records, groups_of
from hyperbench.store.journal import Journal
from hyperbench.store.schema import Cause, ErrorRow, Record, Status, Timing

_START_LIMIT_S = 300.0
#: A signal that ended the worker reaches this process within so many seconds, if it was sent to both.
_SIGNAL_S = 1.0
_START = Unit(Work.START)
_ENDED_TWICE = (
    "the run ended here twice, its own process together with the worker process, most likely for want of memory;"
    " --resume --retry-failed tries it again"
)


class MeasureError(ChildProcessError):
    """A run that cannot go on at all: its workers do not start."""


class Runner:
    """Measurement of all points of a run, as far as they are not finished yet.

    `history` are the records that the journal holds already, `tries` the units that had no end in earlier sessions;
    `spawn` starts a worker process.
    """

    def __init__(
        self,
        run: Prepared,
        journal: Journal,
        spawn: Callable[[], Child],
        listener: Listener,
        *,
        history: Iterable[Record] = (),
        tries: Tries | None = None,
        retry_failed: bool = False,
    ) -> None:
        self._config, self._speed, self._code = run.config, run.speed, run.code
        self._groups = groups_of(run.points, run.config.isolated_methods)
        self._points = {point.point_id: point for point in run.points}
        self._journal = journal
        self._spawn = spawn
        self._listener = listener
        self.time = TimeBreakdown(began_s=run.began_s)
        self.outcome = Outcome(records=list(history))
        self._interrupts = Interrupts(self._interrupt_child)
        self._child: Child | None = None
        self._start_cost_s = 0.0
        self._costs: dict[tuple[str, str], float] = {}
        self._policy = FailurePolicy()
        self._tries = tries or Tries()
        self._round = 0
        self._unit = _START
        known = (record for record in self.outcome.records if record.status.has_timing or not retry_failed)
        self._history = History(run.config.protocol, known)

    def remaining_s(self) -> float:
        """Seconds that everything not finished is likely to take; zero if all is."""
        return sum(plan_s(self._groups, self._history.progress, self._config, self._speed).values())

    def run(self) -> Outcome:
        """Measure until all is done or Ctrl-C. Raises MeasureError if workers do not start, AtOnce at a second one."""
        self.time.switch("workers")
        try:
            with self._interrupts:
                for round_ in range(self._config.protocol.rounds):
                    self._round = round_
                    self._run_round()
        except AtOnce:
            raise
        except KeyboardInterrupt:
            self.outcome.interrupted = True
        finally:
            self._end_child()
            self._tries.close()
        return self.outcome

    def _run_round(self) -> None:
        # A round is a fresh process, as is an isolated method: what differs between processes is part of the noise.
        for _, found in itertools.groupby(self._groups, key=lambda group: group.isolated):
            self._end_child()
            groups = list(found)
            if any(self._items(group) for group in groups):
                self._start_cost_s = self._speed.start_s
            for group in groups:
                self._measure(group)
            self._started()

    def _items(self, group: Group) -> tuple[WorkItem, ...]:
        return items_of(group, self._round, self._config, self._history.progress)

    def _measure(self, group: Group) -> None:
        """Bring one group to its end in this round, with as many workers as it takes."""
        self._costs = group_s(self._items(group), self._config, self._speed)
        self._give_up_tried_twice(group)
        while items := self._items(group):
            self._end_if_asked()
            if hopeless := self._history.hopeless(items):
                for item, failure in hopeless:
                    self._give_up(item, failure)
                continue
            with_reference = group.key not in self._policy.no_reference
            again = self._run_worker(group, items)
            self._end_if_asked()
            gave_up_reference = with_reference and group.key in self._policy.no_reference
            if self._items(group) == items and not gave_up_reference and not again:
                for item in self._policy.silent(items, self._unit):
                    self._give_up(item, Failure(Status.ERROR, "the worker reported nothing for it"))
        for part in list(self._costs):
            self._advance(part)

    def _run_worker(self, group: Group, items: tuple[WorkItem, ...]) -> bool:
        """Have a worker measure items until it is done or gone; true if the same is to be tried once more."""
        config = self._config
        child = self._ready_child()
        task = Task(
            items, config.passes, config.protocol, config.error, self._round, config.device.threads,
            self._policy.no_reference.get(group.key, ""),
            self._history.without_backward(items, config.passes, self._round), bool(group.isolated),
        )  # fmt: skip
        self._unit, state = _START, State.MEASURING
        try:
            child.send(task)
            while state is State.MEASURING:
                message = child.receive(config.protocol.timeout_s)
                if (state, message.event) not in NEXT:
                    raise WorkerGone(
                        -signal.SIGKILL, reason=f"it sent {str(message.event)!r} out of turn, and was ended"
                    )
                state = NEXT[state, message.event]
                self._hear(group, message)
            self.time.switch("workers")
            self._tries.end()
            if state is State.ENDED:
                self._end_child()
        except WorkerTimeout:
            self._end_child()
            limit_s = config.protocol.timeout_s
            self._give_up_for_end(group, Failure(Status.TIMEOUT, f"took longer than {limit_s:g} s", Cause.TIMEOUT))
        except WorkerGone as gone:
            self._end_child()
            if self._is_asked(gone):
                return False
            if self._policy.may_be_no_fault(gone, self._round, self._unit, group.key):
                return True
            self._give_up_for_end(group, failure_of(gone))
        return False

    def _hear(self, group: Group, message: Message) -> None:
        if message.record is not None:
            self._write(message.record)
        elif message.unit is not None:
            self._unit = message.unit
            self._tries.begin(self._round, group.key, message.unit)
            self.time.switch(part_of(message.unit.work))
            self._listener.begin(self._label(group, message.unit))

    def _give_up_tried_twice(self, group: Group) -> None:
        for unit in self._tries.given_up(self._round, group.key):
            if self._policy.is_left(self._items(group), unit):
                self._unit = unit
                self._give_up_for_end(group, Failure(Status.OOM, _ENDED_TWICE, Cause.KILL))

    def _give_up_for_end(self, group: Group, failure: Failure) -> None:
        unit = self._unit
        for item in self._policy.given_up(group, self._items(group), unit, failure.message):
            self._give_up(item, replace(failure, message=f"{unit.work}: {failure.message}"))

    def _give_up(self, item: WorkItem, failure: Failure) -> None:
        config = self._config
        for record in failed_records(item, config.passes, config.error, config.protocol.name, self._round, failure):
            self._write(record)

    def _write(self, record: Record) -> None:
        # The errors of a seed are measured together: after a kill some of them come a second time.
        if isinstance(record, ErrorRow) and record.key in self._history.progress.finished:
            return
        self._journal.append(record)
        self.outcome.records.append(record)
        self.time.sampled(record)
        part = "check"
        if isinstance(record, Timing) and not record.stage:
            self.outcome.statuses[record.status] += 1
            part = str(record.pass_)
        elif isinstance(record, Timing):
            self.outcome.stage_statuses[record.status] += 1
            part = "stages"
        elif record.point.is_task:
            part = example_part(record.seed)
        self._history.add(record)
        self._listener.row(record)
        self._advance((record.point.point_id, part))

    def _advance(self, part: tuple[str, str]) -> None:
        cost_s = self._costs.pop(part, None)
        if cost_s is not None:
            self._listener.finished(cost_s)

    def _ready_child(self) -> Child:
        while self._child is None:
            child = self._child = self._spawn()
            # Whoever asked before the child was known here has not reached it.
            self._end_if_asked()
            try:
                message = child.receive(_START_LIMIT_S)
                if message.event is not Event.READY:
                    raise WorkerGone(-signal.SIGKILL, reason=f"it sent {str(message.event)!r} before it was ready")
            except (WorkerGone, WorkerTimeout) as error:
                if isinstance(error, WorkerGone):
                    self._is_asked(error)
                self._end_if_asked()
                if isinstance(error, WorkerGone) and self._policy.may_be_no_fault(error, self._round, _START):
                    self._end_child()
                    continue
                reason = str(error) or f"it was not ready within {_START_LIMIT_S:g} s"
                raise MeasureError(
                    f"a worker process did not start: {reason}; see worker.log in the run's folder"
                ) from None
            if self._code is not None and message.code is not None and (why := difference(message.code, self._code)):
                raise MeasureError(
                    f"a worker process runs other code than this run was begun with: {why}; "
                    "choose another out=DIR to measure that code"
                )
            self._started()
            self._end_if_asked()
        return self._child

    def _started(self) -> None:
        if self._start_cost_s:
            self._listener.finished(self._start_cost_s)
            self._start_cost_s = 0.0

    def _end_child(self) -> None:
        self.time.switch("workers")
        if self._child is not None:
            self._child.end()
            self._child = None
            self._tries.end()

    def _interrupt_child(self) -> None:
        # Whoever asks a run to end may not wait for it: an end by SIGKILL after that is no fault of the unit.
        self._tries.withdraw()
        if self._child is not None:
            self._child.interrupt()

    def _is_asked(self, gone: WorkerGone) -> bool:
        """True if the run is to end: a signal to all of its processes may reach the worker first."""
        return self._interrupts.asked_within(_SIGNAL_S if -gone.returncode in ASKING else 0.0)

    def _end_if_asked(self) -> None:
        if self._interrupts.asked:
            raise KeyboardInterrupt

    def _label(self, group: Group, unit: Unit) -> str:
        point = self._points.get(unit.point_id or "")
        is_common = unit.work in (Work.REFERENCE, Work.INPUTS)
        what = str(unit.work) if is_common or point is None else point.method
        # What changes comes first: a narrow terminal shows the beginning.
        return " ".join(part for part in (what, unit.pass_ or unit.stage, group.label) if part)
