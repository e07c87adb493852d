"""A run of its own process, for tests that kill it: says what it is about to measure, a line each."""

from __future__ import annotations

import sys
from pathlib import Path

from hyperbench.measure.runner import session
from hyperbench.store.schema import Record


class Speaker:
    """Prints what begins."""

    def begin(self, label: str) -> None:
        """Fingerprint it at once."""
        print(label, flush=True)

    def finished(self, cost_s: float) -> None:
        """Say nothing."""

    def row(self, record: Record) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


if __name__ == "__main__":
    prepared = session.prepare(sys.argv[2:])
    folder = session.open_folder(prepared, Path(sys.argv[1]), resume=False, fresh=False)
    session.measure(prepared, folder, Speaker(), retry_failed=False)
