"""The command line as a user meets it: what a command leaves behind, a grid that is quickly measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyperbench.cli import main

#: A grid that takes a second or two: two lengths, both maskings, all passes.
TINY = (
    "sweep=smoke", "shape.seq_len=64,96", "method.hyper.block_size=16", "method.hyper.sample_size=16",
    "method.hyper.min_seq_len=32", "error.seeds=[0,1]", "protocol.min_samples=3", "protocol.max_samples=3",
    "protocol.warmup_min_s=0", "protocol.warmup_max_s=0.01", "protocol.warmup_min_calls=1",
    "protocol.min_spread_s=0",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a command left behind: its exit code and both streams."""

    code: int
    out: str
    err: str


Call = Callable[..., Answer]


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
