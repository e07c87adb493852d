"""Plotly figures as files: HTML pages that need no network, and images through kaleido and a browser.

kaleido drives a browser, which may hang; it therefore runs in a process of its own with a time limit.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hyperbench.child import command, limited
from hyperbench.store.files import atomic_write, atomic_write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

START_TIMEOUT_S = 45.0
IMAGE_TIMEOUT_S = 15.0
#: After an interrupt kaleido has so long to close its browser.
CLOSE_TIMEOUT_S = 5.0
IMAGE_SCALE = 2
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
# One browser draws all images. Each appears under its name only when it is whole, so that what was finished before a
# time-out counts. A job in a shell's background ignores interrupts: this process must not, or its browser outlives it.
# MathJax is left out: it would be fetched from the network, and no text here is mathematics.
_EXPORT = """
import asyncio, json, os, signal, sys
import kaleido

signal.signal(signal.SIGINT, signal.default_int_handler)

async def export(jobs):
    async with kaleido.Kaleido(n=1, mathjax=False) as browser:
        for job in jobs:
            with open(job["source"], encoding="utf-8") as file:
                figure = json.load(file)
            image = await browser.calc_fig(figure, opts={"format": job["kind"], "scale": job["scale"]})
            with open(job["target"] + ".part", "wb") as file:
                file.write(image)
            os.replace(job["target"] + ".part", job["target"])

with open(sys.argv[1], encoding="utf-8") as file:
    asyncio.run(export(json.load(file)))
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>body {{ margin: 0; background: #fff; }} .figure {{ width: {width}px; margin: 8px auto; }}</style>
</head>
<body>
<div class="figure">
{body}
</div>
</body>
</html>
"""


def write_figures(
    figures: Mapping[str, go.Figure], folder: Path, formats: Sequence[str], timeout_s: float | None = None
) -> tuple[list[Path], list[str]]:
    """Write each figure in each format; images that cannot be written here are a message, and HTML takes their place.

    All images together may take `timeout_s` seconds (default: by their number). Raises ValueError where the folder
    cannot be written.
    """
    images = [f"{name}.{kind}" for name in figures for kind in formats if kind != "html"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths, failure = _write_images(figures, folder, images, timeout_s) if images else ([], None)
        lost = [image for image in images if folder / image not in paths]
        for name in figures:
            if "html" in formats or any(f"{name}.{kind}" in lost for kind in formats):
                atomic_write_text(folder / f"{name}.html", html_page(figures[name]))
                paths.append(folder / f"{name}.html")
    except OSError as error:
        raise ValueError(f"cannot write figures to {folder}: {error.strerror or error}") from None
    return sorted(paths), [f"not written: {', '.join(lost)} (HTML instead); {failure}"] if lost else []


def html_page(fig: go.Figure) -> str:
    """A page that shows the figure with plotly.js inside it: it opens offline and loads nothing."""
    title = fig.layout.title.text or "figure"
    plain_title = title.removeprefix("<b>").removesuffix("</b>")
    body = fig.to_html(
        full_html=False,
        include_plotlyjs=True,
        include_mathjax=False,
        config={"displaylogo": False, "responsive": False, "toImageButtonOptions": {"format": "svg"}},
    )
    # The title was escaped when the figure was made.
    return _PAGE.format(title=plain_title, width=int(fig.layout.width or 1200), body=body)


def image_obstacle() -> str | None:
    """One line on what to install to write images here; None if nothing is missing."""
    missing = []
    if importlib.util.find_spec("kaleido") is None:
        missing.append("pip install 'hyperbench[export]'")
    if find_browser() is None:
        missing.append("install Chromium or Chrome (for example: apt-get install chromium)")
    return f"to write images, {' and '.join(missing)}" if missing else None


def find_browser() -> str | None:
    """The browser that kaleido can drive: $BROWSER_PATH, one on the PATH, or one that kaleido downloaded; else None."""
    named = os.environ.get("BROWSER_PATH")
    if named:
        return named if os.access(named, os.X_OK) else None
    installed = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if installed or importlib.util.find_spec("choreographer") is None:
        return installed
    chromium = importlib.import_module("choreographer.browsers.chromium").Chromium
    downloaded: str | None = chromium.find_browser(skip_local=False)
    return downloaded


def _write_images(
    figures: Mapping[str, go.Figure], folder: Path, images: Sequence[str], timeout_s: float | None
) -> tuple[list[Path], str | None]:
    """Write the images in one process; returns those that are whole, and the failure as one line."""
    if obstacle := image_obstacle():
        return [], obstacle
    limit = timeout_s if timeout_s is not None else START_TIMEOUT_S + IMAGE_TIMEOUT_S * len(images)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = []
        for image in images:
            name, _, kind = image.rpartition(".")
            source, target = Path(scratch, f"{name}.json"), Path(scratch, image)
            source.write_text(figures[name].to_json(), encoding="utf-8")
            jobs.append({"source": str(source), "target": str(target), "kind": kind, "scale": IMAGE_SCALE})
        Path(scratch, "jobs").write_text(json.dumps(jobs), encoding="utf-8")
        environment = command.environment({"BROWSER_PATH": find_browser() or ""})
        failure = run_limited(command.python("-c", _EXPORT, f"{scratch}/jobs"), limit, environment)
        made = [path for path in (Path(scratch, image) for image in images) if path.is_file()]
        for path in made:
            atomic_write(folder / path.name, partial(shutil.copyfile, path))
    return [folder / path.name for path in made], failure


def run_limited(command: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> str | None:
    """Run a command in a process group of its own for at most `timeout_s`; returns its failure as one line, or None."""
    done = limited.run(command, environment, timeout_s, close_s=CLOSE_TIMEOUT_S)
    if done.code is None:
        return f"the exporter did not finish within {timeout_s:g} s"
    if done.code == 0:
        return None
    lines = [line.strip() for line in done.err.splitlines() if line.strip()]
    return f"the exporter failed: {lines[-1] if lines else f'exit code {done.code}'}"
