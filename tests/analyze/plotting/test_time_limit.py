"""A command within a time limit: its failure is a line, and it ends with its process group."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from hyperbench.analyze.plotting import write
from hyperbench.analyze.plotting.write import run_limited

# Does not heed an interrupt; says its id and that of a child.
_DEAF = """
trap '' INT
sleep 600 &
echo $$ $! > "$1/part" && mv "$1/part" "$1/pids"
wait
"""


def is_running(pid: int) -> bool:
    """True while a process lives; one that has ended and waits to be counted does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def ends(pid: int) -> bool:
    """True if a process that was killed is gone soon."""
    until = time.monotonic() + 20.0
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_running(pid)


def test_a_command_that_hangs_and_heeds_nothing_is_ended_with_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "CLOSE_TIMEOUT_S", 0.1)
    outcome, limit_s = None, 0.3
    # On a busy machine it may need longer than the limit to say its ids: try again with twice of it.
    while not (tmp_path / "pids").exists() and limit_s < 60:
        outcome = run_limited(["sh", "-c", _DEAF, "sh", str(tmp_path)], limit_s, os.environ)
        limit_s *= 2
    assert outcome is not None
    assert "did not finish within" in outcome
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(ends(pid) for pid in pids)


def test_a_child_that_a_command_leaves_behind_is_ended_too(tmp_path: Path) -> None:
    left = 'sleep 600 & echo $! > "$1/pids"'
    assert run_limited(["sh", "-c", left, "sh", str(tmp_path)], 20.0, os.environ) is None
    assert ends(int((tmp_path / "pids").read_text()))


def test_other_processes_are_left_alone() -> None:
    assert run_limited(["sh", "-c", "exit 0"], 20.0, os.environ) is None
    assert is_running(os.getpid())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import sys; sys.stderr.write('first\\n\\nno browser\\n  \\n'); raise SystemExit(1)", "no browser"),
        ("raise RuntimeError('no display')", "RuntimeError: no display"),
        ("import os; os.write(2, b'\\xff\\xfe'); raise SystemExit(1)", "�"),
    ],
)
def test_a_failure_is_told_in_one_line(code: str, told: str) -> None:
    outcome = run_limited([sys.executable, "-c", code], 20.0, os.environ)
    assert outcome is not None
    assert told in outcome
    assert len(outcome.splitlines()) == 1


def test_the_environment_is_the_one_given(tmp_path: Path) -> None:
    command = ["sh", "-c", 'test "$COLOUR" = blue && test -z "$HOME"']
    assert run_limited(command, 20.0, {"COLOUR": "blue", "PATH": os.environ["PATH"]}) is None
