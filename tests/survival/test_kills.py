"""Killed fifty times over one sweep and resumed each time: every point ends measured once, and no row is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hyperbench.store.run_folder import load_run
from tests.helpers.fake_worker import Site
from tests.helpers.kill_storm import WORDS
from tests.helpers.made_runs import tiny

KILLS = 50


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a sweep that was killed fifty times, and what was seen after each of its sessions."""
    folder = tmp_path_factory.mktemp("storm") / "run"
    program = Path(__file__).parents[1] / "helpers" / "kill_storm.py"
    done = subprocess.run(
        [sys.executable, str(program), str(folder), str(KILLS), "any seed"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_parents_and_workers_were_killed_and_nothing_else_went_wrong(storm: Any) -> None:
    _, seen = storm
    assert len(seen[-1]["killed"]) in (KILLS, KILLS + 1)  # the last session may have lost both
    assert seen[-1]["killed"].count("parent") > KILLS // 4
    assert seen[-1]["killed"].count("worker") > KILLS // 10
    assert {one["code"] for one in seen} <= {0, -9}
    assert seen[-1]["code"] == 0


@pytest.mark.slow
def test_the_journal_was_valid_after_each_kill_and_only_ever_grew(storm: Any) -> None:
    _, seen = storm
    for before, after in pairwise(seen):
        assert after["lines"].startswith(before["lines"])
    # Some kills came in the middle of a line.
    assert sum(one["torn"] for one in seen) > 3
    # The kills were spread over the sweep.
    assert len({len(one["keys"]) for one in seen}) > KILLS // 4


@pytest.mark.slow
def test_every_point_is_measured_exactly_once(storm: Any) -> None:
    folder, seen = storm
    keys = [tuple(key) for key in seen[-1]["keys"]]
    assert len(keys) == len(set(keys))
    assert set(keys) == Site(tiny(*WORDS)).expected
    assert seen[-1]["statuses"] == ["ok"]
    assert not list(folder.glob(".*"))
    run = load_run(folder)
    assert len(run.timings) == 3 * 2 * 3 * 2
    assert (folder / "timings.csv").read_text().count("\n") == len(run.timings) + 1
