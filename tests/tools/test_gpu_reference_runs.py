"""The steps of `make gpu` for real, in toy sizes on the CPU, as on a machine without pyarrow, plotly and hypothesis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hyperbench.analyze.plot import plot_run
from hyperbench.gpu_reference import targets
from hyperbench.gpu_reference.processes import run_until
from hyperbench.store.journal import read_journal
from hyperbench.store.run_folder import load_run

ROOT = Path(__file__).parents[2]
MISSING = ("pyarrow", "plotly", "kaleido", "hypothesis")
RUNS = {"fig4", "long", "min_seq_len", "stages", "fig4-backward"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder which, on the path, hides what a machine with a GPU may lack."""
    folder = tmp_path_factory.mktemp("missing")
    for name in MISSING:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here')\n")
    return folder


def command(out: Path) -> list[str]:
    """`make gpu` in toy sizes."""
    return [sys.executable, "-m", "hyperbench.gpu_reference", "--device", "cpu", "--tiny", "--out", str(out)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, elsewhere: Path) -> tuple[Path, str, bytes]:
    """The folder of a `make gpu` killed in its first run and started again; what it said; its journal at the kill."""
    out = tmp_path_factory.mktemp("a folder") / "cpu"
    env = {**os.environ, "PYTHONPATH": str(elsewhere)}
    with subprocess.Popen(
        command(out), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as first:
        assert first.stdout is not None
        said = []
        for line in first.stdout:
            said.append(line)
            if line.startswith("flash2 gaussian"):
                first.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("".join(said))
        # The pipe ends when the last of its processes has: nothing of the killed run goes on behind our back.
        first.stdout.read()
    journal = (out / "fig4" / "journal.jsonl").read_bytes()
    done = subprocess.run(command(out), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout, journal


def test_a_kill_loses_nothing(finished: tuple[Path, str, bytes]) -> None:
    out, _, journal = finished
    assert b"flash2" in journal
    whole = journal[: journal.rfind(b"\n") + 1]
    assert (out / "fig4" / "journal.jsonl").read_bytes().startswith(whole)
    keys = Counter(record.key for record in read_journal(out / "fig4" / "journal.jsonl") if hasattr(record, "key"))
    assert set(keys.values()) == {1}


def test_every_run_is_whole_and_has_its_origin(finished: tuple[Path, str, bytes]) -> None:
    out, _, _ = finished
    assert {path.name for path in out.iterdir() if path.is_dir()} == RUNS
    for name in RUNS:
        run = load_run(out / name)
        assert set(run.timings["status"]) <= {"ok", "unsupported"}
        assert "ok" in set(run.timings["status"])
        assert run.environment["torch"]
        assert (out / name / "timings.csv").exists()
        assert not list((out / name).glob("*.parquet"))
    assert set(load_run(out / "fig4").timings["pass"]) == {"forward"}
    assert set(load_run(out / "fig4-backward").timings["pass"]) == {"backward", "forward_backward"}
    assert load_run(out / "long").timings["seq_len"].min() == 192
    assert len(load_run(out / "stages").stages)


def test_what_is_left_for_later_is_told_with_its_command(finished: tuple[Path, str, bytes], tmp_path: Path) -> None:
    out, said, _ = finished
    assert ".parquet needs pyarrow" in said
    assert f"hyperbench plot --run '{out / 'fig4'}'" in said
    assert not (out / "fig4" / "figures").exists()
    assert plot_run(out / "fig4", ["fig4"], ["html"], tmp_path).paths


def test_the_state_says_how_each_step_ended(finished: tuple[Path, str, bytes]) -> None:
    out, said, _ = finished
    found = json.loads((out / "reference.json").read_text())
    assert found["steps"] == dict.fromkeys(RUNS, "done")
    assert found["origin"]["code"]
    for name in RUNS:
        assert f"{name}: done" in said
    assert "skipped" in (out / "tests.txt").read_text()


def test_speedups_stand_beside_their_targets(
    finished: tuple[Path, str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished[0] / "fig4"
    assert all("not measured" in line and "target" in line for line in targets.lines(run))
    monkeypatch.setattr(targets, "SEQ_LEN", 96)
    measured = [line for line in targets.lines(run) if "not measured" not in line]
    assert len(measured) == 2
    assert all("over flash2" in line and "x (target" in line for line in measured)


class TestProcesses:
    """Children end when asked, when their time is up, and say how."""

    def test_an_exit_code_comes_back(self, tmp_path: Path) -> None:
        assert run_until([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, None) == 3
        assert run_until([sys.executable, "-c", ""], tmp_path, 60.0) == 0

    def test_output_goes_to_the_file_and_on(self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        script = "import os, sys; print(os.environ['TRITON_INTERPRET']); print('wrong', file=sys.stderr)"
        assert run_until([sys.executable, "-u", "-c", script], tmp_path, None, tmp_path / "log") == 0
        assert (tmp_path / "log").read_bytes() == b"0\nwrong\n"

    def test_one_whose_time_is_up_is_asked_to_end(self, tmp_path: Path) -> None:
        script = (
            "import pathlib, signal\n"
            "try:\n    signal.pause()\n"
            "except KeyboardInterrupt:\n    pathlib.Path('tables').write_text('written')\n"
        )
        assert run_until([sys.executable, "-c", script], tmp_path, 1.0) is None
        assert (tmp_path / "tables").read_text() == "written"
