"""Children run the parent's code wherever they are started, take none of the current folder, and say what they run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hyperbench
from hyperbench.child import command
from hyperbench.child.code import Code, admit_current_folder, difference, package_files, running_code
from hyperbench.child.start import PinnedPackages
from hyperbench.config.catalog import ConfigError
from hyperbench.measure.messages import Event
from hyperbench.measure.runner import prepare
from hyperbench.measure.runner.prepare import ask_probe
from hyperbench.measure.runner.runner import MeasureError
from hyperbench.measure.runner.worker_process import WorkerProcess
from tests.helpers.fake_worker import FakeWorker, Site
from tests.helpers.made_runs import tiny

METHOD = """
def attention(q, k, v, *, is_causal):
    return v
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: one that somebody sent, with modules of well-known names, and a method from outside."""
    for name in ("json", "torch", "hyperbench", "hyperattn_core", "runpy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("open('was_run', 'w')\nraise SystemExit('foreign code')\n")
    (tmp_path / "from_outside.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    # An empty entry stands for the current folder.
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ.get("PYTHONPATH", ""))
    return tmp_path


def test_a_child_takes_nothing_from_the_current_folder(foreign: Path) -> None:
    program = "import json, sys; print(*sys.path, sep='\\n')"
    done = subprocess.run(
        command.python("-c", program), env=command.environment(), capture_output=True, text=True, check=True
    )
    assert str(foreign) not in done.stdout.splitlines()
    assert not (foreign / "was_run").exists()


def test_entries_of_the_path_that_stand_for_the_current_folder_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value, kept in (
        ("", None),
        (":", None),
        (".::./", None),
        (":/a:.:b", "/a:b"),
        (f"/a:{tmp_path}", f"/a:{tmp_path}"),
    ):
        monkeypatch.setenv("PYTHONPATH", value)
        assert command.environment().get("PYTHONPATH") == kept
    assert command.environment({"PYTHONPATH": ":/c", "ONE": "1"}).items() >= {"PYTHONPATH": "/c", "ONE": "1"}.items()


@pytest.mark.slow
def test_a_probe_runs_the_parents_code_and_finds_a_method_in_the_current_folder(foreign: Path) -> None:
    target = "from_outside.attention"
    request = {"methods": [{"name": "mine", "target": target, "hypers": [{}]}], "inputs": []}
    answer = ask_probe(request, {})
    assert answer["problems"] == []
    assert target in answer["methods"]
    assert Code(answer["code"], answer["files"]) == running_code([target]) != running_code()
    assert answer["files"]["hyperbench"] == hyperbench.__file__
    assert not (foreign / "was_run").exists()


@pytest.mark.slow
def test_a_worker_runs_the_parents_code_and_says_so(foreign: Path) -> None:
    target = "from_outside.attention"
    worker = WorkerProcess({}, foreign / "log", [target])
    try:
        message = worker.receive(300.0)
    finally:
        worker.end()
    assert (message.event, message.code) == (Event.READY, running_code([target]))
    assert not (foreign / "was_run").exists()


def test_a_package_is_pinned_to_its_folder_and_others_are_left_to_the_path(tmp_path: Path) -> None:
    finder = PinnedPackages({"hyperattn_core": str(tmp_path)})
    spec = finder.find_spec("hyperattn_core")
    assert spec is not None
    assert (spec.origin, spec.submodule_search_locations) == (str(tmp_path / "__init__.py"), [str(tmp_path)])
    assert finder.find_spec("json") is None
    assert finder.find_spec("hyperattn_core.params") is None


def test_the_current_folder_comes_last_and_only_for_methods_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    admit_current_folder(["hyperbench.measure.methods.exact.math", "hyperattn_core.hyper_attention"])
    assert sys.path == before
    for _ in range(2):
        admit_current_folder(["hyperbench.measure.methods.exact.math", "mine.attention"])
        assert sys.path == [*before, str(tmp_path)]


def test_a_probe_of_other_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = json.dumps({"files": {**package_files(), "hyperbench": "/a/hyperbench/__init__.py"}})
    monkeypatch.setattr(command, "module", lambda name: [sys.executable, "-c", f"print({answer!r})"])
    with pytest.raises(ConfigError) as refused:
        prepare.ask_probe({}, {})
    assert str(refused.value) == (
        "processes started from here run other code than this one: "
        f"hyperbench from /a/hyperbench/__init__.py, not {hyperbench.__file__}"
    )


def test_a_worker_of_other_code_is_refused_in_one_line() -> None:
    expected = Code("0123456789ab", {"hyperbench": "/a", "hyperattn_core": "/b"})
    assert difference(expected, expected) == ""
    run = tiny("shape.seq_len=64", "method=[math]")
    run = dataclasses.replace(run, facts={**run.facts, "code": expected.fingerprint, "files": expected.files})
    for found, words in (
        (Code("0123456789ab", {"hyperbench": "/a", "hyperattn_core": "/c"}), "it takes hyperattn_core from /c, not /b"),
        (
            Code("ba9876543210", expected.files),
            "the code has changed since the run began (fingerprint 0123456789ab, now",
        ),
    ):
        site = Site(run, make=lambda found=found: FakeWorker(code=found))  # type: ignore[misc]
        with pytest.raises(MeasureError) as refused:
            site.run()
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
        assert all(worker.ended for worker in site.workers)
        assert not site.journal.records
    Site(run, make=lambda: FakeWorker(code=expected)).run()
