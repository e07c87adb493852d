"""A worker process that is none: it says what a real one says, and comes to whatever end a test gives it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeGuard

from hyperbench.child.code import Code
from hyperbench.measure import work_items
from hyperbench.measure.messages import Event, Message, Task, Unit, Work
from hyperbench.measure.runner.outcome import Outcome
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.runner import Runner
from hyperbench.measure.runner.worker_process import WorkerGone, WorkerTimeout
from hyperbench.store.schema import ErrorRow, Pass, Record, Status, Timing
from tests.helpers.made_records import a_stage
from tests.helpers.made_runs import everything

MOST_TASKS = 50
#: The stages that every method is said to have.
STAGES = ("first", "second", "third")
#: The end that comes to a worker after it has said a message: an exception, "leave", "done", or nothing.
Fate = Callable[[Message, Task], Exception | str | None]


def lives(message: Message, task: Task) -> None:
    """Nothing befalls the worker."""


def dies(returncode: int = 1, **when: Any) -> Fate:
    """The worker ends like this after a `begin` with these values; `method` is the method of its point."""
    return befalls(WorkerGone(returncode), **when)


def hangs(**when: Any) -> Fate:
    """The worker says nothing more after such a `begin`."""
    return befalls(WorkerTimeout(), **when)


def befalls(fate: Exception | str, **when: Any) -> Fate:
    """A fate that follows every `begin` with these values."""

    def follow(message: Message, task: Task) -> Exception | str | None:
        unit = message.unit
        if unit is None:
            return None
        point = {item.point.point_id: item.point for item in task.items}.get(unit.point_id or "")
        seen = {"unit": unit.work, "pass": unit.pass_, "stage": unit.stage, "method": point and point.method,
                "seq_len": point and point.seq_len}  # fmt: skip
        return fate if all(seen[name] == value for name, value in when.items()) else None

    return follow


class Journal:
    """A journal in memory."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)


class Listener:
    """A listener that keeps everything."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.cost_s = 0.0
        self.rows: list[Record] = []
        self.notes: list[str] = []

    def begin(self, label: str) -> None:
        """Keep a label."""
        self.labels.append(label)

    def finished(self, cost_s: float) -> None:
        """Add a cost."""
        self.cost_s += cost_s

    def row(self, record: Record) -> None:
        """Keep a record."""
        self.rows.append(record)

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)


class FakeWorker:
    """Answers a task with good records for all of it, unless its fate comes first."""

    def __init__(
        self,
        fate: Fate = lives,
        start: Exception | None = None,
        send: Exception | None = None,
        code: Code | None = None,
    ) -> None:
        self._fate = fate
        self._start = start
        self._send = send
        self._code = code
        self._messages: Iterator[Message] | None = None
        self.tasks: list[Task] = []
        self.ended = False
        self.interrupted = False

    def send(self, task: Task) -> None:
        """Take a task as it comes over the wire."""
        assert not self.ended
        if self._send is not None:
            raise self._send
        assert len(self.tasks) < MOST_TASKS, "the same is asked for without end"
        self.tasks.append(Task.from_json(json.loads(json.dumps(task.to_json()))))
        self._messages = self._work(self.tasks[-1])

    def receive(self, timeout_s: float) -> Message:
        """The next message, or the end."""
        assert not self.ended
        if self._messages is None:
            if self._start is not None:
                raise self._start
            return Message(Event.READY, code=self._code)
        return next(self._messages)

    def interrupt(self) -> None:
        """Hear that nothing more is wanted."""
        self.interrupted = True

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True

    def _work(self, task: Task) -> Iterator[Message]:
        for message in self._script(task):
            yield message
            fate = self._fate(message, task)
            if isinstance(fate, Exception):
                raise fate
            if fate is not None:
                yield Message(Event(fate))
                return
        yield Message(Event.DONE)

    def _script(self, task: Task) -> Iterator[Message]:
        first = task.items[0].point.point_id
        yield begins(Work.INPUTS, first)
        if any(item.seeds for item in task.items) and not task.no_reference:
            yield begins(Work.REFERENCE, first)
        for item in task.items:
            point = item.point
            yield begins(Work.CHECK, point.point_id)
            for seed in item.seeds:
                for metric in work_items.expected_metrics(point, task.passes, task.error):
                    status, value = (Status.ERROR, None) if task.no_reference else (Status.OK, 0.5)
                    yield said(ErrorRow(point, seed, metric, value, status, task.no_reference))
        for pass_ in map(Pass, task.passes):
            for item in (item for item in task.items if pass_ in item.passes):
                point = item.point
                yield begins(Work.TIME, point.point_id, pass_)
                yield said(Timing(point, pass_, task.protocol.name, task.round, Status.OK, samples_ms=(1.0,)))
        for item in (item for item in task.items if item.stages):
            point = item.point
            for name in (n for n in STAGES if n not in item.timed_stages):
                yield begins(Work.STAGES, point.point_id, stage=name)
                yield said(a_stage(point, name, 1.0, all_stages=STAGES, protocol=task.protocol.name, round=task.round))


def is_stage(record: Record) -> TypeGuard[Timing]:
    """True for the timing of a stage."""
    return isinstance(record, Timing) and record.stage != ""


def begins(work: Work, point_id: str, pass_: Pass | None = None, stage: str = "") -> Message:
    """The beginning of a unit of work as a worker sends it."""
    return Message(Event.BEGIN, Unit(work, point_id, pass_, stage))


def said(record: Record) -> Message:
    """A record as a worker sends it."""
    return Message(Event.RECORD, record=record)


class Site:
    """A run with its journal and all the workers it started."""

    def __init__(
        self, prepared: Prepared, *fates: Fate, make: Callable[[], FakeWorker] | None = None, most_workers: int = 100
    ) -> None:
        self.prepared = prepared
        self.journal = Journal()
        self.listener = Listener()
        self.workers: list[FakeWorker] = []
        self._fates = fates or (lives,)
        self._make = make
        self._most_workers = most_workers

    def spawn(self) -> FakeWorker:
        """The next worker: as made by the test, or of the next fate; the last fate is that of all further ones."""
        assert len(self.workers) < self._most_workers, "workers are started without end"
        fate = self._fates[min(len(self.workers), len(self._fates) - 1)]
        self.workers.append(self._make() if self._make is not None else FakeWorker(fate))
        return self.workers[-1]

    def runner(self, **options: Any) -> Runner:
        """A runner on what the journal holds."""
        history = list(self.journal.records)
        return Runner(
            self.prepared, self.journal, self.spawn, self.listener,  # type: ignore[arg-type]
            history=history, **options,
        )  # fmt: skip

    def run(self, **options: Any) -> Outcome:
        """Run to the end; no worker is left."""
        outcome = self.runner(**options).run()
        assert all(worker.ended for worker in self.workers)
        return outcome

    @property
    def keys(self) -> list[work_items.Key]:
        """The keys of all timings of passes and of all errors written, in order."""
        return [record.key for record in self.journal.records if not is_stage(record)]

    @property
    def expected(self) -> set[work_items.Key]:
        """The keys of everything that the run is to measure."""
        return {record.key for record in everything(self.prepared) if not is_stage(record)}

    @property
    def stages(self) -> list[tuple[str, str, int]]:
        """(method, stage, round) of all stages written, in order."""
        return [(r.point.method, r.stage, r.round) for r in self.journal.records if is_stage(r)]

    def statuses(self, **which: Any) -> dict[tuple[str, int], set[str]]:
        """(method, seq_len) -> the statuses of its last records of a kind, those of stages left out."""
        kind = which.get("kind", Timing)
        last = {r.key: r for r in self.journal.records if isinstance(r, kind) and not is_stage(r)}
        found: dict[tuple[str, int], set[str]] = {}
        for record in last.values():
            found.setdefault((record.point.method, record.point.seq_len), set()).add(str(record.status))
        return found
