"""What hyperbench gives for the runs under results/reference, and the points of every sweep, as text files.

`python tests/golden/make.py` records it in tests/golden/expected; test_golden.py compares with that. Tables and small
files are recorded as text, and what is large (a number for every row, figures) as SHA-256. `--out DIR` writes all of it
in full and records nothing: do that on two commits, and `diff -r` shows what has changed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("results/reference")
EXPECTED = Path(__file__).resolve().with_name("expected")
DIGESTS = EXPECTED / "digests.json"
#: Group of the table of `make kernels`: it takes long, and holds for one version of Triton.
KERNELS = "kernels"
#: Files whose text is not kept, only its digest.
LARGE = ("show.json", "timings.csv", "errors.csv", "figure_*.json")
#: A number with many digits.
_NUMBER = re.compile(r"-?\d+\.\d{6,}(e[-+]?\d+)?")
_AA = "amd-epyc-2-cores/aa"
COMPARISONS = {
    "strict_1_with_strict_2": (f"{_AA}/strict_1", f"{_AA}/strict_2"),
    "strict_3_with_strict_4": (f"{_AA}/strict_3", f"{_AA}/strict_4"),
    "strict_5_with_strict_6": (f"{_AA}/strict_5", f"{_AA}/strict_6"),
    "two_names": (f"{_AA}/two_names", "--methods", "flash2,again"),
    "fig4_methods": ("amd-epyc-family-25-2-cores/fig4", "--methods", "flash2,hyper"),
}

Files = dict[str, str]
#: What is known of the small language model, which need not be installed.
SMALL_MODEL = {"layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "context": 8192, "name": "small"}


def groups() -> dict[str, Callable[[], Files]]:
    """Functions that make the artefacts, by the folder of these; each gives texts by file name."""
    found: dict[str, Callable[[], Files]] = {}
    for journal in sorted((ROOT / RUNS).rglob("journal.jsonl")):
        run = journal.parent.relative_to(ROOT / RUNS).as_posix()
        found[f"{run}/show"] = partial(_show, run)
        found[f"{run}/plot"] = partial(_plot, run)
        for kind in ("csv", "latex", "markdown"):
            found[f"{run}/{kind}"] = partial(_export, run, kind)
    for name, words in COMPARISONS.items():
        found[f"compare/{name}"] = partial(_compare, *words)
    for path in sorted((ROOT / "conf" / "sweep").glob("*.yaml")):
        # The points of LongBench are those of the files of a folder.
        if path.stem != "longbench":
            found[f"points/{path.stem}"] = partial(_points, path.stem)
    found[KERNELS] = _kernels
    return found


def recorded() -> Files:
    """What was recorded, by artefact: the text, or its digest where it is large."""
    texts = {
        path.relative_to(EXPECTED).as_posix(): path.read_text(encoding="utf-8")
        for path in EXPECTED.rglob("*")
        if path.is_file() and path != DIGESTS
    }
    return texts | json.loads(DIGESTS.read_text(encoding="utf-8"))


def as_recorded(name: str, text: str) -> str:
    """The text of an artefact, or its digest where it is large: with six digits of its numbers.

    Logarithms in NumPy, and what is made of them, differ in their last bits between kinds of CPU.
    """
    is_large = any(Path(name).match(pattern) for pattern in LARGE)
    rounded = _NUMBER.sub(lambda number: f"{float(number.group()):.6g}", text) if is_large else text
    return "sha256:" + hashlib.sha256(rounded.encode()).hexdigest() if is_large else text


def make(group: str) -> Files:
    """The artefacts of a group as they are now, in full."""
    with chdir(ROOT):
        return {f"{group}/{name}": text for name, text in groups()[group]().items()}


def _show(run: str) -> Files:
    words = ("show", "--run", str(RUNS / run))
    return {"show.json": _sorted(_hyperbench(*words, "--json")), "show.txt": _hyperbench(*words)}


def _export(run: str, kind: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        _hyperbench("export", "--run", str(RUNS / run), "--format", kind, "--out", folder)
        return {path.name: path.read_bytes().decode() for path in Path(folder).iterdir()}


def _plot(run: str) -> Files:
    """Every figure that fits, and the lines on those that do not."""
    with tempfile.TemporaryDirectory() as folder:
        said = json.loads(_hyperbench("plot", "--run", str(RUNS / run), "--out", folder, "--json"))
        files = {f"figure_{path.stem}.json": _figure(path) for path in Path(folder).glob("*.html")}
    return {**files, "messages.json": _json(said["messages"])}


def _compare(*words: str) -> Files:
    where = [word if word.startswith("--") or "," in word else str(RUNS / word) for word in words]
    return {
        "compare.json": _json(json.loads(_hyperbench("compare", *where, "--json"), parse_float=_six_digits)),
        "compare.txt": _hyperbench("compare", *where),
    }


def _six_digits(text: str) -> float:
    """A number of a comparison, for the same reason as in `as_recorded`."""
    return float(f"{float(text):.6g}")


def _points(sweep: str) -> Files:
    """Id and method of every point in the order of the grid, as `run sweep=NAME device=cpu --dry-run` lists them."""
    from hyperbench.measure.runner.prepare import prepare

    points = prepare([f"sweep={sweep}", "device=cpu"], _ask, lambda request: SMALL_MODEL).points
    return {"points.txt": "".join(f"{point.point_id} {point.method}\n" for point in points)}


def _ask(request: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """Answer as the probe's process would, within this one and without measuring this machine's speed."""
    from hyperbench.measure.probe.main import main

    answer: dict[str, Any] = json.loads(_printed(main, json.dumps({**request, "measure_rate": False})))
    return answer


def _kernels() -> Files:
    from tools.kernels.table import main

    return {"kernels.json": _printed(lambda: main(["--json"]))}


def _hyperbench(*words: str) -> str:
    """What a command prints."""
    from hyperbench.cli import main

    def call() -> None:
        try:
            main()
        except SystemExit as left:
            # 1 is an answer as well: no figure fits.
            if left.code not in (None, 0, 1):
                raise RuntimeError(f"hyperbench {' '.join(words)} ended with exit code {left.code}") from None

    with patch.object(sys, "argv", ["hyperbench", *words]):
        return _printed(call)


def _printed(call: Callable[[], object], stdin: str = "") -> str:
    """What a function writes to file descriptor 1, itself or through a process."""
    kept = os.dup(1)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            with (
                os.fdopen(os.dup(1), "w", encoding="utf-8") as out,
                patch.object(sys, "stdout", out),
                patch.object(sys, "stdin", io.StringIO(stdin)),
            ):
                call()
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        file.seek(0)
        return file.read().decode()


def _figure(page: Path) -> str:
    """Data and layout of the figure of an HTML page; the template is left out, it is the same for all."""
    text = page.read_text(encoding="utf-8")
    parts, at = [], text.index("[", text.rindex("Plotly.newPlot("))
    for opening in "[{":
        part, at = json.JSONDecoder(object_hook=_readable).raw_decode(text, text.index(opening, at))
        parts.append(part)
    data, layout = parts
    layout.pop("template", None)
    return _json({"data": data, "layout": layout})


def _readable(value: dict[str, Any]) -> Any:
    """An array as a list, which plotly writes as base64."""
    if "bdata" not in value:
        return value
    array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
    return array.reshape([int(n) for n in value["shape"].split(",")] if "shape" in value else -1).tolist()


def _sorted(text: str) -> str:
    return _json(json.loads(text))


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())


def main() -> None:
    """Make everything; write it in full to --out, or record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write everything to; records nothing")
    out = parser.parse_args().out
    made: Files = {}
    for group in groups():
        made |= make(group)
    if out is not None:
        return _write(out, made)
    kept = {name: as_recorded(name, text) for name, text in made.items()}
    digests = {name: text for name, text in kept.items() if text != made[name]}
    # Nothing may be left of a run that is gone.
    shutil.rmtree(EXPECTED, ignore_errors=True)
    _write(EXPECTED, {name: text for name, text in kept.items() if name not in digests})
    _write(EXPECTED, {DIGESTS.name: _json(digests)})
    print(f"{len(made)} artefacts recorded, {len(digests)} of them as digests")
    return None


if __name__ == "__main__":
    main()
