"""Ctrl-C, SIGTERM or SIGHUP, in two steps: the first asks for an end after the current sample, the second ends at once.

No torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

#: The signals by which a run is asked to end.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_S = 0.02
_NOTICE = b"\nstopping after the current sample; Ctrl-C again stops at once\n"


class AtOnce(KeyboardInterrupt):
    """The second Ctrl-C: nothing more is waited for or written."""


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP heard while it is entered; `asked` is true once one came.

    `on_first` is called when it does.
    Nothing is raised at the first one, so that no line of the journal is torn by it. Raises AtOnce at the second.
    Where signals cannot be heard (in a thread) or are ignored nothing changes.
    """

    def __init__(self, on_first: Callable[[], object], say: Callable[[bytes], object] | None = None) -> None:
        self.asked = False
        self._on_first = on_first
        # Not print: the signal may have come in the middle of one.
        self._say = say or _write_to_terminal
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                # A shell starts its background jobs with SIGINT ignored, and nohup all with SIGHUP; they stay deaf.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def asked_within(self, seconds: float) -> bool:
        """True if a signal has come, or comes within so many seconds."""
        end_s = time.monotonic() + seconds
        while not self.asked and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
        return self.asked

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise AtOnce
        self.asked = True
        self._on_first()
        self._say(_NOTICE)


def _write_to_terminal(text: bytes) -> None:
    # After SIGHUP there may be no terminal any more.
    with contextlib.suppress(OSError):
        os.write(2, text)
