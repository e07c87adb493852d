"""A clock for tests: nothing is measured, and every time is the test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class FakeClock:
    """Makes the calls and says of the n-th that it took `call_ms` (of n): time stands still meanwhile.

    Without `call_ms` a call itself returns its milliseconds, and time moves by them and by `around_ms`. Each look at
    the time is `look_s` later than the one before; or all times are those that `reads_s` tells. `heard` are the
    messages of the group that is measured.
    """

    def __init__(
        self,
        call_ms: float | Callable[[int], float] | None = 1.0,
        *,
        host_ms: float | None = None,
        around_ms: float = 0.0,
        look_s: float = 0.0,
        reads_s: Callable[[], float] | None = None,
    ) -> None:
        self.host_ms = host_ms
        self.now_ms = 0.0
        self.calls = 0
        self.loads: list[bool] = []
        self.heard: list[dict[str, Any]] = []
        self._call_ms = call_ms
        self._around_ms = around_ms
        self._look_s = look_s
        self._reads_s = reads_s

    def now_s(self) -> float:
        """Seconds since the start."""
        if self._reads_s is not None:
            return self._reads_s()
        self.now_ms += self._look_s * 1e3
        return self.now_ms / 1e3

    def time_ms(self, call: Callable[[], Any], *, is_load: bool = False) -> float:
        """Make the call."""
        begun_s = self._reads_s() if self._reads_s else 0.0
        result = call()
        self.calls += 1
        self.loads.append(is_load)
        if self._reads_s is not None:
            return (self._reads_s() - begun_s) * 1e3
        if self._call_ms is None:
            self.now_ms += float(result) + self._around_ms
            return float(result)
        return self._call_ms(self.calls) if callable(self._call_ms) else self._call_ms


def standing(**options: Any) -> FakeClock:
    """A clock that stands still but for the calls, which say how many milliseconds they take."""
    return FakeClock(None, **options)
