"""Ctrl-C in two steps: after the first nothing is torn, after the second nothing is waited for."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperbench.measure.messages import Event, Message
from hyperbench.measure.runner.interrupts import AtOnce, Interrupts
from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.session import measure
from hyperbench.measure.runner.worker_process import WorkerGone
from hyperbench.measure.worker.main import Stop, StoppableClock, StopSignal
from hyperbench.store.run_folder import load_run
from tests.helpers.fake_clock import FakeClock
from tests.helpers.fake_worker import FakeWorker, Listener, Site
from tests.helpers.made_runs import tiny


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The texts that the terminal would get; SIGINT is what Python makes of it, also under a runner that ignores it."""
    said: list[bytes] = []
    write = os.write

    def to_terminal(fd: int, data: bytes) -> int:
        return said.append(bytes(data)) or len(data) if fd == 2 else write(fd, data)

    monkeypatch.setattr(os, "write", to_terminal)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield said
    signal.signal(signal.SIGINT, before)


def test_the_first_is_heard_and_the_second_raises() -> None:
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(lambda: heard.append(1), lambda text: heard.append(2)) as interrupts:
        assert not interrupts.asked
        signal.raise_signal(signal.SIGINT)
        assert interrupts.asked
        assert heard == [1, 2]
        with pytest.raises(AtOnce):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert heard == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_are_heard_as_ctrl_c_is_and_all_are_given_back(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with Interrupts(lambda: None, lambda text: None) as interrupts:
        signal.raise_signal(number)
        assert interrupts.asked
        with pytest.raises(AtOnce):
            signal.raise_signal(signal.SIGTERM)
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_terminal_that_is_gone_does_not_stop_the_run_from_ending_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(fd: int, data: bytes) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "write", gone)
    with Interrupts(lambda: None) as interrupts:
        signal.raise_signal(signal.SIGHUP)
        assert interrupts.asked_within(0.0)


def test_ctrl_c_before_the_worker_is_known_reaches_it_all_the_same() -> None:
    """While its process is being made there is nobody yet to pass it on to."""

    def make() -> FakeWorker:
        signal.raise_signal(signal.SIGINT)
        return FakeWorker()

    site = Site(tiny(), make=make)
    assert site.run().interrupted
    assert [worker.tasks for worker in site.workers] == [[]]
    assert site.journal.records == []


def test_a_deaf_process_and_a_thread_stay_as_they_are() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts(lambda: None) as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert not interrupts.asked
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def in_a_thread() -> None:
        with Interrupts(lambda: None):
            handlers.append(signal.getsignal(signal.SIGINT))

    handlers: list[Any] = []
    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_a_worker_stops_between_samples_and_never_within_one() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopSignal()
    try:
        clock, calls = StoppableClock(FakeClock(look_s=7.0), stop.check), []

        def call() -> None:
            signal.raise_signal(signal.SIGINT)
            calls.append("whole")

        assert clock.time_ms(call) == 1.0
        assert clock.now_s() == 7.0
        with pytest.raises(Stop):
            clock.time_ms(call)
        assert calls == ["whole"]
    finally:
        signal.signal(signal.SIGINT, before)


class Stops(FakeWorker):
    """Ctrl-C comes with a message of it; it says what it was about to say, and ends as it is told to."""

    def __init__(self, at: int, ending: str = "stopped", times: int = 1) -> None:
        super().__init__()
        self.left = at
        self.ending = ending
        self.times = times

    def receive(self, timeout_s: float) -> Message:
        """The next message; after Ctrl-C its last words."""
        if self.interrupted:
            if self.ending == "gone":
                raise WorkerGone(1)
            return Message(Event(self.ending))
        message = super().receive(timeout_s)
        self.left -= 1
        if self.left < 0:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
        return message


@pytest.mark.parametrize("ending", ["stopped", "gone", "done", "leave"])
@pytest.mark.parametrize("at", [0, 1, 5, 40, 60])
def test_a_run_ends_with_what_the_worker_had_to_say_and_goes_on_later(at: int, ending: str) -> None:
    run = tiny("shape.seq_len=64,128", "method=[math,hyper]", "passes=[forward]")
    site = Site(run, make=lambda: Stops(at, ending))
    outcome = site.run()
    assert outcome.interrupted
    assert len(site.workers) == 1
    # Whatever the worker's end was like, it is no fault of a method.
    assert all(record.status == "ok" for record in site.journal.records)
    again = Site(run)
    again.journal.records = list(site.journal.records)
    assert not again.run().interrupted
    assert set(again.keys) == again.expected
    assert len(again.keys) == len(set(again.keys))


def test_the_tables_are_written_after_the_first_and_not_after_the_second(tmp_path: Path, quiet: list[bytes]) -> None:
    run = tiny()
    for times, name in ((1, "once"), (2, "twice")):
        folder, worker = tmp_path / name, Stops(42, times=times)
        journal = open_folder(run, folder)
        if times == 1:
            assert measure(run, journal, Listener(), spawn=lambda env, log, worker=worker: worker).interrupted
        else:
            with pytest.raises(AtOnce):
                measure(run, journal, Listener(), spawn=lambda env, log, worker=worker: worker)
        assert (folder / "timings.csv").exists() == (times == 1)
        assert len(load_run(folder).timings) > 0
    assert [text.decode().strip() for text in quiet] == [
        "stopping after the current sample; Ctrl-C again stops at once"
    ] * 2
