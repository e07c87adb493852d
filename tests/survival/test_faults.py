"""Faults of every kind, done to runs and to their folders: no finished record is lost, none is altered and accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.survival import faults


@pytest.mark.parametrize("share", [0.01, pytest.param(0.3, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::hyperbench.store.files.DamageWarning")
def test_no_finished_record_is_lost_at_any_moment(share: float, tmp_path: Path) -> None:
    found = faults.harm_sessions(tmp_path, share, "any")
    assert set(found) == set(faults.MOMENTS)
    for count in found.values():
        assert count["tried"] > 2
        assert (count["lost"], count["altered"], count["unfinished"]) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("times", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_no_value_is_altered_and_accepted(times: int, tmp_path: Path) -> None:
    found = faults.damage_files(tmp_path, times, "any")
    assert len(found) == len(faults.FILES) * len(faults.DAMAGES)
    for count in found.values():
        assert (count["tried"], count["altered"]) == (times, 0)
    # A cut between two lines leaves a journal that is whole, and so does a block of lines that is left out at its end.
    untold = tuple(f"{faults.FILES[0]}: {damage}" for damage in ("cut", "a block left out"))
    assert sum(count["lost"] for name, count in found.items() if name not in untold) == 0


@pytest.mark.slow
def test_without_checksums_values_would_be_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zlib.crc32", lambda data: 0)
    monkeypatch.setattr(faults, "FILES", ("journal.jsonl",))
    found = faults.damage_files(tmp_path, 20, "any")
    assert sum(count["altered"] for count in found.values()) > 0
