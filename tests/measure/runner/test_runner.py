"""The parent survives whatever its workers do, loses nothing that was finished, and comes to an end."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperbench.measure.messages import Task, Work
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.runner import MeasureError
from hyperbench.measure.runner.worker_process import WorkerGone, WorkerTimeout
from hyperbench.store.schema import Cause, ErrorRow, Pass, Status, Timing
from tests.helpers.fake_worker import FakeWorker, Message, Site, befalls, dies, hangs, is_stage, lives, said
from tests.helpers.made_records import a_stage
from tests.helpers.made_runs import tiny
from tests.helpers.slow import slow

OOM, SIGSEGV = -9, -11


@pytest.fixture(scope="module")
def run() -> Prepared:
    """Two methods at three lengths, all passes."""
    return tiny("shape.seq_len=64,128,256", "method=[math,hyper]")


@pytest.fixture(scope="module")
def small() -> Prepared:
    """Two methods at one length, two passes, two rounds."""
    return tiny("shape.seq_len=64", "method=[math,hyper]", "passes=[forward,backward]", "protocol.rounds=2")


def all_ok(site: Site, *but: tuple[str, int]) -> bool:
    """True if everything was timed, apart from some points."""
    return all(found == {"ok"} for key, found in site.statuses().items() if key not in but)


def test_everything_is_measured_once_by_one_worker(run: Prepared) -> None:
    site = Site(run)
    expected_s = site.runner().remaining_s()
    outcome = site.run()
    assert len(site.keys) == len(set(site.keys))
    assert set(site.keys) == site.expected
    assert len(site.workers) == 1
    assert outcome.statuses == {Status.OK: 2 * 3 * 3}
    assert not outcome.interrupted
    assert site.listener.rows == site.journal.records
    assert site.listener.cost_s == pytest.approx(expected_s)
    assert site.runner().remaining_s() == 0


def test_progress_names_what_is_measured(run: Prepared) -> None:
    site = Site(run)
    site.run()
    assert "hyper forward gaussian n=64 heads=1 non-causal float32" in site.listener.labels
    assert "reference gaussian n=256 heads=1 non-causal float32" in site.listener.labels


def test_each_round_is_a_new_process(small: Prepared) -> None:
    site = Site(small)
    site.run()
    assert set(site.keys) == site.expected
    assert len(site.workers) == 2
    assert [task.round for worker in site.workers for task in worker.tasks] == [0, 1]


def test_slow_passes_are_not_measured_in_every_round_and_that_ends_the_run() -> None:
    # A made-up worker's calls take a millisecond.
    site = Site(
        tiny("shape.seq_len=64", "method=[math,hyper]", "passes=[forward,backward]", "protocol.rounds=4",
             "protocol.slow_rounds=2", "protocol.budget_s.forward=0.0005"),
    )  # fmt: skip
    site.run()
    rounds: dict[str, set[int]] = {}
    for record in site.journal.records:
        if isinstance(record, Timing):
            rounds.setdefault(str(record.pass_), set()).add(record.round)
    assert rounds == {"forward": {0, 1}, "backward": {0, 1, 2, 3}}
    assert site.runner().remaining_s() == 0


@pytest.mark.parametrize("unit", ["check", "prepare", "time"])
def test_a_crash_is_put_down_to_what_was_measured(run: Prepared, unit: str) -> None:
    fate = dies(SIGSEGV, unit=unit if unit != "prepare" else "check", method="hyper", seq_len=64)
    site = Site(run, fate)
    outcome = site.run()
    assert set(site.keys) == site.expected
    assert all_ok(site, ("hyper", 64))
    assert "error" in site.statuses()["hyper", 64]
    failed = [r for r in site.journal.records if isinstance(r, Timing) and r.status is Status.ERROR]
    assert all("SIGSEGV" in record.message and record.cause is Cause.CRASH for record in failed)
    assert outcome.statuses[Status.ERROR] == len(failed)
    assert site.listener.cost_s == pytest.approx(Site(run).runner().remaining_s())


def test_what_was_timed_before_a_crash_stays(run: Prepared) -> None:
    site = Site(run, befalls(WorkerGone(3), unit="time", method="hyper", seq_len=64, **{"pass": "backward"}))
    site.run()
    last = {r.key: r for r in site.journal.records if isinstance(r, Timing) and r.point.method == "hyper"}
    found = {r.pass_: str(r.status) for r in last.values() if r.point.seq_len == 64}
    assert found[Pass.FORWARD] == "ok"
    assert found[Pass.BACKWARD] == "error"
    assert "exit code 3" in next(r.message for r in last.values() if r.status is Status.ERROR)


def test_a_kill_is_want_of_memory_and_longer_points_are_not_tried(run: Prepared) -> None:
    site = Site(run, dies(OOM, unit="check", method="math", seq_len=128))
    site.run()
    assert set(site.keys) == site.expected
    assert site.statuses()["math", 64] == {"ok"}
    assert site.statuses()["math", 128] == {"oom"}
    assert {r.cause for r in site.journal.records if r.status is Status.OOM} == {Cause.KILL}
    assert site.statuses()["math", 256] == {"skipped_after_oom"}
    assert all_ok(site, ("math", 128), ("math", 256))
    skipped = [r for r in site.journal.records if isinstance(r, Timing) and r.status is Status.SKIPPED_AFTER_OOM]
    assert all("seq_len=128" in record.message for record in skipped)
    assert all(r.value is None for r in site.journal.records if isinstance(r, ErrorRow) and r.status is not Status.OK)


def test_a_worker_that_somebody_killed_costs_no_row(run: Prepared) -> None:
    site = Site(run, dies(OOM, unit="check", method="math", seq_len=128), lives)
    outcome = site.run()
    assert len(site.workers) == 2
    assert all_ok(site)
    assert outcome.statuses == {Status.OK: 2 * 3 * 3}
    assert len(site.keys) == len(set(site.keys))


def test_a_kill_that_the_kernel_did_for_memory_is_not_tried_again(run: Prepared) -> None:
    site = Site(run, befalls(WorkerGone(OOM, out_of_memory=True), unit="check", method="math", seq_len=128))
    site.run()
    assert site.statuses()["math", 128] == {"oom"}
    assert site.statuses()["math", 256] == {"skipped_after_oom"}
    assert len(site.workers) == 2


def test_over_the_rounds_no_method_is_always_first(run: Prepared) -> None:
    site = Site(tiny("shape.seq_len=64,128", "method=[math,hyper]", "passes=[forward]", "protocol.rounds=4"))
    site.run()
    first: dict[int, list[str]] = {}
    for worker in site.workers:
        for task in worker.tasks:
            point = task.items[0].point
            first.setdefault(point.seq_len, []).append(point.method)
    assert {length: sorted(methods) for length, methods in first.items()} == {
        length: ["hyper", "hyper", "math", "math"] for length in (64, 128)
    }


def test_errors_that_are_there_are_not_written_again(small: Prepared) -> None:
    whole = Site(small)
    whole.run()
    errors = [r for r in whole.journal.records if isinstance(r, ErrorRow)]
    site = Site(small)
    site.journal.records = errors[:-1]  # the last seed is measured again as a whole
    site.run()
    assert len(site.keys) == len(set(site.keys))
    assert set(site.keys) == site.expected


WORDS = "time: the worker process ended with exit code 1"


@pytest.mark.parametrize(
    ("failure", "tried"),
    [
        ({"status": Status.INCORRECT, "message": "not that of exact attention"}, False),
        ({"status": Status.ERROR, "message": WORDS, "cause": Cause.CRASH}, False),
        # A method's own words, and a record of an old journal.
        ({"status": Status.ERROR, "message": f"RuntimeError: {WORDS}"}, True),
        ({"status": Status.ERROR, "message": "RuntimeError: no luck"}, True),
    ],
)
def test_what_was_wrong_or_crashed_is_not_timed_in_the_next_round(
    small: Prepared, failure: dict[str, Any], tried: bool
) -> None:
    whole = Site(small)
    whole.run()
    site = Site(small)
    for record in whole.journal.records:
        if isinstance(record, Timing) and (record.round, record.point.method) == (0, "math"):
            record = replace(record, samples_ms=(), **failure)
        if getattr(record, "round", 0) == 0:
            site.journal.records.append(record)
    before = len(site.journal.records)
    site.run()
    new = [r for r in site.journal.records[before:] if isinstance(r, Timing) and r.point.method == "math"]
    assert {r.pass_ for r in new} == {"forward", "backward"}
    expected = {"status": Status.OK, "message": ""} if tried else failure
    assert all(getattr(r, name) == value for r in new for name, value in expected.items())


def test_a_worker_that_takes_too_long_is_ended(run: Prepared) -> None:
    site = Site(run, hangs(unit="time", method="math", seq_len=64))
    site.run()
    assert set(site.keys) == site.expected
    assert site.statuses()["math", 64] == {"timeout"}
    assert all_ok(site, ("math", 64))
    late = [r for r in site.journal.records if isinstance(r, Timing) and r.status is Status.TIMEOUT]
    assert all("took longer than 120 s" in r.message and r.cause is Cause.TIMEOUT for r in late)


@pytest.mark.parametrize("returncode", [1, OOM])
def test_times_are_taken_without_a_reference(run: Prepared, returncode: int) -> None:
    site = Site(run, dies(returncode, unit="reference", seq_len=64))
    site.run()
    assert set(site.keys) == site.expected
    assert all_ok(site)
    errors = site.statuses(kind=ErrorRow)
    assert errors["math", 64] == errors["hyper", 64] == {"error"}
    assert errors["math", 128] == {"ok"}
    reasons = {r.message for r in site.journal.records if isinstance(r, ErrorRow) and r.status is Status.ERROR}
    assert all(reason.startswith("no reference: ") for reason in reasons)


@pytest.mark.parametrize("unit", ["inputs", "start"])
def test_a_crash_before_any_method_ran_fails_the_whole_group(run: Prepared, unit: str) -> None:
    workers = iter([FakeWorker(send=WorkerGone(1)), FakeWorker(send=WorkerGone(1)), FakeWorker()])
    site = Site(run, dies(1, unit="inputs", seq_len=64)) if unit == "inputs" else Site(run, make=lambda: next(workers))
    site.run()
    assert set(site.keys) == site.expected
    assert site.statuses()["math", 64] == site.statuses()["hyper", 64] == {"error"}
    assert all_ok(site, ("math", 64), ("hyper", 64))


def test_a_worker_that_ends_before_it_begins_a_task_is_replaced_once_and_nobody_is_blamed(run: Prepared) -> None:
    workers = iter([FakeWorker(send=WorkerGone(1)), FakeWorker()])
    site = Site(run, make=lambda: next(workers))
    site.run()
    assert set(site.keys) == site.expected
    assert {str(record.status) for record in site.journal.records} == {"ok"}


@pytest.mark.parametrize("returncode", [-15, *slow(-1, -2), -9])
def test_a_worker_ended_by_a_signal_of_others_is_tried_once_more(run: Prepared, returncode: int) -> None:
    fate = dies(returncode, unit="time", method="math", seq_len=64)
    site = Site(run, fate, lives)
    site.run()
    assert {str(record.status) for record in site.journal.records} == {"ok"}
    site = Site(run, fate)
    site.run()
    assert site.statuses()["math", 64] == {"oom" if returncode == -9 else "error"}


def test_a_signal_that_reaches_the_worker_before_the_run_is_no_row(run: Prepared) -> None:
    class Terminated(FakeWorker):
        """A batch system ends all processes; the run hears of it a moment after the worker."""

        def receive(self, timeout_s: float) -> Message:
            """The first messages of a task, then the end."""
            message = super().receive(timeout_s)
            if message.unit is not None and message.unit.work is Work.TIME:
                threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
                raise WorkerGone(-signal.SIGTERM)
            return message

    site = Site(run, make=Terminated)
    assert site.run().interrupted
    assert len(site.workers) == 1
    assert {str(record.status) for record in site.journal.records} <= {"ok"}


@pytest.mark.parametrize("event", ["ready", "no such"])
def test_a_message_out_of_turn_is_a_row_of_what_was_measured(run: Prepared, event: str) -> None:
    if event == "ready":
        site = Site(run, befalls("ready", unit="time", method="math", seq_len=64))
    else:
        site = Site(run, befalls(WorkerGone(-9, reason="garbage"), unit="time", method="math", seq_len=64))
    site.run()
    assert set(site.keys) == site.expected
    assert site.statuses()["math", 64] == {"error"}
    assert site.statuses()["hyper", 64] == {"ok"}
    (message,) = {r.message for r in site.journal.records if isinstance(r, Timing) and r.status is Status.ERROR}
    assert message == ("time: it sent 'ready' out of turn, and was ended" if event == "ready" else "time: garbage")


@pytest.mark.parametrize("ending", ["done", "leave"])
@pytest.mark.parametrize("reference", [True, False])
def test_a_worker_that_says_nothing_is_not_asked_for_ever(run: Prepared, ending: str, reference: bool) -> None:
    def silent(message: Message, task: Task) -> Exception | str | None:
        if reference and not task.no_reference:
            return WorkerGone(1) if message.unit and message.unit.work == "reference" else None
        return ending

    site = Site(run, silent, most_workers=20)
    site.run()
    assert set(site.keys) == site.expected
    assert set().union(*site.statuses().values()) == {"error"}


def test_a_poisoned_device_is_left_to_a_new_worker(run: Prepared) -> None:
    site = Site(run, befalls("leave", unit="time", method="math", seq_len=64), lives)
    site.run()
    assert set(site.keys) == site.expected
    assert all_ok(site)
    assert len(site.workers) == 2


def test_other_records_are_kept_and_are_no_progress(small: Prepared) -> None:
    class Stages(FakeWorker):
        def _script(self, task: Task) -> Any:
            yield said(a_stage(task.items[0].point, "hash", 1.0))

    site = Site(small, make=Stages)
    site.run()
    assert set(site.keys) == site.expected
    assert sum(is_stage(record) for record in site.journal.records) == 2


@settings(max_examples=30)
@given(data=st.data())
def test_resuming_measures_what_is_missing_and_nothing_else(small: Prepared, data: st.DataObject) -> None:
    whole = Site(small)
    whole.run()
    kept = data.draw(st.lists(st.sampled_from(whole.journal.records), unique_by=lambda record: repr(record.key)))  # type: ignore[union-attr]
    site = Site(small)
    site.journal.records = list(kept)
    had = set(site.keys)
    site.run()
    assert set(site.keys) == site.expected
    new = site.keys[len(kept) :]
    timed = {key for key in new if isinstance(key[1], str)}
    assert not timed & had
    # The errors of a seed are measured together.
    again = {(key[0], key[1]) for key in set(new) & had}
    missing = {(key[0], key[1]) for key in site.expected - had}
    assert again <= missing
    if had == site.expected:
        assert site.workers == []


@settings(max_examples=30)
@given(stop=st.integers(0, 60))
def test_ctrl_c_at_any_moment_loses_nothing(small: Prepared, stop: int) -> None:
    left = stop

    class Interrupted(FakeWorker):
        def receive(self, timeout_s: float) -> Message:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            message = super().receive(timeout_s)
            if message.record is not None:
                received.append(message)
            return message

    received: list[Message] = []
    site = Site(small, make=Interrupted)
    outcome = site.run()
    assert outcome.interrupted == (left < 0)
    assert len(site.journal.records) == len(received)
    again = Site(small)
    again.journal.records = list(site.journal.records)
    assert not again.run().interrupted
    assert again.journal.records[: len(received)] == site.journal.records
    assert set(again.keys) == again.expected


def test_failed_points_are_measured_again_only_on_demand(run: Prepared) -> None:
    site = Site(run, dies(OOM, unit="check", method="math", seq_len=128))
    site.run()
    before = len(site.journal.records)
    again = Site(run)
    again.journal.records = list(site.journal.records)
    again.run()
    assert len(again.journal.records) == before
    assert again.workers == []
    again.run(retry_failed=True)
    assert all_ok(again)
    assert {item.point.method for task in again.workers[0].tasks for item in task.items} == {"math"}
    assert {item.point.seq_len for task in again.workers[0].tasks for item in task.items} == {128, 256}


def test_an_oom_of_an_earlier_run_is_remembered(run: Prepared) -> None:
    oom = next(p for p in run.points if (p.method, p.seq_len) == ("math", 64))
    site = Site(run)
    site.journal.records = [Timing(oom, Pass.FORWARD, "quick", 0, Status.OOM, message="no memory")]
    site.run()
    assert site.statuses()["math", 128] == site.statuses()["math", 256] == {"skipped_after_oom"}
    assert site.statuses()["math", 64] == {"oom", "ok"}


@pytest.mark.parametrize("error", [WorkerGone(1), WorkerTimeout()])
def test_workers_that_do_not_start_end_the_run(run: Prepared, error: Exception) -> None:
    site = Site(run, make=lambda: FakeWorker(start=error))
    with pytest.raises(MeasureError, match=r"did not start: .*; see worker\.log"):
        site.runner().run()
    assert [worker.ended for worker in site.workers] == [True]
    assert site.journal.records == []


def test_a_later_worker_that_does_not_start_leaves_what_is_finished(run: Prepared) -> None:
    workers = iter([FakeWorker(dies(1, unit="time", method="math", seq_len=128)), FakeWorker(start=WorkerGone(1))])
    site = Site(run, make=lambda: next(workers))
    with pytest.raises(MeasureError):
        site.runner().run()
    assert all_ok(site, ("math", 128))
    assert site.statuses()["hyper", 64] == {"ok"}


@settings(max_examples=60)
@given(data=st.data())
def test_no_misfortune_stops_the_run_or_leaves_a_gap(small: Prepared, data: st.DataObject) -> None:
    fates = st.sampled_from([None] * 6 + [WorkerGone(1), WorkerGone(OOM), WorkerTimeout(), "leave", "done"])

    def misfortune(message: Message, task: Task) -> Exception | str | None:
        return data.draw(fates)

    site = Site(small, misfortune)
    site.run()
    assert set(site.keys) == site.expected


def test_an_isolated_method_has_workers_of_its_own_in_every_round() -> None:
    words = ("shape.seq_len=64,128", "method=[math,hyper,uniform]", "protocol.rounds=2", "+method.hyper.isolate=true")
    run = tiny(*words)
    site = Site(run)
    expected_s = site.runner().remaining_s()
    site.run()
    assert set(site.keys) == site.expected
    assert len(site.workers) == 4
    for worker, isolated in zip(site.workers, (False, True, False, True), strict=True):
        assert len(worker.tasks) == 2
        methods = {item.point.method for task in worker.tasks for item in task.items}
        assert methods == ({"hyper"} if isolated else {"math", "uniform"})
        assert {task.isolated for task in worker.tasks} == {isolated}
    assert site.listener.cost_s == pytest.approx(expected_s) == pytest.approx(sum(run.estimates_s()))
