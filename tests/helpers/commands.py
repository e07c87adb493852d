"""The command line as a user meets it: what a command leaves behind, a grid that is quickly measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hyperbench.cli import main
from hyperbench.commands import doctor
from hyperbench.measure.runner import prepare

#: Three calls a point, and no time to warm up.
QUICK = (
    "sweep=smoke", "protocol.min_samples=3", "protocol.max_samples=3", "protocol.warmup_min_s=0",
    "protocol.warmup_max_s=0.01", "protocol.warmup_min_calls=1", "protocol.min_spread_s=0",
)  # fmt: skip
#: A grid that takes a second or two: two lengths, both maskings, all passes.
TINY = (
    *QUICK, "shape.seq_len=64,96", "method.hyper.block_size=16", "method.hyper.sample_size=16",
    "method.hyper.min_seq_len=32", "error.seeds=[0,1]",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a command left behind: its exit code and both streams."""

    code: int
    out: str
    err: str


Call = Callable[..., Answer]
_answers: dict[str, dict[str, Any]] = {}


def ask_once(request: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """Answer of a real probe, asked once for requests that are alike. The speed of the machine is not measured."""
    request = {**request, "measure_rate": request.get("measure_rate", False) and request.get("diagnose", False)}
    key = json.dumps([request, sorted(env.items())], sort_keys=True)
    if key not in _answers:
        _answers[key] = prepare.ask_probe(request, env)
    return deepcopy(_answers[key])


def share_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands in this process ask a probe once for requests that are alike."""
    monkeypatch.setattr(prepare, "prepare", partial(prepare.prepare, ask=ask_once))
    monkeypatch.setattr(doctor, "ask_probe", ask_once)


def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> Call:
    """A function that runs `hyperbench WORDS...` in this process, in that folder."""
    monkeypatch.chdir(folder)

    def run(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hyperbench", *words])
        with pytest.raises(SystemExit) as left:
            main()
        streams = capsys.readouterr()
        return Answer(int(left.value.code or 0), streams.out, streams.err)

    return run


def process(folder: Path, *words: str, **env: str) -> Answer:
    """Run `hyperbench WORDS...` as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "hyperbench", *words],
        cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **env},
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)
