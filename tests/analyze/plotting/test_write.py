"""Figures as files: images where an exporter works, HTML and one line where it does not, never a half-written file."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from hyperbench.analyze.plotting import write

# Stands in for kaleido: an image is its kind and the figure's title. It refuses what would be fetched from a network.
_FAKE = """
import asyncio, os, subprocess, time

class Kaleido:
    def __init__(self, n=1, mathjax=None):
        assert mathjax is False, "MathJax would be fetched"

    async def __aenter__(self):
        self.browser = subprocess.Popen(["sleep", "600"], start_new_session=True)
        return self

    async def __aexit__(self, *_):
        self.browser.kill()
        self.browser.wait()

    async def calc_fig(self, fig, opts=None):
        title = fig["layout"]["title"]["text"]
        if title == "hang":
            with open(os.environ["FAKE_PIDS"], "a") as file:
                file.write(f"{os.getpid()} {self.browser.pid}\\n")
            await asyncio.sleep(600)
        if title == "fail":
            raise RuntimeError("the browser closed\\nunexpectedly")
        assert opts["scale"] > 1
        return f"{opts['format']} of {title}".encode()
"""


def figure(title: str) -> go.Figure:
    """A small figure with a title."""
    return go.Figure(go.Scatter(y=[1, 2]), layout={"title": {"text": title}, "width": 700})


@pytest.fixture
def exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for exporter and browser; returns the file that names the processes of a hanging one."""
    module = tmp_path / "fake" / "kaleido.py"
    module.parent.mkdir()
    module.write_text(_FAKE, encoding="utf-8")
    browser = tmp_path / "fake" / "chromium"
    browser.write_text("#!/bin/sh\n", encoding="utf-8")
    browser.chmod(0o755)
    monkeypatch.delitem(sys.modules, "kaleido", raising=False)
    monkeypatch.syspath_prepend(str(module.parent))
    monkeypatch.setenv("PYTHONPATH", str(module.parent))
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    monkeypatch.setenv("FAKE_PIDS", str(tmp_path / "pids"))
    return tmp_path / "pids"


def names(folder: Path) -> list[str]:
    """Every file of a folder, hidden ones too."""
    return sorted(p.name for p in folder.iterdir())


def test_html_alone_needs_no_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an exporter was started")

    monkeypatch.setattr(write, "run_limited", refuse)
    monkeypatch.setattr(write, "image_obstacle", refuse)
    paths, messages = write.write_figures({"a": figure("A"), "b": figure("B")}, tmp_path, ["html"])
    assert names(tmp_path) == ["a.html", "b.html"]
    assert paths == [tmp_path / "a.html", tmp_path / "b.html"]
    assert messages == []


@pytest.mark.usefixtures("exporter")
def test_images_are_written_in_every_format_and_no_html_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths, messages = write.write_figures({"a": figure("A"), "b": figure("B")}, out, ["png", "svg", "pdf"])
    assert messages == []
    assert names(out) == [f"{n}.{k}" for n in "ab" for k in ("pdf", "png", "svg")]
    assert sorted(p.name for p in paths) == names(out)
    assert (out / "b.svg").read_bytes() == b"svg of B"


@pytest.mark.usefixtures("exporter")
def test_a_failing_image_becomes_html_and_one_line_and_the_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths, messages = write.write_figures({"a": figure("A"), "bad": figure("fail")}, out, ["png"])
    assert names(out) == ["a.png", "bad.html"]
    assert sorted(paths) == [out / "a.png", out / "bad.html"]
    (message,) = messages
    assert "not written: bad.png (HTML instead)" in message
    assert "unexpectedly" in message
    assert "\n" not in message


@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN], ids=["heeded", "ignored"])
def test_a_hanging_exporter_is_ended_with_its_browser_and_html_takes_the_place(
    tmp_path: Path, exporter: Path, interrupts: Any
) -> None:
    limit_s = 0.3
    # What a shell starts in the background ignores interrupts, and so do its children.
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        while not exporter.exists() and limit_s < 60:
            out = tmp_path / f"out{limit_s}"
            paths, messages = write.write_figures(
                {"a": figure("A"), "slow": figure("hang")}, out, ["png"], timeout_s=limit_s
            )
            limit_s *= 2
    finally:
        signal.signal(signal.SIGINT, before)
    (message,) = messages
    assert "did not finish within" in message
    assert "slow.png" in message
    assert "\n" not in message
    assert names(out) == ["a.png", "slow.html"]
    assert sorted(paths) == [out / "a.png", out / "slow.html"]
    for pid in exporter.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


@pytest.mark.parametrize(
    ("missing", "told"),
    [("exporter", "pip install 'hyperbench[export]'"), ("browser", "install Chromium or Chrome"), ("both", " and ")],
)
def test_without_exporter_or_browser_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, told: str
) -> None:
    find_spec = importlib.util.find_spec

    def found(name: str, *rest: Any) -> Any:
        if name == "kaleido":
            return None if missing in ("exporter", "both") else object()
        return None if name == "choreographer" else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.setenv("BROWSER_PATH", "/bin/sh" if missing == "exporter" else str(tmp_path / "none"))
    paths, messages = write.write_figures({"a": figure("A")}, tmp_path, ["png", "html", "svg"])
    assert names(tmp_path) == ["a.html"]
    assert paths == [tmp_path / "a.html"]
    (message,) = messages
    assert "a.png, a.svg" in message
    assert told in message
    assert "\n" not in message


def test_a_browser_is_found_on_the_path_or_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\n", encoding="utf-8")
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert write.find_browser() is None
    browser.chmod(0o755)
    assert write.find_browser() == str(browser)
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    assert write.find_browser() is None


@pytest.mark.usefixtures("exporter")
@pytest.mark.parametrize("kind", ["html", "png"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, kind: str) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way", encoding="utf-8")
    for folder in (blocked, blocked / "deeper"):
        with pytest.raises(ValueError, match="cannot write figures to") as caught:
            write.write_figures({"a": figure("A")}, folder, [kind])
        assert "\n" not in str(caught.value)
    assert blocked.read_text() == "in the way"


@pytest.mark.usefixtures("exporter")
def test_a_write_that_breaks_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write.write_figures({"a": figure("A")}, out, ["html", "png"])
    before = (out / "a.html").read_bytes(), (out / "a.png").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for kind in ("html", "png"):
        with pytest.raises(ValueError, match="No space left on device"):
            write.write_figures({"a": figure("B")}, out, [kind])
    assert names(out) == ["a.html", "a.png"]
    assert ((out / "a.html").read_bytes(), (out / "a.png").read_bytes()) == before
