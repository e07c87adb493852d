"""A command run in this process, and a run that was measured once for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.commands import TINY, Call, in_process, process, share_probes


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """A function that runs `hyperbench WORDS...` in this process, in an empty folder; workers are processes."""
    share_probes(monkeypatch)
    return in_process(monkeypatch, capsys, tmp_path)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run, under a path with spaces. Read only."""
    folder = tmp_path_factory.mktemp("a folder")
    done = process(folder, "run", *TINY, "out=my run")
    assert done.code == 0, done.err
    return folder / "my run"
