"""Language models from end to end, with a tiny one in a folder: a run, its figures, a kill, and wrong words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperbench.store.journal import read_journal
from hyperbench.store.run_folder import load_run
from tests.helpers.commands import process
from tests.helpers.longbench_files import line, write
from tests.helpers.tiny_models import saved

pytestmark = pytest.mark.slow

WORDS = (
    "protocol=quick", "shape.seq_len=100,160", "error.seeds=[0,1]", "method=[flash2,hyper]",
    "method.hyper.block_size=16", "method.hyper.sample_size=8", "method.hyper.min_seq_len=32",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama of three layers."""
    return saved(tmp_path_factory.mktemp("a folder") / "tiny model")


def words(model: Path, *more: str) -> list[str]:
    """A command line on that model."""
    return ["run", f"model.path={model}", *WORDS, *more]


def test_a_run_has_every_score_and_its_figure_and_goes_on_to_nothing(model: Path, tmp_path: Path) -> None:
    line = words(model, "task=perplexity", "input.last=0,1,3", "out=run")
    done = process(tmp_path, *line)
    assert done.code == 0, done.err
    assert "hyper in layers last 1 perplexity n=160 example 1: loss " in done.err
    run = load_run(tmp_path / "run")
    assert run.timings.empty
    assert run.errors.empty
    assert (tmp_path / "run" / "scores.csv").is_file()
    # A method that has a figure for each of two examples of each length: five, and the whole pass where it was timed.
    assert set(run.scores["status"]) == {"ok"}
    assert run.scores.groupby(["method", "seq_len", "seed"])["metric"].nunique().min() >= 5
    assert "perplexity, 160 tokens" in done.out
    plotted = process(tmp_path, "plot", "--run", "run")
    assert plotted.code == 0, plotted.err
    assert (tmp_path / "run" / "figures" / "fig3.html").is_file()
    again = process(tmp_path, *line, "--resume", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["measured_now"] == {}
    assert len(read_journal(tmp_path / "run" / "journal.jsonl")) == len(run.scores)


def test_a_killed_run_keeps_every_score_and_goes_on(model: Path, tmp_path: Path) -> None:
    line = words(model, "task=copy", "error.seeds=[0,1,2,3]", "out=run", "--resume")
    command = [sys.executable, "-m", "hyperbench", *dict.fromkeys(w for w in line if w != "error.seeds=[0,1]")]
    journal = tmp_path / "run" / "journal.jsonl"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 4):
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGKILL)
    kept = len(read_journal(journal))
    assert kept > 2
    done = process(tmp_path, *command[3:])
    assert done.code == 0, done.err
    rows = read_journal(journal)
    assert len(rows) >= 2 * 4 * 2 * 3
    assert len({row.key for row in rows}) == len(rows)


def test_longbench_runs_to_a_table_is_killed_and_goes_on(model: Path, tmp_path: Path) -> None:
    lines = [line("hotpotqa", i) for i in range(4)]
    write(tmp_path / "data", hotpotqa="\n".join([*lines[:1], '{"input": "\\u001b', *lines[2:]]), trec=line("trec"))
    named = words(model, "sweep=longbench", "data=data", "input.last=0,1,3", "out=run", "~method.hyper_paper")
    given = {word.partition("=")[0]: word for word in [*named, "~method.window_sinks", "shape.seq_len=160"]}
    given["error.seeds"] = "error.seeds=[0-9]"
    command = [
        sys.executable,
        "-m",
        "hyperbench",
        *(w for w in given.values() if not w.startswith("method=")),
        "--resume",
    ]
    journal = tmp_path / "run" / "journal.jsonl"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 4):
            time.sleep(0.05)
        os.kill(run.pid, signal.SIGKILL)
    assert len(read_journal(journal)) > 2
    done = process(tmp_path, *command[3:])
    # One example of three points has failed.
    assert done.code == 1, done.err
    assert "longbench/hotpotqa has 4 of the 10 examples that error.seeds names" in done.err
    assert "longbench/trec has 1 of the 10 examples" in done.err
    rows = read_journal(journal)
    assert len({row.key for row in rows}) == len(rows) == 3 * (4 + 1) * 3
    told = {row.message for row in rows if row.status != "ok"}
    assert len(told) == 1
    assert "line 2 of hotpotqa.jsonl is no JSON" in told.pop()
    assert "\x1b" not in done.out + done.err
    assert "LongBench, prompt and answer in 160 tokens" in done.out
    plotted = process(tmp_path, "plot", "table1", "--run", "run")
    assert plotted.code == 0, plotted.err
    assert (tmp_path / "run" / "figures" / "table1.html").is_file()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("model.path=nowhere",), "model.path=nowhere: there is no such folder"),
        (("task.text=nowhere.txt",), "nowhere.txt cannot be read"),
        (("input.last=4",), "input.last=4: the model has 3 layers"),
        (("shape.seq_len=257",), "is beyond the context of tiny model, 256 tokens"),
        (("model.path=.",), "cannot be loaded"),
    ],
)
def test_a_wrong_word_is_one_line_and_nothing_is_written(
    model: Path, tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    line = {w.partition("=")[0]: w for w in (*words(model, "task=perplexity", "out=run")[1:], *more)}
    answer = process(tmp_path, "run", *line.values())
    assert answer.code == 2
    assert told in answer.err
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_task_of_ones_own_is_a_function_and_a_yaml_file(model: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
    (_, section) = page.split("## A task of a language model\n")
    written = re.findall(r"```(yaml|python)\n(.*?)```", section, re.DOTALL)[:2]
    (tmp_path / "conf" / "input").mkdir(parents=True)
    for (kind, text), path in zip(written, ("conf/input/last_word.yaml", "my_tasks.py"), strict=True):
        assert kind == path.rpartition(".")[2].replace("py", "python")
        (tmp_path / path).write_text(text, encoding="utf-8")
    done = process(tmp_path, *words(model, "task=last_word", "out=run"))
    assert done.code == 0, done.err
    scores = load_run(tmp_path / "run").scores
    assert set(scores["metric"]) == {"rank", "loss"}
    assert set(scores["status"]) == {"ok"}
    assert "last_word, 160 tokens" in done.out


def test_an_encoder_is_one_line(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path / "bert")
    answer = process(tmp_path, "run", "task=perplexity", "model.path=bert", "shape.seq_len=64")
    assert answer.code == 2
    assert "is a BertForMaskedLM; a causal language model is needed" in answer.err
    assert len(answer.err.strip().splitlines()) == 1
