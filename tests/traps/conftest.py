"""The helpers of the tests of measuring and of the command line serve here too, and so does what makes them quick."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from quick import small_and_quick as small_and_quick

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("measure", "cli") if str(TESTS / name) not in sys.path]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> object:
    """A function that runs `hyperbench WORDS...` in this process, in an empty folder (see commands.Call)."""
    from commands import in_process

    return in_process(monkeypatch, capsys, tmp_path)
