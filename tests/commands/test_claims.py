"""`hyperbench claims`: verdicts on the runs that are named, and an exit code where it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperbench.store.schema import Pass
from tests.helpers.commands import Call
from tests.helpers.synthetic_runs import GPU_LENGTHS, point, timing, write_run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs: in one the speedup grows with the length, in the other it falls."""
    made = []
    for name, power in (("grows", 1), ("falls", 3)):
        records = [
            timing(p, Pass.FORWARD, p.seq_len ** (2 if p.method == "flash2" else power) * 1e-9)
            for n in GPU_LENGTHS[:3]
            for p in (point("flash2", n), point("hyper", n, hyper={"block_size": 256, "sample_size": 256}))
        ]
        made.append(write_run(tmp_path / name, records))
    return made[0], made[1]


def test_a_claim_that_does_not_hold_is_a_failure_if_asked(runs: tuple[Path, Path], call: Call) -> None:
    grows, falls = map(str, runs)
    for words, code in (
        (("--run", grows, "--strict"), 0),
        (("--run", falls), 0),
        (("--run", falls, "--strict"), 1),
    ):
        answer = call("claims", *words)
        assert answer.code == code, answer.err
        assert "speedups grow with the sequence length" in answer.out


def test_as_data(runs: tuple[Path, Path], call: Call) -> None:
    answer = call("claims", "--run", str(runs[0]), "--run", str(runs[1]), "--json", "--strict")
    assert answer.code == 1
    told = json.loads(answer.out)
    assert told["runs"] == [str(run) for run in runs]
    (grows,) = [claim for claim in told["claims"] if claim["id"] == "fig4-range"]
    assert grows["verdict"] == "does not hold"
    assert [found["verdict"] for found in grows["found"]] == ["holds", "does not hold"]


def test_a_folder_that_is_no_run_is_refused(call: Call) -> None:
    answer = call("claims", "--run", "nowhere")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == "hyperbench: there is no run folder at nowhere\n"
