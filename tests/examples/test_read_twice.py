"""Reading twice: the pieces, the losses of a patched model, and the folder that the script writes."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import read_twice

IDS = [(7 * i * i + 3 * i) % 50 for i in range(200)]
SIZES = ["--seq-len", "64", "--pieces", "2", "--block-size", "32", "--sample-size", "4", "--min-seq-len", "16"]


@pytest.fixture(scope="module")
def model() -> Any:
    """A random Llama of two layers, whose embedding is its head."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaModel(config).eval()


@pytest.fixture
def loaded(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model in the place of the one that the script loads; every text has the same tokens."""
    found = SimpleNamespace(model=model, tokenizer=lambda text: {"input_ids": IDS}, name="tiny", licence="")
    monkeypatch.setattr(read_twice, "load", lambda name: found)
    return found


def test_a_piece_is_a_text_and_its_quarter_again() -> None:
    pieces = read_twice.pieces_of(IDS, 64, 3)
    assert [once for once, _ in pieces] == [IDS[0:64], IDS[68:132], IDS[136:200]]
    for once, twice in pieces:
        assert twice[:48] == once[:48]
        assert twice[48:] == once[:16]


def test_losses_are_those_of_the_model(model: Any) -> None:
    with torch.no_grad():
        logits = model(torch.tensor([IDS[:40]])).last_hidden_state[0, :-1] @ model.get_input_embeddings().weight.T
    expected = -logits.log_softmax(1).gather(1, torch.tensor(IDS[1:40]).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(read_twice.losses(model, IDS[:40]), expected)


@pytest.mark.usefixtures("loaded")
def test_the_folder_holds_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_twice.main(["--out", str(tmp_path / "out"), *SIZES]) == 0
    with (tmp_path / "out" / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (1 + len(read_twice.SETTINGS)) * 4
    assert {row["part"] for row in rows} == {"once", "first reading", "between", "second reading"}
    assert [int(row["tokens"]) for row in rows[:4]] == [63, 15, 32, 16]
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert environment["settings"]["seq_len"] == 64
    assert str(tmp_path) not in json.dumps(environment["settings"])
    exact = [float(row["loss"]) for row in rows if (row["setting"], row["part"]) == ("exact", "once")]
    assert f"| exact | {math.exp(sum(exact) / 2):.2f} (" in capsys.readouterr().out
    assert read_twice.main(["--out", str(tmp_path / "out"), *SIZES]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seq-len", "63"], "--seq-len=63 must be a multiple of 4"),
        (["--pieces", "0"], "--pieces=0 at least 1"),
        (["--seq-len", "400"], "the text has 200 tokens"),
        (["--block-size", "100"], "block_size must be a multiple of 32 with pairing='routed', got 100"),
        (["--text", "nowhere.txt"], "--text nowhere.txt cannot be read"),
    ],
)
def test_bad_usage_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_twice.main(["--out", str(tmp_path / "out"), *SIZES, *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()
