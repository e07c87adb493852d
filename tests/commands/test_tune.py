"""`hyperbench tune`: the setting that a look at all of them finds, checked elsewhere; resumed; refused in one line."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from hyperbench.measure.messages import Message, Task
from hyperbench.store.journal import read_journal
from hyperbench.store.schema import ErrorRow, Point, Timing
from tests.helpers.commands import Answer, Call
from tests.helpers.fake_worker import FakeWorker
from tests.helpers.made_runs import TINY, last_of, no_processes

GRID = ("method.hyper.block_size=32,64", "method.hyper.sample_size=32,64,128", "method.hyper.num_projections=7")
WORDS = last_of(*TINY, *GRID, "shape.seq_len=2048", "input=clustered_values")


def made_ms(point: Point) -> float:
    """A time that grows with the keys a query meets."""
    return 10.0 if point.method == "flash2" else (point.hyper["block_size"] + 1.1 * point.hyper["sample_size"]) / 100


def made_error(point: Point, seed: int) -> float:
    """An error that falls with them, and is a little larger on other inputs."""
    if point.method == "flash2":
        return 1e-7
    return (
        (8.0 + 0.1 * seed) / (point.hyper["block_size"] + 0.5 * point.hyper["sample_size"]) * (1.0 + 0.05 * point.seed)
    )


class Made(FakeWorker):
    """A worker with these numbers."""

    tasks_of_all: list[Task]
    error: Callable[[Point, int], float] = staticmethod(made_error)

    def _script(self, task: Task) -> Iterator[Message]:
        self.tasks_of_all.append(task)
        for message in super()._script(task):
            record = message.record
            if isinstance(record, Timing):
                record = dataclasses.replace(record, samples_ms=(made_ms(record.point),) * 3)
            elif isinstance(record, ErrorRow) and record.metric == "out_rel_fro":
                record = dataclasses.replace(record, value=type(self).error(record.point, record.seed))
            yield dataclasses.replace(message, record=record)


class Worse(Made):
    """On inputs that it was not tuned on its errors are twice as large."""

    error = staticmethod(lambda point, seed: made_error(point, seed) * (1 + point.seed))


Tune = Callable[..., Answer]


@pytest.fixture
def tune(call: Call, monkeypatch: pytest.MonkeyPatch) -> Tune:
    """`hyperbench tune` with made numbers."""

    def run(*words: str, worker: type[Made] = Made) -> Answer:
        worker.tasks_of_all = []
        no_processes(monkeypatch, worker)
        return call("tune", *words)

    return run


def by_brute_force(limit: float) -> dict[str, Any]:
    """The fastest setting of the grid whose largest error over the seeds is within the limit."""
    made = [
        (made_ms(p), {"block_size": b, "sample_size": m, "num_projections": 7})
        for b in (32, 64)
        for m in (32, 64, 128)
        if max(made_error(p := point_of(b, m), seed) for seed in (0, 1)) <= limit
    ]
    return min(made, key=lambda pair: pair[0])[1]


def point_of(block_size: int, sample_size: int) -> Point:
    """A point of the grid as far as the made numbers need it."""
    return Point("hyper", "t", "cpu", "float32", False, 1, 1, 1, 2048, 8, "i", 0,
                 {"block_size": block_size, "sample_size": sample_size})  # fmt: skip


@pytest.mark.parametrize("limit", [0.1, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.07, 0.13, 10.0))])
def test_the_choice_is_that_of_brute_force_and_is_checked_on_other_inputs(tune: Tune, limit: float) -> None:
    answer = tune("--max-error", str(limit), *WORDS, "out=run", "--json")
    assert answer.code == 0, answer.err
    told = json.loads(answer.out)
    best = by_brute_force(limit)
    assert told["fastest"]["parameters"] == best
    p = point_of(best["block_size"], best["sample_size"])
    assert told["fastest"]["error"]["high"] == made_error(p, 1)
    assert told["fastest"]["time_ms"]["value"] == made_ms(p)
    # The check: another seed of the input, other draws.
    again = dataclasses.replace(p, seed=1)
    assert told["check"]["error"]["value"] == pytest.approx((made_error(again, 2) + made_error(again, 3)) / 2)
    assert (told["check"]["same_input"], told["check"]["is_within"]) == (False, True)
    (checked,) = {(r.point.seed, r.seed) for r in read_journal(Path(told["check"]["run"], "journal.jsonl"))
                  if isinstance(r, ErrorRow) and r.point.method == "hyper" and r.seed == 2}  # fmt: skip
    assert checked == (1, 2)


@pytest.mark.slow
def test_the_command_and_the_yaml_that_it_prints_are_those_of_the_setting(tune: Tune, call: Call) -> None:
    told = json.loads(tune("--max-error", "0.1", *WORDS, "out=run", "--json").out)
    best = by_brute_force(0.1)
    assert yaml.safe_load(told["yaml"]) == {"method": {"hyper": best}}
    program, command, *words = shlex.split(told["command"])
    assert (program, command) == ("hyperbench", "run")
    (point,) = [
        p for p in json.loads(call("run", *words, "--dry-run", "--json").out)["points"] if p["method"] == "hyper"
    ]
    assert {name: point["hyper"][name] for name in best} == best
    assert (point["seq_len"], point["input"]) == (2048, "clustered_values")


@pytest.mark.slow
def test_people_are_told_the_setting_its_check_and_the_estimate(tune: Tune) -> None:
    answer = tune("--max-error", "0.1", *WORDS, "out=run")
    assert answer.code == 0, answer.err
    for part in (
        "forward: the fastest setting of hyper with an error of at most 0.1",
        "on inputs it was not tuned on, seed 1, draws 2, 3:",
        "hyperbench run ", "\n    block_size: ", "settings within the limit",
    ):  # fmt: skip
        assert part in answer.out
    assert answer.err.count("estimated time: ") == 2


@pytest.mark.slow
def test_an_error_above_the_limit_elsewhere_is_told_and_is_no_success(tune: Tune) -> None:
    answer = tune("--max-error", "0.1", *WORDS, "out=run", worker=Worse)
    assert answer.code == 1
    assert "there it is above 0.1: it does not keep to the limit" in answer.out


@pytest.mark.slow
def test_without_a_setting_within_the_limit_the_best_is_told_and_nothing_is_checked(tune: Tune) -> None:
    answer = tune("--max-error", "0.01", *WORDS, "out=run")
    assert answer.code == 1
    assert (
        "no setting of hyper has an error of at most 0.01 here; the least has block_size=64 sample_size=128"
        in answer.out
    )
    assert "hyperbench run" not in answer.out
    assert not list(Path("run").glob("check-*"))
    assert json.loads(tune("--max-error", "0.01", *WORDS, "out=run", "--resume", "--json").out)["fastest"] is None


def test_a_search_that_was_killed_goes_on_where_it_was(tune: Tune) -> None:
    """What is finished is not measured again."""
    whole = tune("--max-error", "0.1", *WORDS, "out=run", "--json")
    journal = Path("run", "journal.jsonl")
    before = journal.read_bytes()
    lines = before.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-4]) + lines[-4][:30])
    again = tune("--max-error", "0.1", *WORDS, "out=run", "--resume", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == json.loads(whole.out)
    assert len(read_journal(journal)) == len(lines) - 1
    assert [len(task.items) for task in Made.tasks_of_all] == [4], "of the four points whose times were lost"


@pytest.mark.slow
def test_a_check_that_was_killed_goes_on_where_it_was(tune: Tune) -> None:
    whole = tune("--max-error", "0.1", *WORDS, "out=run", "--json")
    (journal,) = Path("run").glob("check-*/journal.jsonl")
    journal.write_bytes(journal.read_bytes()[:-40])
    again = tune("--max-error", "0.1", *WORDS, "out=run", "--resume", "--json")
    assert json.loads(again.out) == json.loads(whole.out)
    assert [len(task.items) for task in Made.tasks_of_all] == [1]


@pytest.mark.slow
def test_another_limit_needs_no_new_search(tune: Tune) -> None:
    tune("--max-error", "0.1", *WORDS, "out=run")
    told = json.loads(tune("--max-error", "0.13", *WORDS, "out=run", "--resume", "--json").out)
    assert told["fastest"]["parameters"] == by_brute_force(0.13)
    assert {item.point.seed for task in Made.tasks_of_all for item in task.items} == {1}, "only its check is measured"


@pytest.mark.slow
def test_an_interrupted_search_is_told_as_such(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Made, task: Task) -> Iterator[Message]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Made, "_script", stop)
        answer = tune("--max-error", "0.1", *WORDS, "out=run")
    assert answer.code == 130
    assert "--resume goes on" in answer.err
    assert tune("--max-error", "0.1", *WORDS, "out=run", "--resume").code == 0


@pytest.mark.slow
def test_the_grid_follows_the_mask(tune: Tune) -> None:
    for words, keys in (
        ((), {"block_size", "sample_size", "num_projections"}),
        (("is_causal=true",), {"block_size", "sample_size", "min_seq_len"}),
    ):
        small = [w for w in (*GRID, "method.hyper.min_seq_len=256") if w.split(".")[2].partition("=")[0] in keys]
        told = json.loads(tune("--max-error", "9", *last_of(*TINY, *small, *words), "--fresh", "out=run", "--json").out)
        assert told["fastest"]["parameters"].keys() == keys


BAD = [
    (("--max-error", "0"), "--max-error=0 must be a positive number"),
    (("--max-error", "nan"), "--max-error=nan must be a positive number"),
    (("--max-error", "a tenth"), "--max-error=a tenth must be a positive number"),
    (("--max-error", "-0.1"), "--max-error=-0.1 must be a positive number"),
    ((), "Missing option '--max-error'"),
    (("--max-error", "1", "--input", "gausian"), "input=gausian is unknown"),
    (("--max-error", "1", "--input", "gaussian", "input=gaussian"), "input is given twice"),
    (("--max-error", "1", "input=gaussian,clustered"), "several values have input"),
    (("--max-error", "1", "shape.seq_len=64,128"), "several values have shape.seq_len"),
    (("--max-error", "1", "method=[flash2]"), "method.hyper.block_size is swept, but hyper is none of the methods"),
    (("--max-error", "1", "method=[flash2,hyper,zero]"), "one approximate method beside the exact ones; chosen: hyper"),
    (("--max-error", "1", "sweep=single", "method=[flash2]"), "chosen: none"),
    (("--max-error", "1", "--check-input", "seed=3"), "--check-input seed=3 must name an input"),
    (("--max-error", "1", "--check-input", "clustered"), "--check-input clustered must name an input"),
    (("--max-error", "1", "--check-input", "input=gausian"), "input=gausian is unknown"),
    (("--max-error", "1", "--check-input", "input.stdd=2"), "unknown key 'input.stdd'"),
    (("--max-error", "1", "--check-input", "input=gaussian,clustered"), "name one input"),
    (("--max-error", "1", "--resume", "--fresh"), "give one of them"),
]  # fmt: skip


#: The refusals of the command itself, and one of the grid; the others take half a second each.
_BY_DEFAULT = ("must", "Missing", "give one", "several values have shape.seq_len")
CASES = [
    pytest.param(words, told, marks=() if any(part in told for part in _BY_DEFAULT) else pytest.mark.slow)
    for words, told in BAD
]


@pytest.mark.parametrize(("words", "told"), CASES, ids=[" ".join(words) for words, _ in BAD])
def test_what_cannot_be_tuned_is_refused_in_one_line_before_anything_is_measured(
    tune: Tune, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    answer = tune(*words, "device=cpu")
    assert answer.code == 2
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    assert told in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [("input=clustered",), ("input=clustered_values", "input.noise_std=0.6")])
def test_the_input_of_the_check_can_be_named(tune: Tune, words: tuple[str, ...]) -> None:
    named = [part for word in words for part in ("--check-input", word)]
    given = [*WORDS, "input.value_noise_std=0.2"] if len(words) == 1 else WORDS
    told = json.loads(tune("--max-error", "0.1", *given, *named, "out=run", "--json").out)
    points = [r.point for r in read_journal(Path(told["check"]["run"], "journal.jsonl"))]
    assert {p.input for p in points} == {words[0].partition("=")[2]}
    assert ("value_noise_std" in points[0].input_params) == (len(words) == 2)
    assert points[0].input_params["noise_std"] == (0.6 if len(words) == 2 else 0.5)
    assert told["check"]["same_input"] is False


@pytest.mark.slow
def test_a_recording_judges_itself_unless_another_is_named(tune: Tune) -> None:
    words = last_of(*TINY, *GRID, "shape.seq_len=2048", "shape.head_dim=64", "input=smollm2", "input.layer=4")
    same = tune("--max-error", "0.1", *words, "out=same")
    assert "on the same input, draws 2, 3: a recording has no other seed; --check-input names another one" in same.out
    other = tune("--max-error", "0.1", *words, "--check-input", "input.layer=13", "out=other", "--json")
    told = json.loads(other.out)["check"]
    assert told["same_input"] is False
    points = [r.point for r in read_journal(Path(told["run"], "journal.jsonl"))]
    assert {p.input_params["layer"] for p in points} == {13}


@pytest.mark.slow
def test_a_real_search_finds_the_setting_of_a_sweep(call: Call) -> None:
    """Errors are those of a sweep over the same grid, and the choice is the fastest of those that it finds within."""
    words = (
        "device=cpu", "shape.seq_len=512", "shape.head_dim=16", "input=clustered_values", "input.num_clusters=16",
        "method.hyper.block_size=32,64,128", "method.hyper.sample_size=32,128", "method.hyper.num_projections=4",
        "method.hyper.min_seq_len=128",
    )  # fmt: skip
    swept = call("run", "sweep=tune", *words, "out=swept")
    assert swept.code == 0, swept.err
    errors = pd.read_csv("swept/errors.csv").query("method == 'hyper' and metric == 'out_rel_fro'")
    upper = (
        errors.assign(upper=errors["high"].fillna(errors["value"]))
        .groupby(["block_size", "sample_size"])["upper"]
        .max()
    )
    limit = float(upper.median())
    answer = call("tune", "--max-error", str(limit), *words, "out=tuned", "--json")
    told = json.loads(answer.out)
    within = {tuple(s["parameters"][name] for name in ("block_size", "sample_size")) for s in told["within"]}
    assert within == set(upper[upper <= limit].index)
    times = (
        pd.read_csv("tuned/timings.csv")
        .query("method == 'hyper'")
        .set_index(["block_size", "sample_size"])["median_ms"]
    )
    fastest = told["fastest"]["parameters"]
    assert (fastest["block_size"], fastest["sample_size"]) == times[times.index.isin(within)].idxmin()
    # With other seeds, and few keys of which a sample depends on luck.
    assert told["check"]["error"]["value"] == pytest.approx(told["fastest"]["error"]["value"], rel=0.5)
    assert answer.code == int(told["check"]["error"]["value"] > limit)
