"""A run of its own process, for tests that kill it: says what it is about to measure, a line each."""

from __future__ import annotations

import sys
from pathlib import Path

from hyperbench.measure.runner.open_run import open_folder
from hyperbench.measure.runner.prepare import prepare
from hyperbench.measure.runner.session import measure
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
    prepared = prepare(sys.argv[2:])
    measure(prepared, open_folder(prepared, Path(sys.argv[1])), Speaker())
