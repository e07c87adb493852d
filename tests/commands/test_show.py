"""`hyperbench show` as a user meets it: part of a run, in an order, with its verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import Call
from tests.helpers.synthetic_runs import grid, write_run

METHODS = ("flash2", "hyper", "uniform", "mine")


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run of four methods on two inputs."""
    records = [r for name in ("gaussian", "clustered") for r in grid((1024, 2048), METHODS, input=name)]
    return str(write_run(tmp_path / "run", records))


def test_filters_choose_part_of_a_run_in_text_and_data(call: Call, run: str) -> None:
    words = ("show", "input=gaussian", "is_causal=true", "seq_len=2048", "--run", run)
    text = call(*words)
    assert text.code == 0
    assert "clustered" not in text.out
    assert "without causal masking" not in text.out
    data = json.loads(call(*words, "--json").out)
    assert {(row["input"], row["is_causal"], row["seq_len"]) for row in data["rows"]} == {("gaussian", True, 2048)}
    assert len(data["rows"]) == 12
    assert {verdict["method"] for verdict in data["verdicts"]} == {"hyper", "uniform", "mine"}
    told = " ".join(text.out.split())
    assert all(f"verdict: {verdict['text']}" in told for verdict in data["verdicts"])


@pytest.mark.parametrize(("sort", "column"), [("speed", "median_ms"), ("error", "out_rel_fro")])
def test_an_order_is_that_of_rows_and_data(call: Call, run: str, sort: str, column: str) -> None:
    words = ("show", "input=gaussian", "is_causal=false", "seq_len=2048", "pass=forward", "--sort", sort, "--run", run)
    rows = json.loads(call(*words, "--json").out)["rows"]
    values = [row.get(column, row["errors"].get(column)) for row in rows]
    known = [value for value in values if value is not None]
    assert values == [*sorted(known), *[None] * (len(values) - len(known))]
    listed = [line.split()[1] for line in call(*words).out.splitlines() if line.startswith("2,048")]
    assert listed == [row["method"] for row in rows]


def test_a_filter_of_nothing_is_one_line(call: Call, run: str) -> None:
    for word, told in (("inptu=gaussian", "did you mean 'input'"), ("input=gausian", "did you mean 'gaussian'")):
        answer = call("show", word, "--run", run)
        assert (answer.code, answer.out) == (2, "")
        assert told in answer.err
