"""LongBench in the configuration: the datasets that a folder holds, their examples, and what is not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from hyperbench.config import longbench
from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import load
from hyperbench.config.types import ErrorConfig
from hyperbench.measure.work_items import draw_seeds
from hyperbench.store.schema import Point
from tests.helpers.longbench_files import LINES, line, write


def points(*words: str) -> tuple[Point, ...]:
    """The points of some words on a CPU."""
    return load(
        ["task=longbench", "method=[flash2,hyper]", "shape.seq_len=64", *words], lambda asked: ("cpu", "")
    ).points


def test_each_dataset_that_is_there_is_a_point_of_each_method(tmp_path: Path) -> None:
    found = points(f"data={write(tmp_path)}", "input.last=0,2")
    assert [point.input for point in found if point.method == "hyper"] == [
        f"longbench/{name}" for name in longbench.datasets() if name in LINES
    ]
    assert len(found) == 2 * len(LINES)
    assert {point.input_params["examples"] for point in found} == {2}
    assert all(point.is_task and len(point.input_params["sha256"]) == 16 for point in found)


@pytest.mark.parametrize(
    ("words", "datasets"),
    [
        (("input.dataset=trec",), {"trec"}),
        (("task.dataset=trec,lcc",), {"trec", "lcc"}),
        (("task.dataset=[trec,lcc]",), {"trec", "lcc"}),
    ],
)
def test_datasets_are_chosen_by_name(tmp_path: Path, words: tuple[str, ...], datasets: set[str]) -> None:
    found = points(f"data={write(tmp_path)}", *words)
    assert {point.input_params["dataset"] for point in found} == datasets


def test_examples_are_no_more_than_there_are(tmp_path: Path) -> None:
    write(tmp_path, trec=f"{line('trec')}\n\n{line('trec', 1)}\n  \n{line('trec', 2)}")
    (point, _) = points(f"data={tmp_path}")
    error = ErrorConfig(("0-9",), 1, None, 0, 0)  # type: ignore[arg-type]
    assert error.seeds == tuple(range(10))
    assert draw_seeds(point, error) == (0, 1, 2)


def test_a_run_knows_its_files_by_their_hashes(tmp_path: Path) -> None:
    config = load(["task=longbench", f"data={write(tmp_path)}", "model.path=."], lambda asked: ("cpu", ""))
    files = {
        f"{tmp_path}/{point.input_params['dataset']}.jsonl": point.input_params["sha256"] for point in config.points
    }
    assert config.resolved["input_files"] == files
    assert len(files) == len(LINES)


def test_another_file_is_another_point(tmp_path: Path) -> None:
    one, _ = points(f"data={write(tmp_path, trec=line('trec'))}")
    other, _ = points(f"data={write(tmp_path, trec=line('trec', 1))}")
    assert one.point_id != other.point_id


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "input.data=None names no folder; give data=DIR with files of LongBench"),
        (("data=nowhere",), "input.data=nowhere: there is no such folder"),
        (("data={}", "input.dataset=trek"), "input.dataset=trek is unknown; allowed: narrativeqa, "),
        (("data={}", "input.dataset=qasper"), "has no qasper.jsonl; there is: hotpotqa, lcc"),
        (("data={}", "input.dataset=lcc"), "lcc.jsonl is empty"),
        (("data={}/other",), "holds no file of LongBench (such as hotpotqa.jsonl); there is: a\\x1b[2J.txt, data/"),
        (("data={}", "input.dataset=hotpotqa", "input.chat=maybe"), "input.chat=maybe must be true or false"),
        (("data={}", "input.dataset=hotpotqa", "error.seeds=[5-2]"), "error.seeds=5-2 must lead upwards"),
        (("data={}", "input.dataset=hotpotqa", "error.seeds=[0-1000000]"), "over at most 10,000 seeds"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    write(tmp_path, hotpotqa=line("hotpotqa"), lcc=" \n\n")
    (tmp_path / "other" / "data").mkdir(parents=True)
    (tmp_path / "other" / "a\x1b[2J.txt").touch()
    with pytest.raises(ConfigError) as caught:
        points(*(word.format(tmp_path) for word in words))
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_package_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "jieba" else find(name, *more))
    write(tmp_path, multifieldqa_zh=line("multifieldqa_zh"), hotpotqa=line("hotpotqa"))
    with pytest.raises(ConfigError, match=r"with the package jieba, .* pip install 'hyperbench\[lm\]'"):
        points(f"data={tmp_path}", "input.dataset=multifieldqa_zh")
    assert points(f"data={tmp_path}", "input.dataset=hotpotqa")
