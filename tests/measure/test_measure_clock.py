"""The clock of a GPU and graphs of calls, on a device that is only pretended: what happens in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.measure.accuracy import IncorrectError
from hyperbench.measure.clock import CudaClock
from hyperbench.measure.graphs import GraphedCall, tensors_of

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


def test_a_call_stands_between_two_events_and_the_flush_before_both() -> None:
    cuda = FakeCuda()
    flushed: list[int] = []

    def allocate(size: int) -> Any:
        flushed.append(size)
        return SimpleNamespace(zero_=lambda: cuda.log.append("flush"))

    host = iter([10.0, 10.004, 10.005, 10.008])
    clock = CudaClock(cuda, allocate, lambda: next(host))
    assert clock.time_ms(lambda: cuda.log.append("call")) == 2.5
    assert [entry for entry in cuda.log if not entry.startswith("made")] == [
        "flush", "synchronize", "record 0", "call", "record 1", "wait 1", "synchronize"
    ]  # fmt: skip
    assert flushed == [2 * L2_BYTES]
    assert clock.host_ms == pytest.approx(4.0)
    assert clock.left_ms == pytest.approx(3.0)


def test_a_device_that_does_not_tell_its_cache_is_flushed_all_the_same() -> None:
    sizes: list[int] = []
    CudaClock(FakeCuda(l2_bytes=0), lambda size: sizes.append(size))
    assert sizes[0] > 1 << 20


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
