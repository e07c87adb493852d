"""A GPU that is only pretended: a host and streams that take made-up times, an L2 cache, events and graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

Work = Callable[[], object]
MAIN, SIDE = "main", "side"
L2_BYTES = 1 << 20
#: Milliseconds: a flush of twice the L2, a read from the memory and from the cache, and what launching anything takes.
FLUSH_MS, COLD_MS, WARM_MS, LAUNCH_MS = 0.4, 0.05, 0.02, 0.03


class PretendedGpu:
    """Stands for torch.cuda. The host launches work and goes on; a stream does its work in order, once it is launched.

    `l2_bytes` is what the device says of its cache, which holds L2_BYTES.
    """

    def __init__(self, l2_bytes: int = L2_BYTES) -> None:
        self.host_ms = 0.0
        self._said_bytes = l2_bytes
        self._until_ms = {MAIN: 0.0, SIDE: 0.0}
        self._current = MAIN
        self._is_cached = False
        self._captured: list[Work] | None = None

    def launch(self, device_ms: float, work: Work = lambda: None, *, stream: str = "", host_ms: float = 0.0) -> None:
        """Work of so long on a stream (default: the current one), whose launch takes the host so long; a graph that is
        captured has it too.
        """
        if self._captured is not None:
            self._captured.append(lambda: self.launch(device_ms, work, stream=stream))
        self.host_ms += host_ms
        name = stream or self._current
        self._until_ms[name] = max(self._until_ms[name], self.host_ms) + device_ms
        work()

    def read(self) -> None:
        """Read a buffer that fits the L2, and lies there afterwards."""
        self.launch(WARM_MS if self._is_cached else COLD_MS, host_ms=LAUNCH_MS)
        self._is_cached = True

    def allocate(self, size: int) -> Any:
        """A buffer; writing it takes time, and empties an L2 that is no larger."""

        def write() -> None:
            self.launch(FLUSH_MS * size / (2 * L2_BYTES), host_ms=LAUNCH_MS)
            self._is_cached = self._is_cached and size < L2_BYTES

        return SimpleNamespace(zero_=write)

    def _sleep(self, cycles: int) -> None:
        self.launch(cycles / 1e6, host_ms=LAUNCH_MS)

    def now_s(self) -> float:
        """The clock of the host."""
        return self.host_ms / 1e3

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(L2_cache_size=self._said_bytes)

    def synchronize(self) -> None:
        self.host_ms = max(self.host_ms, *self._until_ms.values())

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(at_ms=0.0)

        def record() -> None:
            event.at_ms = self._until_ms[self._current] = max(self._until_ms[self._current], self.host_ms)

        def synchronize() -> None:
            self.host_ms = max(self.host_ms, event.at_ms)

        event.record, event.synchronize = record, synchronize
        event.elapsed_time = lambda other: other.at_ms - event.at_ms
        return event

    def Stream(self) -> Any:
        return self._named(SIDE)

    def current_stream(self) -> Any:
        return self._named(self._current)

    def _named(self, name: str) -> Any:
        def wait_stream(other: Any) -> None:
            self._until_ms[name] = max(self._until_ms[name], self._until_ms[other.name])

        return SimpleNamespace(name=name, wait_stream=wait_stream)

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self._current = self._current, stream.name
        yield
        self._current = before

    def CUDAGraph(self) -> Any:
        work: list[Work] = []
        return SimpleNamespace(work=work, replay=lambda: [launch() for launch in work])

    @contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        with self.stream(stream):
            self._captured = graph.work
            yield
            self._captured = None
