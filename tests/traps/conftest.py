"""The command line in this process, and what makes these tests quick."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.quick import small_and_quick as small_and_quick


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> object:
    """A function that runs `hyperbench WORDS...` in this process, in an empty folder (see commands.Call)."""
    from tests.helpers.commands import in_process

    # Nothing crashes here so hard that what was written would be lost.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    return in_process(monkeypatch, capsys, tmp_path)
