"""`hyperbench compare` as a user meets it: exit codes, one line for a mistake, the same answer as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperbench.analyze.view import MAIN_ERROR
from hyperbench.store.schema import ErrorRow
from tests.helpers.commands import Call
from tests.helpers.made_rounds import failed, points, rounds, sweep, write_run


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A run of two methods in five rounds."""
    return write_run(tmp_path / "before", sweep("one"))


@pytest.fixture
def slower(tmp_path: Path) -> Path:
    """The same run with the larger length 10 % slower."""
    return write_run(tmp_path / "slower", sweep("two", slowed={2048: 1.1}))


def test_the_verdict_is_the_last_line_and_in_the_data(call: Call, before: Path, slower: Path) -> None:
    line = "4 points, 8 passes: 4 same, 0 faster, 4 slower, 0 ambiguous"
    text = call("compare", str(before), str(slower))
    assert (text.code, text.err) == (0, "")
    assert text.out.rstrip().splitlines()[-1] == line
    data = json.loads(call("compare", str(before), str(slower), "--json").out)
    assert data["verdict"] == line
    assert {row["seq_len"] for row in data["points"] if row["verdict"] == "slower"} == {2048}
    for row in data["points"]:
        assert row["verdict"] in text.out
        assert row["reason"] in text.out


@pytest.mark.parametrize(("percent", "code"), [("5", 1), ("0", 1), ("9", 1), ("11", 0), ("1000", 0)])
def test_a_check_fails_on_a_regression_and_on_nothing_smaller(
    call: Call, before: Path, slower: Path, percent: str, code: int
) -> None:
    answer = call("compare", str(before), str(slower), "--fail-on-regression", percent)
    assert answer.code == code
    assert ("--fail-on-regression" in answer.out) == (code == 1)
    data = call("compare", str(before), str(slower), "--fail-on-regression", percent, "--json")
    assert data.code == code
    assert bool(json.loads(data.out)["failures"]) == (code == 1)
    assert call("compare", str(slower), str(before), "--fail-on-regression", percent).code == 0


def test_a_time_that_was_lost_fails_a_check_and_says_why(call: Call, before: Path, tmp_path: Path) -> None:
    lost = points()[0]
    rest = [t for t in sweep("two") if t.point != lost]
    for name, records in (("gone", rest), ("oom", [*rest, *failed(lost)])):
        after = str(write_run(tmp_path / name, records))
        answer = call("compare", str(before), after, "--fail-on-regression", "50")
        assert answer.code == 1
        assert "flash2 n=1,024, forward: lost in B" in answer.out
        assert ("it was oom" in answer.out) == (name == "oom")
        assert call("compare", str(before), after).code == 0


def test_one_round_is_no_verdict_and_no_passed_check(call: Call, tmp_path: Path) -> None:
    point = points()[0]
    a, b = (write_run(tmp_path / name, rounds(point, ms, count=1)) for name, ms in (("a", 1.0), ("b", 3.0)))
    answer = call("compare", str(a), str(b))
    assert answer.code == 0
    assert "1 ambiguous" in answer.out
    assert "too_few_rounds" in answer.out
    checked = call("compare", str(a), str(b), "--fail-on-regression", "5")
    assert checked.code == 1
    assert "3.000 times as long, and it cannot be judged (too_few_rounds)" in checked.out
    assert "1 of 1 passes could not be judged" in checked.out


def test_a_worse_error_fails_a_check_only_where_that_is_asked_for(call: Call, tmp_path: Path) -> None:
    p = points(("hyper",), (1024,))[0]
    for name, error in (("a", 0.3), ("b", 0.5)):
        write_run(tmp_path / name, [*sweep(name), ErrorRow(p, 0, MAIN_ERROR, error)])
    assert call("compare", "a", "b", "--fail-on-regression", "5").code == 0
    answer = call("compare", "a", "b", "--fail-on-error")
    assert answer.code == 1
    assert "--fail-on-error: hyper n=1,024: error worse, 0.300 in A, 0.500 in B" in answer.out
    data = json.loads(call("compare", "a", "b", "--fail-on-error", "--json").out)
    assert (len(data["error_failures"]), data["fail_on_error"]) == (1, True)
    assert call("compare", "b", "a", "--fail-on-error").code == 0


def test_a_threshold_makes_small_changes_the_same(call: Call, before: Path, slower: Path) -> None:
    answer = call("compare", str(before), str(slower), "--threshold", "15")
    assert "8 same" in answer.out
    assert "15.00%" in answer.out


def test_two_methods_of_one_run(call: Call, before: Path) -> None:
    answer = call("compare", str(before), "--methods", "flash2, hyper")
    assert answer.code == 0
    assert "hyper/flash2" in answer.out
    assert "2 points, 4 passes: 4 same" in answer.out


@pytest.mark.parametrize(
    ("words", "names", "helps"),
    [
        ([], "A", ""),
        (["before"], "two runs", "--methods"),
        (["before", "nowhere"], "nowhere", "no run folder"),
        (["nowhere", "before"], "nowhere", "no run folder"),
        (["before", "."], "not a run folder", "config.yaml"),
        (["before", "--methods", "flash2"], "--methods=flash2", "two methods"),
        (["before", "--methods", "flash2,"], "--methods=flash2,", "two methods"),
        (["before", "--methods", "flash2,hyper,zero"], "--methods=flash2,hyper,zero", "two methods"),
        (["before", "--methods", "flash2,hypr"], "'hypr'", "did you mean 'hyper'"),
        (["before", "--methods", "hyper,hyper"], "hyper,hyper", "different"),
        (["before", "before", "--threshold", "-1"], "--threshold=-1", "at least 0"),
        (["before", "before", "--threshold", "nan"], "--threshold=nan", "at least 0"),
        (["before", "before", "--fail-on-regression", "inf"], "--fail-on-regression=inf", "at least 0"),
        (["before", "before", "--fail-on-regression", "5%"], "--fail-on-regression=5%", "percent"),
        (["before", "before", "before"], "before", ""),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(call: Call, before: Path, words: list[str], names: str, helps: str) -> None:
    answer = call("compare", *words)
    assert answer.code == 2
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    assert names in answer.err
    assert helps in answer.err
    assert "Traceback" not in answer.err
