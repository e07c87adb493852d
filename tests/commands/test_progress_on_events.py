"""The progress bar is drawn when something happens, and by nothing that runs beside the measurement."""

from __future__ import annotations

import io
import threading

from rich.console import Console

from hyperbench.commands.progress import Bar


def test_the_bar_shows_each_event_at_once_and_starts_no_thread() -> None:
    text = io.StringIO()
    before = set(threading.enumerate())
    with Bar(Console(file=text, force_terminal=True, width=120)) as bar:
        bar.start(8.0)
        assert "starting" in text.getvalue()
        bar.begin("hyper n=64")
        assert "hyper n=64" in text.getvalue()
        bar.finished(2.0)
        assert "25%" in text.getvalue()
        assert set(threading.enumerate()) == before
