"""Everything a user can type wrong is one clear line and exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperbench.commands import listing
from hyperbench.config.catalog import names
from hyperbench.config.compose import load
from tests.helpers.commands import Call, process
from tests.helpers.slow import slow

WRONG = [
    (["run", "sweep=seqlen"], "sweep=seqlen is unknown", "seq_len"),
    (["run", "method=hypr"], "method=hypr is unknown", "hyper"),
    (["run", "method=[flash2,flsh]"], "method=flsh is unknown", "allowed"),
    (["run", "input=gausian"], "input=gausian is unknown", "gaussian"),
    (["run", "protocol=strikt"], "protocol=strikt is unknown", "strict"),
    (["run", "device=gpus"], "device=gpus is unknown", "cuda"),
    (["run", "sweep=smoke", "sweep=fig4"], "sweep is given twice", "leave one out"),
    (["run", "out=~nobody_here/x"], "no home folder ~nobody_here", "./~nobody_here/x"),
    (["show", "--run", "~nobody_here"], "no home folder ~nobody_here", "./~nobody_here"),
    (["export", "--run", ".", "--out", "~nobody_here"], "no home folder ~nobody_here", "./~nobody_here"),
    (["compare", "~nobody_here"], "no home folder ~nobody_here", "./~nobody_here"),
    (["run", "shape.seqlen=4096"], "unknown key 'shape.seqlen'", "shape.seq_len"),
    (["run", "method.hyper.blocksize=8"], "unknown key 'method.hyper.blocksize'", "block_size"),
    (["run", "shape.seq_len=0"], "shape.seq_len=0", "at least 1"),
    (["run", "shape.heads=-2"], "shape.heads=-2", "at least 1"),
    (["run", "shape.seq_len=1024,-1"], "shape.seq_len=-1", "at least 1"),
    (["run", "shape.seq_len=big"], "shape.seq_len=big", "integer"),
    (["run", "shape.seq_len=4k"], "shape.seq_len=4k", "integer"),
    (["run", "method.hyper.block_size=0"], "block_size=0", "at least 1"),
    (["run", "method.hyper.sample_size=-1"], "sample_size=-1", "at least 1"),
    (["run", "shape.heads=6", "shape.kv_heads=4"], "shape.kv_heads=4", "divide shape.heads=6"),
    (["run", "dtype=float8"], "dtype=float8", "float32"),
    (["run", "is_causal=maybe"], "is_causal=maybe", "true or false"),
    (["run", "passes=[forwards]"], "passes=forwards", "forward_backward"),
    (["run", "protocol.rounds=0"], "protocol.rounds=0", "at least 1"),
    (["run", "protocol=strict,quick"], "protocol=strict,quick", "one protocol"),
    (["run", "seq_len"], "'seq_len'", "KEY=VALUE"),
    (["run", "shape.seq_len="], "shape.seq_len", "integer"),
    (["run", "out="], "out=", "out=DIR"),
    (["run", "shape.seq_len=${oops}"], "oops", ""),
    (["run", "sweep.name=../elsewhere"], "sweep.name=../elsewhere", "letters"),
    (["run", "--resume", "--fresh"], "--resume", "--fresh"),
    (["run", "--retry-failed"], "--retry-failed", "--resume"),
    (["run", "--rsume"], "--rsume", "--resume"),
    (["runn"], "runn", ""),
    (["plot", "fig5", "--run", "."], "fig5", "fig4"),
    (["plot", "input=a", "seq_len=1", "input=b", "--run", "."], "input is filtered twice", "input=a,b"),
    (["show", "gaussian", "--run", "."], "'gaussian' is no filter", "KEY=VALUE"),
    (["show", "--sort", "sped", "--run", "."], "--sort=sped", "speed"),
    (["plot", "--format", "htm", "--run", "."], "htm", "html"),
    (["plot"], "no run under", "hyperbench run"),
    (["plot", "--run", "nowhere"], "nowhere", "no run folder"),
    (["show", "--run", "nowhere"], "nowhere", "no run folder"),
    (["show", "--run", "."], "not a run folder", "config.yaml"),
    (["export", "--format", "xlsx", "--run", "."], "xlsx", "markdown"),
    (["export", "--run", "nowhere"], "nowhere", "no run folder"),
    (["list", "method"], "list=method is unknown", "methods"),
]


@pytest.mark.parametrize(("words", "names", "helps"), WRONG, ids=[" ".join(words) for words, _, _ in WRONG])
def test_a_mistake_is_one_line_that_names_it_and_what_is_allowed(
    call: Call, tmp_path: Path, words: list[str], names: str, helps: str
) -> None:
    answer = call(*words)
    assert answer.code == 2
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    assert names in answer.err
    assert helps in answer.err
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


# These reach the process that imports torch, so they take a second or two each.
ASKED = [
    (["run", "device=cuda"], "sees no CUDA GPU", "cpu"),
    *slow(
        (["run", "method=[flash2]", "method.flash2._target_=no_such_module.attention"], "no_such_module", ""),
        (["run", "method=[hyper]", "method.hyper.num_projections=99"], "num_projections", "15"),
        (["run", "input.std=-1"], "input.std=-1", "at least 0"),
    ),
]


@pytest.mark.parametrize(("words", "names", "helps"), ASKED)
def test_what_only_torch_can_tell_is_one_line_too(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], names: str, helps: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    answer = call(*words)
    assert answer.code == 2
    assert len(answer.err.strip().splitlines()) == 1, answer.err
    assert names in answer.err
    assert helps in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "plot", "show", "compare", "export", "claims", "tune", "list", "doctor"])
def test_every_command_explains_itself(call: Call, command: str) -> None:
    answer = call(command, "--help")
    assert answer.code == 0
    assert "--json" in answer.out
    assert "Usage" in answer.out


def test_help_and_completion_import_nothing_heavy() -> None:
    code = (
        "import sys; from hyperbench import cli; from hyperbench.commands import listing;\n"
        "listing.complete_override('sweep=')\n"
        "heavy = {'torch', 'pandas', 'plotly', 'hydra', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", listing.KINDS)
def test_every_list_has_names_and_descriptions(call: Call, kind: str) -> None:
    rows = json.loads(call("list", kind, "--json").out)
    assert rows
    assert all(row["name"] and row["description"] for row in rows)
    text = call("list", kind).out
    assert all(row["name"] in text for row in rows)


def test_listed_keys_are_keys_and_their_values_are_valid() -> None:
    """The whole list, put on one command line, composes to the configuration that it describes."""
    words = [f"method=[{','.join(names('method'))}]", "input=clustered_values"]
    for row in listing.rows("keys"):
        other_input = "(input=" in row["description"] and "(input=clustered_values)" not in row["description"]
        if row["name"] != "out" and not other_input:
            value = row["description"].partition(" (input=")[0]
            words.append(f"{row['name']}={value}")
    config = load(words, lambda asked: ("cpu", "for this test"))
    assert len(words) > 40
    assert {point.method for point in config.points} == set(names("method"))


def test_the_shell_completes_sweeps() -> None:
    env = {"_HYPERBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "hyperbench run sweep=", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from hyperbench.cli import app; app(prog_name='hyperbench')"],
        env={**os.environ, **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "sweep=fig4" in done.stdout.split()


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version").out.startswith("hyperbench 0.")


def test_a_reader_that_leaves_early_sees_no_traceback(tmp_path: Path) -> None:
    shell = f"'{sys.executable}' -m hyperbench list keys | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_python_dash_m_is_the_same_program(tmp_path: Path) -> None:
    assert process(tmp_path, "--version").code == 0
