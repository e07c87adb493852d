"""`hyperbench capture` from end to end: wrong words are one line, and what it makes can be run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbench.store.journal import read_journal
from tests.helpers import made_captures
from tests.helpers.commands import QUICK, Call, process

WRONG = [
    (["--layers", "0,x", "--out", "a"], "--layers 0,x must be whole numbers"),
    (["--layers", "", "--out", "a"], "must be whole numbers"),
    (["--layers", "-1", "--out", "a"], "--layers -1 must be whole numbers"),
    (["--layers", "1,1", "--out", "a"], "--layers 1,1 names one twice"),
    (["--layers", "0", "--heads", "a", "--out", "a"], "--heads a must be whole numbers"),
    (["--layers", "0", "--max-tokens", "0", "--out", "a"], "--max-tokens 0 must be at least 1"),
    (["--layers", "0", "--dtype", "float8", "--out", "a"], "--dtype=float8 is unknown; allowed: float16"),
    (["--layers", "0", "--out", "no/folder/a"], "there is no folder no/folder"),
    (["--layers", "0", "--out", "."], "is there already"),
    (["--layers", "0"], "--out"),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_word_is_one_line_and_nothing_is_written(
    call: Call, tmp_path: Path, words: list[str], told: str
) -> None:
    answer = call("capture", *words)
    assert answer.code == 2
    assert told in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def model_folder(folder: Path) -> Path:
    """A random Llama of two layers with a tokenizer of a few words, saved as models are."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {word: i for i, word in enumerate(["<unk>", "the", "paper", "says", "so"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=8, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def inputs_of(folder: Path, *words: str) -> list[dict[str, Any]]:
    """The parameters of the inputs of a quick run, in all of whose records all is well."""
    done = process(folder, "run", *QUICK, "method=hyper", "out=run", "passes=[forward]", *words)
    assert done.code == 0, done.err
    records = read_journal(folder / "run" / "journal.jsonl")
    assert {str(record.status) for record in records} == {"ok"}
    return [record.point.input_params for record in records]


@pytest.mark.slow
def test_a_capture_of_a_folder_is_made_and_run(tmp_path: Path) -> None:
    model_folder(tmp_path / "tiny")
    (tmp_path / "text").write_text("the paper says so " * 40)
    words = ("capture", "--model", "tiny", "--text", "text", "--layers", "0,1", "--out", "c.safetensors")
    # Nothing is asked of a network for a folder.
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = process(tmp_path, *words, "--json", **env)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["layers"]["1"] == {"heads": 4, "kv_heads": 2, "rows": 128, "head_dim": 16}
    assert told["rotary"] == "in"
    again = process(tmp_path, *words, **env)
    assert again.code == 2
    assert "is there already" in again.err
    found = inputs_of(
        tmp_path, "input=captured", "input.path=c.safetensors", "input.layer=0,1", "shape.seq_len=128",
        "method.hyper.min_seq_len=32", "method.hyper.block_size=16", "method.hyper.sample_size=16", "is_causal=true",
    )  # fmt: skip
    assert {params["layer"] for params in found} == {0, 1}
    missing = process(tmp_path, "capture", "--model", "tiny", "--layers", "5", "--out", "d.safetensors", **env)
    assert missing.code == 2
    assert "--layers 5: the model has layers 0 to 1" in missing.err
    assert not (tmp_path / "d.safetensors").exists()


@pytest.mark.slow
def test_a_function_of_the_current_folder_is_run_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef ramp(shape, seed, slope=1.0):\n"
        "    q, k, v = (torch.randn(shape.batch, h, shape.seq_len, shape.head_dim)\n"
        "               for h in (shape.heads, shape.kv_heads, shape.kv_heads))\n"
        "    return q, k * slope, v\n\n\ndef wrong(shape, seed):\n    return torch.ones(3)\n"
    )
    shape = ("shape.seq_len=64", "method.hyper.min_seq_len=32", "is_causal=false")
    found = inputs_of(tmp_path, "input._target_=mine.ramp", "+input.slope=1,2", *shape)
    assert {params["slope"] for params in found} == {1, 2}
    done = process(tmp_path, "run", *QUICK, "input._target_=mine.wrong", "out=other", *shape)
    assert done.code == 2
    assert "input._target_=mine.wrong must return three tensors" in done.err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_capture_with_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    content = made_captures.tensors()
    content["layers.0.k"][0, 5, 5] = float("nan")
    made_captures.write(tmp_path / "c.safetensors", content)
    done = process(tmp_path, "run", *QUICK, "input=captured", "input.path=c.safetensors", "shape.seq_len=40", "out=run")
    assert done.code == 2
    assert "layers.0.k of input.path=c.safetensors holds NaN" in done.err
    assert not (tmp_path / "run").exists()
