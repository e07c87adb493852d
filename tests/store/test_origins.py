"""Origins of a run's rounds: what begins one, what is read back, and how several are told in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hyperbench.store.origins import (
    FILE,
    MACHINE_KEYS,
    ORIGIN_KEYS,
    Origin,
    changes,
    described,
    of_round,
    read,
    to_text,
)

FIRST: dict[str, Any] = {"commit": "a" * 40, "torch": "2.0", "run_id": "one"}
SECOND: dict[str, Any] = {"commit": "b" * 40, "torch": "2.0", "run_id": "two"}
THIRD: dict[str, Any] = {"commit": "b" * 40, "torch": "2.1", "run_id": "three"}
ALL = (Origin(0, FIRST), Origin(3, SECOND), Origin(4, THIRD))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, FIRST) == ALL[:1]
    (tmp_path / FILE).write_text(to_text(ALL))
    assert read(tmp_path, FIRST) == ALL


def test_a_round_belongs_to_the_last_origin_that_begins_before_it() -> None:
    assert [of_round(ALL, round_).environment["run_id"] for round_ in range(6)] == [
        "one", "one", "one", "two", "three", "three",
    ]  # fmt: skip
    # An origin under which nothing was timed has no round.
    assert of_round((Origin(0, FIRST), Origin(0, SECOND)), 0).environment == SECOND


@pytest.mark.parametrize(
    "damage",
    [
        "", "{", "{}", "3", "null", "[3]", "[[]]", '[{"first_round": 1}]', "[" * 100_000,
        '[{"first_round": -1, "environment": {}}]', '[{"first_round": true, "environment": {}}]',
        '[{"first_round": "1", "environment": {}}]', '[{"first_round": 1, "environment": 3}]',
        '[{"first_round": 1, "environment": {"commit": "main"}}]',
        '[{"first_round": 2, "environment": {}}, {"first_round": 1, "environment": {}}]',
    ],
)  # fmt: skip
def test_damage_is_one_line(tmp_path: Path, damage: str) -> None:
    (tmp_path / FILE).write_text(damage)
    with pytest.raises(ValueError, match="is damaged: ") as caught:
        read(tmp_path, FIRST)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_only_known_keys_that_both_have_can_differ() -> None:
    assert changes(FIRST, {**FIRST, "run_id": "x", "started": "later", "dirty": True}, ORIGIN_KEYS) == []
    assert changes(FIRST, {**FIRST, "driver": "5"}, ORIGIN_KEYS) == []
    assert changes({"driver": None}, {"driver": "5"}, ORIGIN_KEYS) == ["driver (None there, 5 here)"]
    (text,) = changes({"env_vars": {}}, {"env_vars": {"OMP_X": "1" * 1000}}, ORIGIN_KEYS)
    assert len(text) < 150
    assert not set(MACHINE_KEYS) & set(ORIGIN_KEYS)


def test_several_origins_are_told_with_their_rounds_and_what_changed() -> None:
    assert described(ALL, []) == described(ALL, [0, 2]) == described(ALL[:1], [0, 7]) == ""
    assert described(ALL, [0, 1, 3, 5]) == (
        "measured under 3 origins: rounds 0 to 1 at aaaaaaaaaa; round 3 at bbbbbbbbbb (other commit);"
        " round 5 at bbbbbbbbbb (other torch)"
    )
    unknown = (Origin(0, {}), Origin(1, {"torch": "2"}))
    assert json.dumps(described(unknown, [0, 1])).count("commit not recorded") == 2
