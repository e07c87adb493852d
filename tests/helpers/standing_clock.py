"""A clock that calls move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Clock:
    """Stands still but for the calls, which say how many milliseconds they take."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def now_s(self) -> float:
        """Seconds since the start."""
        return self.now_ms / 1e3

    def time_ms(self, call: Callable[[], Any]) -> float:
        """What the call says."""
        elapsed_ms = float(call())
        self.now_ms += elapsed_ms
        return elapsed_ms
