"""`~` in the name of a folder is the home folder, once; `./~` is a folder of that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import load
from hyperbench.config.paths import folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and an empty current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_tilde_is_the_home_folder(home: Path) -> None:
    assert folder("~") == home
    assert folder("~/runs/a b") == home / "runs" / "a b"
    assert load(["out=~/runs"], lambda asked: ("cpu", "")).out == home / "runs"


def test_a_tilde_elsewhere_is_a_letter() -> None:
    assert folder("runs/~/a~b") == Path("runs/~/a~b")
    assert folder("./~/runs") == Path.cwd() / "~" / "runs"
    assert folder("runs") == Path("runs")


@pytest.mark.parametrize("text", ["~nobody_of_that_name", "~nobody_of_that_name/runs", "a\0b"])
def test_what_names_no_folder_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        folder(text)
