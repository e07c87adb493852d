"""Made-up runs as folders, written once for all tests that only read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from synthetic_runs import grid, write_run

from hyperbench.analyze.view import View, make_view
from hyperbench.schema import Record
from hyperbench.store import load_run

MakeRun = Callable[..., Path]
MakeView = Callable[..., View]


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU grid, every point measured. Read only: write figures and exports elsewhere."""
    return write_run(tmp_path_factory.mktemp("full"), grid())


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run of given records and returns its folder."""

    def make(records: Iterable[Record], name: str = "run", **environment: object) -> Path:
        return write_run(tmp_path / name, records, environment)

    return make


@pytest.fixture
def view_of(make_run: MakeRun) -> MakeView:
    """A function that gives the view of a run of given records."""

    def view(records: Iterable[Record], **environment: object) -> View:
        return make_view(load_run(make_run(records, **environment)))

    return view
