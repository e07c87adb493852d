"""Made-up runs as folders, written once for all tests that only read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from hyperbench.analyze.view import View
from hyperbench.store.schema import Record
from tests.helpers.synthetic_runs import MakeRun, grid, view_from, write_run


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU grid, every point and stage measured. Read only: write figures and exports elsewhere."""
    return write_run(tmp_path_factory.mktemp("full"), grid(staged=True))


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run of given records and returns its folder."""

    def make(records: Iterable[Record], name: str = "run", **environment: object) -> Path:
        return write_run(tmp_path / name, records, environment)

    return make


@pytest.fixture(scope="session")
def full_view() -> View:
    """The view of the CPU grid, every point measured. Read only."""
    return view_from(grid())
