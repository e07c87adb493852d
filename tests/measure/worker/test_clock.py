"""The clock of a GPU and graphs of calls, on a device that is only pretended: what happens in which order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.commands.doctor import flush_lines
from hyperbench.measure.probe.diagnose import flush_ratio, warm_up
from hyperbench.measure.worker.clock import CudaClock
from hyperbench.measure.worker.conditions.conditions import Conditions
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.gate.result_check import ResultCheck
from hyperbench.measure.worker.main import StoppableClock
from hyperbench.measure.worker.timing.cuda_graphs import GraphedCall, tensors_of
from hyperbench.measure.worker.timing.passes import prepare_pass
from hyperbench.store.schema import Pass
from tests.helpers.fake_clock import standing
from tests.helpers.made_records import a_point
from tests.helpers.made_runs import tiny

L2_BYTES = 1000


class FakeCuda:
    """Stands for torch.cuda: notes what is asked of it, and replays what was launched while a graph was captured."""

    def __init__(self, l2_bytes: int = L2_BYTES) -> None:
        self.l2_bytes = l2_bytes
        self.log: list[str] = []
        self.capturing: list[Callable[[], object]] | None = None
        self.stream_now = "main"

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(L2_cache_size=self.l2_bytes)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing

        def record(name: str) -> Callable[[], None]:
            return lambda: self.log.append(name)

        number = sum(entry.startswith("made") for entry in self.log)
        self.log.append(f"made {number}")
        return SimpleNamespace(
            record=record(f"record {number}"),
            synchronize=record(f"wait {number}"),
            elapsed_time=lambda other: 2.5,
        )

    def Stream(self) -> Any:
        return SimpleNamespace(name="side", wait_stream=lambda other: None)

    def current_stream(self) -> Any:
        return SimpleNamespace(name=self.stream_now, wait_stream=lambda other: None)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.stream_now = stream.name
        yield
        self.stream_now = "main"

    def CUDAGraph(self) -> Any:
        work: list[Callable[[], object]] = []
        return SimpleNamespace(work=work, replay=lambda: [launch() for launch in work])

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        self.capturing = graph.work
        self.stream_now = stream.name
        yield
        self.capturing, self.stream_now = None, "main"

    def launch(self, work: Callable[[], object]) -> None:
        """What a kernel does: at once, and again with each replay of the graph that is captured."""
        if self.capturing is not None:
            self.capturing.append(work)
        work()


class Gpu:
    """Stands for torch.cuda with a time of its own: launches take the host's time, and kernels queue on the device."""

    LAUNCH_MS = 0.005

    def __init__(self, clocks: Iterator[float] | None = None) -> None:
        self.host_ms = 0.0
        self.free_ms = 0.0
        self.flushed: list[int] = []
        self.sleeps_ms: list[float] = []
        # Cycles in a millisecond, of each sleep.
        self.clocks = clocks or itertools.repeat(2e6)

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(L2_cache_size=L2_BYTES)

    def now_s(self) -> float:
        return self.host_ms / 1e3

    def launch(self, device_ms: float, host_ms: float = LAUNCH_MS) -> None:
        """A kernel: the host is busy with its launch, then it runs when those before it have ended."""
        self.host_ms += host_ms
        self.free_ms = max(self.free_ms, self.host_ms) + device_ms

    def synchronize(self) -> None:
        self.host_ms = max(self.host_ms, self.free_ms)

    def _sleep(self, cycles: int) -> None:
        self.sleeps_ms.append(cycles / next(self.clocks))
        self.launch(self.sleeps_ms[-1])

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at_ms=None)

        def record() -> None:
            self.launch(0.0, 0.001)
            event.at_ms = self.free_ms

        def synchronize() -> None:
            self.host_ms = max(self.host_ms, event.at_ms)

        event.record, event.synchronize = record, synchronize
        event.elapsed_time = lambda other: other.at_ms - event.at_ms
        return event

    def clock(self, before: Callable[[], object] | None = None) -> CudaClock:
        """A clock on this device, whose flush takes 0.1 ms, or that does something else before a call."""

        def allocate(size: int) -> Any:
            def flush() -> None:
                self.flushed.append(size)
                self.launch(0.1)

            return SimpleNamespace(zero_=before or flush)

        return CudaClock(self, allocate, self.now_s)


def kernels(gpu: Gpu, count: int, device_ms: float, host_ms: float) -> Callable[[], object]:
    """A call of so many kernels, each of so long on the device and on the host."""

    def call() -> None:
        for _ in range(count):
            gpu.launch(device_ms, host_ms)

    return call


class TestTheClockOfAGpu:
    """Kernels queue behind a sleep, so that what is timed is the device."""

    def test_small_kernels_take_what_they_take_on_the_device_and_the_host_is_seen_to_be_slower(self) -> None:
        gpu = Gpu()
        clock, call = gpu.clock(), kernels(gpu, 10, 0.005, 0.05)
        # Nothing is known of the launch yet: it is in the time.
        assert clock.time_ms(call) > 0.3
        for _ in range(5):
            assert clock.time_ms(call) == pytest.approx(0.05)
            assert clock.host_ms == pytest.approx(0.5)

    def test_a_large_kernel_hides_its_launch_by_itself(self) -> None:
        gpu = Gpu()
        clock, call = gpu.clock(), kernels(gpu, 1, 5.0, 0.02)
        for _ in range(3):
            assert clock.time_ms(call) == pytest.approx(5.0, abs=0.03)
        assert clock.host_ms is not None
        assert clock.host_ms < 0.03

    def test_each_call_has_a_sleep_of_its_own_when_several_take_turns(self) -> None:
        gpu = Gpu()
        clock, calls = gpu.clock(), []
        for count in (4, 40, 100):
            calls.append(kernels(gpu, count, 0.005, 0.05))
            clock.time_ms(calls[-1])
        for _ in range(3):
            for call, count in zip(calls, (4, 40, 100), strict=True):
                assert clock.time_ms(call) == pytest.approx(0.005 * count)

    def test_a_slow_first_launch_is_forgotten(self) -> None:
        gpu, first = Gpu(), [500.0]
        clock = gpu.clock()

        def call() -> None:
            gpu.host_ms += first.pop() if first else 0.0
            gpu.launch(0.01, 0.5)

        times = [clock.time_ms(call) for _ in range(4)]
        assert times[2:] == [pytest.approx(0.01)] * 2

    def test_a_call_that_waits_for_the_device_does_not_make_it_sleep_ever_longer(self) -> None:
        gpu = Gpu()
        clock = gpu.clock()

        def call() -> None:
            gpu.launch(1.0, 0.01)
            gpu.synchronize()

        for _ in range(30):
            # Its host time is not that of the sleep, or it would be called host-bound.
            elapsed_ms = clock.time_ms(call)
            assert elapsed_ms == pytest.approx(1.0, abs=0.02)
            assert clock.host_ms is not None
            assert clock.host_ms <= elapsed_ms + 0.01
        assert max(gpu.sleeps_ms[5:]) < 6.0

    def test_no_sleep_hides_a_launch_of_many_milliseconds(self) -> None:
        gpu = Gpu()
        clock, call = gpu.clock(), kernels(gpu, 100, 0.01, 1.0)
        slept = len(gpu.sleeps_ms)
        assert [clock.time_ms(call) > 90.0 for _ in range(3)] == [True] * 3
        assert len(gpu.sleeps_ms) == slept

    def test_the_sleep_is_long_enough_though_the_clock_rose_while_it_was_measured(self) -> None:
        gpu = Gpu(clocks=itertools.chain([4e5, 9e5, 1.6e6], itertools.repeat(2e6)))
        clock, call = gpu.clock(), kernels(gpu, 10, 0.005, 0.1)
        times = [clock.time_ms(call) for _ in range(3)]
        assert times[1:] == [pytest.approx(0.05)] * 2

    def test_the_cache_is_overwritten_before_each_call_outside_its_time(self) -> None:
        gpu = Gpu()
        clock, call = gpu.clock(), kernels(gpu, 1, 0.5, 0.01)
        for _ in range(3):
            clock.time_ms(call)
        assert gpu.flushed == [2 * L2_BYTES] * 3

    def test_calls_that_are_only_load_follow_each_other_without_flush_or_sleep(self) -> None:
        gpu = Gpu()
        clock, call = gpu.clock(), kernels(gpu, 1, 0.5, 0.01)
        clock.time_ms(call)
        flushes, slept, began_ms = len(gpu.flushed), len(gpu.sleeps_ms), gpu.host_ms
        for _ in range(100):
            clock.time_ms(call, is_load=True)
        assert (len(gpu.flushed), len(gpu.sleeps_ms)) == (flushes, slept)
        assert gpu.host_ms - began_ms < 100 * 0.5 * 1.05


def test_lasting_load_reaches_the_clock_of_the_gpu_through_all_that_stands_before_it() -> None:
    gpu = Gpu()
    clock = StoppableClock(gpu.clock(), lambda: None)
    x = torch.ones(1, 1, 4, 2)

    def method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gpu.launch(0.5)
        return q

    protocol = dataclasses.replace(
        tiny().config.protocol, fixed_time=True, max_samples=10, warmup_min_s=0.01, warmup_max_s=0.01, input_copies=1,
        budget_s={"forward": 0.1},
    )  # fmt: skip
    subject: Any = SimpleNamespace(
        ready=lambda inputs: method, seeded=nullcontext, point=a_point(), first_ms={}, peaks={}
    )
    timed = prepare_pass(
        subject, Pass.FORWARD, [(x, x, x)], x, clock, protocol, Conditions(),
        lambda call, period: ResultCheck(call, clock, (x, x, x), None, None, period),
    )  # fmt: skip
    timed.sampler.warm_up()
    timed.sampler.take(1e9)
    # One flush before the first call and one before each sample: what lies between is load alone.
    assert len(gpu.flushed) == 1 + len(timed.sampler.samples_ms)
    assert len(timed.sampler.samples_ms) <= 10


def test_a_device_that_does_not_tell_its_cache_is_flushed_all_the_same() -> None:
    sizes: list[int] = []
    CudaClock(FakeCuda(l2_bytes=0), lambda size: sizes.append(size))
    assert sizes[0] > 1 << 20


@pytest.mark.parametrize("works", [True, False])
def test_the_ratio_shows_whether_a_flush_works(works: bool) -> None:
    gpu = Gpu()
    seen = [0]

    def read() -> None:
        # Two launches that take longer than the device works: only a clock that hides them sees the cache.
        is_warm = works is False or len(gpu.flushed) == seen[0]
        gpu.launch(0.004 if is_warm else 0.01, 0.03)
        gpu.launch(0.001, 0.03)
        seen[0] = len(gpu.flushed)

    ratio = flush_ratio(gpu.clock(), gpu.clock(before=read), read)
    assert ratio == pytest.approx(0.011 / 0.005 if works else 1.0)
    lines = flush_lines({"flush_ratio": ratio})
    assert any("has no effect" in line for line in lines) == (not works)


def test_a_device_without_a_flush_needs_no_warning() -> None:
    assert flush_lines({"flush_ratio": None}) == []


@pytest.mark.parametrize(("calls", "seconds", "made"), [(3, 0.0, 3), (3, 0.1, 10), (20, 0.1, 20)])
def test_warm_up_lasts_its_calls_and_its_time(calls: int, seconds: float, made: int) -> None:
    clock, heard = standing(), list[int]()

    def call() -> float:
        heard.append(1)
        return 10.0

    warm_up(clock, call, calls, seconds)  # type: ignore[arg-type]
    assert len(heard) == made


class TestGraphs:
    """A replay is trusted as long as it gives what the call gave."""

    x = torch.arange(6.0)

    def doubles(self, cuda: FakeCuda, out: Tensor) -> Callable[[], Tensor]:
        """A call that launches all of its work."""

        def call() -> Tensor:
            assert cuda.stream_now == "side"
            cuda.launch(lambda: out.copy_(2 * self.x))
            return out

        return call

    def test_the_replay_of_a_good_call_gives_its_output(self) -> None:
        cuda, out = FakeCuda(), torch.zeros(6)
        graphed = GraphedCall(lambda: self.doubles(cuda, out), "float32", cuda)
        out.zero_()
        assert torch.equal(graphed(), 2 * self.x)  # type: ignore[arg-type]
        graphed.check()

    def test_work_that_was_not_captured_is_noticed(self) -> None:
        cuda, out = FakeCuda(), torch.zeros(6)

        def call() -> Tensor:
            return out.copy_(2 * self.x)  # never launched: a replay does nothing

        with pytest.raises(IncorrectError, match="did not capture all of the work"):
            GraphedCall(lambda: call, "float32", cuda)

    def test_a_replay_that_goes_wrong_later_is_noticed(self) -> None:
        cuda, out = FakeCuda(), torch.zeros(6)
        factor = [2.0]

        def call() -> Tensor:
            cuda.launch(lambda: out.copy_(factor[0] * self.x))
            return out

        graphed = GraphedCall(lambda: call, "float32", cuda)
        factor[0] = 3.0
        with pytest.raises(IncorrectError, match=r"differ by 0\.5"):
            graphed.check()

    def test_a_result_that_cannot_be_checked_is_refused(self) -> None:
        with pytest.raises(IncorrectError, match="returns no tensor"):
            GraphedCall(lambda: lambda: None, "float32", FakeCuda())

    def test_every_tensor_of_a_result_is_looked_at(self) -> None:
        one, two = torch.zeros(1), torch.ones(2)
        assert tensors_of(one) == [one]
        found = tensors_of((one, None, two))
        assert len(found) == 2
        assert found[1] is two
        assert tensors_of("text") == []
