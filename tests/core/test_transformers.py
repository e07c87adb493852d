"""HyperAttention in models of transformers: tiny random ones of several families, against their own attention."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyperattn_core import HyperAttentionParams
from hyperattn_core.transformers import ExactAttentionError, ExactAttentionWarning, attention_modules, patched
from tests.helpers.slow import slow
from tests.helpers.tiny_models import tiny

#: Blocks that hold every key of the longest input: HyperAttention is exact attention.
EXACT = HyperAttentionParams(block_size=256, sample_size=8, min_seq_len=8)
#: Far from exact.
ROUGH = HyperAttentionParams(block_size=4, sample_size=2, min_seq_len=8, sampling="stratified")


@pytest.fixture(scope="module")
def llama() -> Any:
    """One for tests that leave it as it is."""
    return tiny("llama")


def tokens(length: int, batch: int = 1) -> Tensor:
    """Tokens, the same for a length."""
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Any, ids: Tensor, **more: Any) -> Tensor:
    """Logits (B, N, vocabulary)."""
    return model(ids, use_cache=False, **more).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["llama", "gpt_neox", *slow("qwen2")])
def test_blocks_that_hold_every_key_give_the_logits_of_exact_attention(family: str) -> None:
    model, ids = tiny(family), tokens(100, batch=2)
    expected = logits(model, ids)
    with patched(model, params=EXACT, strict=True) as patch:
        torch.testing.assert_close(logits(model, ids), expected, rtol=2e-4, atol=2e-4)
    assert patch.layers == (0, 1, 2)
    assert str(patch).splitlines() == [f"layer {i}: hyper 1" for i in range(3)]
    with patched(model, params=ROUGH, strict=True):
        assert not torch.allclose(logits(model, ids), expected, rtol=1e-2, atol=1e-2)
    assert torch.equal(logits(model, ids), expected)


def test_a_window_shorter_than_the_keys_is_exact_and_a_longer_one_is_not() -> None:
    model = tiny("mistral")
    expected = logits(model, tokens(100))
    with patched(model, params=ROUGH) as patch, pytest.warns(ExactAttentionWarning, match="a sliding window of 40"):
        assert torch.equal(logits(model, tokens(100)), expected)
    assert all("hyper" not in calls for calls in patch.calls.values())
    with patched(model, params=EXACT, strict=True):
        torch.testing.assert_close(logits(model, tokens(30)), logits(tiny("mistral"), tokens(30)), rtol=2e-4, atol=2e-4)
    with patched(model, params=ROUGH, strict=True), pytest.raises(ExactAttentionError, match="layer 0 would attend"):
        logits(model, tokens(100))
    assert torch.equal(logits(model, tokens(100)), expected)


@pytest.mark.parametrize(
    ("choice", "layers"),
    [
        ({"last": 2}, (1, 2)),
        ({"first": 1}, (0,)),
        ({"layers": [2, 0]}, (0, 2)),
        ({"layers": {1: ROUGH}}, (1,)),
        ({"last": 0}, ()),
        ({}, (0, 1, 2)),
    ],
)
def test_layers_are_chosen_by_end_list_or_one_by_one(llama: Any, choice: dict[str, Any], layers: tuple[int]) -> None:
    with patched(llama, params=ROUGH, **choice) as patch:
        logits(llama, tokens(60))
    assert patch.layers == layers
    assert {layer: dict(calls) for layer, calls in patch.calls.items()} == {layer: {"hyper": 1} for layer in layers}


def test_another_function_attends_in_its_place(llama: Any) -> None:
    seeds = []

    def attend(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, scale: float, seed: int) -> Tensor:
        seeds.append(seed)
        assert (q.shape[1], k.shape[1]) == (4, 2)
        return scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale, enable_gqa=True)

    expected = logits(llama, tokens(20))
    with patched(llama, attend=attend, seed=3):
        torch.testing.assert_close(logits(llama, tokens(20)), expected)
    assert len(set(seeds)) == 3


def test_left_padding_and_packed_sequences_are_exact(llama: Any) -> None:
    ids, mask = tokens(60, batch=2), torch.ones(2, 60, dtype=torch.long)
    mask[1, :7] = 0
    packed = torch.cat([torch.arange(25), torch.arange(35)]).unsqueeze(0)
    for batch, more in ((ids, {"attention_mask": mask}), (ids[:1], {"position_ids": packed})):
        expected = logits(llama, batch, **more)
        with patched(llama, params=ROUGH) as patch, pytest.warns(ExactAttentionWarning, match="a mask of its own"):
            assert torch.equal(logits(llama, batch, **more), expected)
        assert "hyper" not in str(patch)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_prompt_is_approximate_and_decoding_steps_are_exact(llama: Any, cache: str) -> None:
    ids = tokens(60)
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    if cache == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    expected = llama.generate(ids, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExactAttentionWarning)
        with patched(llama, params=EXACT) as patch:
            assert torch.equal(llama.generate(ids, **options), expected)
    assert dict(patch.calls[0]) == {"hyper": 1, "exact: decoding step": 3}


def test_few_keys_are_exact_and_told_once(llama: Any) -> None:
    with patched(llama, params=HyperAttentionParams.paper()) as patch:
        with pytest.warns(ExactAttentionWarning) as told:
            logits(llama, tokens(60))
        assert len(told) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error", ExactAttentionWarning)
            logits(llama, tokens(60))
    assert "no more keys than min_seq_len=4096" in str(told[0].message)
    assert dict(patch.calls[2]) == {"exact: no more keys than min_seq_len=4096": 2}


def test_training_steps_give_gradients(llama: Any) -> None:
    def gradient(params: HyperAttentionParams | None) -> Tensor:
        llama.zero_grad()
        with patched(llama, params=params, strict=True, layers=[] if params is None else None):
            llama(tokens(60), labels=tokens(60)).loss.backward()
        return llama.model.layers[0].self_attn.q_proj.weight.grad.clone()  # type: ignore[no-any-return]

    exact = gradient(None)
    torch.testing.assert_close(gradient(EXACT), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))
    assert not torch.allclose(gradient(ROUGH), exact, rtol=1e-2, atol=1e-2 * float(exact.abs().max()))


@pytest.mark.slow
def test_compiled_layers_are_one_graph_each_and_a_compiled_model_is_refused_rather_than_exact() -> None:
    model, ids = tiny("llama"), tokens(60)
    with patched(model, params=EXACT):
        expected = logits(model, ids)
        whole = torch.compile(model, fullgraph=True, backend="aot_eager")
        with pytest.raises(Exception, match="compile the layers, not the model"):
            logits(whole, ids)
        for layer in model.model.layers:
            layer.compile(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-4, atol=1e-4)
    with patched(model, params=ROUGH):
        assert not torch.allclose(logits(model, ids), expected, rtol=1e-2, atol=1e-2)


def test_two_models_are_patched_side_by_side(llama: Any) -> None:
    other, ids = tiny("gpt_neox"), tokens(60)
    alone = logits(other, ids)
    with patched(llama, last=1, params=ROUGH) as one, patched(other, params=EXACT) as two:
        logits(llama, ids)
        torch.testing.assert_close(logits(other, ids), alone, rtol=2e-4, atol=2e-4)
    assert sorted(one.calls) == [2]
    assert sorted(two.calls) == [0, 1, 2]


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"last": 4}, "last=4: the model has 3 layers"),
        ({"first": -1}, "first=-1: the model has 3 layers"),
        ({"layers": [0, 3]}, "layers=3: the model has layers 0 to 2"),
        ({"last": 1, "first": 1}, "last and first exclude each other"),
        ({"params": ROUGH, "attend": print}, "params and attend exclude each other"),
    ],
)
def test_wrong_choices_are_one_line_and_change_nothing(llama: Any, choice: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told), patched(llama, **choice):
        pass
    assert llama.config._attn_implementation == "sdpa"
    with patched(llama), pytest.raises(ValueError, match="patched already"), patched(llama):
        pass
    assert not any(hasattr(m, "hyperattn_layer") for found in attention_modules(llama).values() for m in found)


def test_a_model_without_such_attention_is_one_line() -> None:
    with pytest.raises(ValueError, match="Linear has no layers that attend"), patched(torch.nn.Linear(2, 2)):
        pass
