"""`make gpu` for real, in toy sizes on the CPU, as on a machine without pyarrow, plotly and hypothesis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from hyperbench.store.journal import read_journal
from hyperbench.store.run_folder import load_run
from hyperbench.store.schema import Timing

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
WORDS = [
    "--device=cpu", "--only=headline,stages,tests", "--budget=10m", "shape.heads=1", "shape.seq_len=64,96",
    "method.hyper.block_size=16", "method.hyper.sample_size=16", "method.hyper.min_seq_len=32", "error.seeds=[0]",
    "protocol.min_samples=2", "protocol.max_samples=2", "protocol.warmup_min_s=0", "protocol.warmup_max_s=0.01",
]  # fmt: skip


def test_a_kill_loses_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (hidden := tmp_path / "hidden").mkdir()
    for name in ("pyarrow", "plotly", "kaleido", "hypothesis"):
        (hidden / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name} here')\n")
    env = {**os.environ, "PYTHONPATH": str(hidden)}
    out = tmp_path / "a folder"
    command = [sys.executable, "-m", "tools.gpu_reference", f"--out={out}", *WORDS]
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
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
    journal = (out / "headline" / "journal.jsonl").read_bytes()
    whole = journal[: journal.rfind(b"\n") + 1]
    assert b"flash2" in whole

    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "headline" / "journal.jsonl").read_bytes().startswith(whole)
    for name, count in (("headline", 16), ("stages", 8)):
        timings = [r for r in read_journal(out / name / "journal.jsonl") if isinstance(r, Timing)]
        assert len({record.key for record in timings}) == len(timings)
        assert {record.round for record in timings} == {0}
        run = load_run(out / name)
        assert len(run.passes) == count
        assert set(run.timings["status"]) <= {"ok", "unsupported"}
        assert f"{name}: done" in done.stdout
        assert f"hyperbench plot --run '{out / name}'" in done.stdout
    assert "hyper: right" in (out / "check_hyper.txt").read_text()
    with tarfile.open(tmp_path / "a folder.tar.gz") as archive:
        assert {f"a folder/{name}" for name in ("headline/journal.jsonl", "stages/timings.csv", "tests.xml")} <= set(
            archive.getnames()
        )
    assert len(run.stages)
    assert "skipped" in (out / "tests.xml").read_text()
