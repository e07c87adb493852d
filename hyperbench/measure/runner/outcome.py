"""What a run tells: how it gets on while it goes on, and what it has written in the end. No torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hyperbench.store.schema import Record, Status

if TYPE_CHECKING:
    from hyperbench.store.run_folder import Run

#: Rows that are no failure; `unsupported` is an answer.
GOOD_STATUSES = (Status.OK, Status.THROTTLED, Status.UNSUPPORTED)


class Listener(Protocol):
    """Hears how a run gets on."""

    def begin(self, label: str) -> None:
        """A new piece of work begins."""
        ...

    def finished(self, cost_s: float) -> None:
        """A part of a point, of this estimated cost, is done."""
        ...

    def row(self, record: Record) -> None:
        """A record has been written."""
        ...


@dataclass
class Outcome:
    """What a run has written: how many rows of times and of stages of each status, and whether it was interrupted.

    `time` says where the time went (see Account.report); empty where nobody kept account. `run` is what the
    folder holds in the end, once its tables are written.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    stage_statuses: Counter[str] = field(default_factory=Counter)
    time: dict[str, Any] = field(default_factory=dict)
    run: Run | None = None
