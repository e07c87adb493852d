"""A command within a limit: its failure is a line, and nothing that it started outlives it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from hyperbench.analyze.plotting.limited import run_limited

# Starts a child, one in a session of its own and one that left its parent as a daemon does; each says its id.
_FAMILY = """
sh -c 'echo $$ > "$0/child"; exec sleep 600' "$1" &
setsid sh -c 'echo $$ > "$0/session"; exec sleep 600' "$1" &
(setsid sh -c 'echo $$ > "$0/daemon"; exec sleep 600' "$1" &) &
while [ ! -s "$1/child" ] || [ ! -s "$1/session" ] || [ ! -s "$1/daemon" ]; do sleep 0.01; done
touch "$1/ready"
"""


def is_running(pid: int) -> bool:
    """Whether a process lives; one that has ended and waits to be counted does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def is_filled(path: Path) -> bool:
    """Whether a file is there and holds something."""
    return path.exists() and path.stat().st_size > 0


def family(folder: Path, last: str, limit_s: float) -> tuple[str | None, list[int]]:
    """Run the family with a last command; its outcome and the processes it had started when it ended."""
    outcome = None
    # On a busy machine the family may need longer than the limit to be complete: try again with twice of it.
    while not (folder / "ready").exists() and limit_s < 60:
        for old in folder.iterdir():
            old.unlink()
        outcome = run_limited(["sh", "-c", _FAMILY + last, "sh", str(folder)], limit_s, os.environ)
        limit_s *= 2
    assert (folder / "ready").exists()
    return outcome, [int((folder / name).read_text()) for name in ("child", "session", "daemon")]


def test_a_command_that_hangs_is_ended_with_everything_it_started(tmp_path: Path) -> None:
    outcome, pids = family(tmp_path, "exec sleep 600", 0.3)
    assert outcome is not None
    assert "did not finish within" in outcome
    assert not [pid for pid in pids if is_running(pid)]


def test_what_a_command_leaves_behind_is_ended_too(tmp_path: Path) -> None:
    outcome, pids = family(tmp_path, "exit 0", 20.0)
    assert outcome is None
    assert not [pid for pid in pids if is_running(pid)]


def test_a_child_that_hides_its_environment_is_ended_too(tmp_path: Path) -> None:
    hidden = 'env -i PATH="$PATH" sh -c \'echo $$ > "$0/hidden"; exec sleep 600\' "$1" & wait'
    limit_s = 0.3
    while not is_filled(tmp_path / "hidden") and limit_s < 60:
        run_limited(["sh", "-c", hidden, "sh", str(tmp_path)], limit_s, os.environ)
        limit_s *= 2
    assert not is_running(int((tmp_path / "hidden").read_text()))


def test_other_processes_are_left_alone(tmp_path: Path) -> None:
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
