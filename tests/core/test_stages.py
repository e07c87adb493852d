"""The stages of a forward pass: together they are the pass to the last bit, and each can be run again by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan
from hyperattn_core.functional import attention_stages
from hyperattn_core.stages import Stages, chained
from tests.helpers.core_inputs import CHOICES, PAIRINGS, Case, bits, cases, qkv, small_params

NAMES = {False: ["hash", "sort", "sample", "attend"], True: ["hash", "sort", "sample", "attend", "leaves", "merge"]}
LONG = small_params("stratified", "bucket")
SHORT = dataclasses.replace(LONG, min_seq_len=10_000)


def run_all(stages: Stages) -> Tensor:
    """Run every stage once, in order; what the last one returns."""
    result: object = None
    for stage in stages.values():
        result = stage()
    assert isinstance(result, Tensor)
    return result


def tensors(result: object) -> list[Tensor]:
    """Every tensor in a stage's result, records opened."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return [x for field in dataclasses.fields(result) for x in tensors(getattr(result, field.name))]
    if isinstance(result, (list, tuple)):
        return [x for item in result for x in tensors(item)]
    return [x for x in tree_leaves(result) if isinstance(x, Tensor)]


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_last_stage_gives_the_output_of_the_call_to_the_last_bit(case: Case) -> None:
    call: dict[str, Any] = {
        "params": case.params, "seed": case.seed, "is_causal": case.is_causal, "scale": 0.3, "enable_gqa": True,
    }  # fmt: skip
    whole = hyper_attention(case.q, case.k, case.v, **call)
    staged = run_all(attention_stages(case.q, case.k, case.v, **call))
    assert staged.dtype == whole.dtype
    assert torch.equal(bits(staged), bits(whole))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_other_types_are_rounded_alike(sampling: str, pairing: str, is_causal: bool, dtype: torch.dtype) -> None:
    q, k, v = qkv(queries=70, batch=2, heads=4, kv_heads=2, dim=8, value_dim=5, dtype=dtype)
    call: dict[str, Any] = {"params": small_params(sampling, pairing), "is_causal": is_causal, "enable_gqa": True}
    whole = hyper_attention(q, k, v, **call)
    assert torch.equal(bits(run_all(attention_stages(q, k, v, **call))), bits(whole))


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_names_follow_the_masking_and_an_exact_call_has_one(is_causal: bool) -> None:
    q, k, v = qkv(queries=40)
    assert list(attention_stages(q, k, v, params=LONG, is_causal=is_causal)) == NAMES[is_causal]
    exact = attention_stages(q, k, v, params=SHORT, is_causal=is_causal)
    assert list(exact) == ["exact"]
    assert make_plan(q, k, SHORT, is_causal=is_causal).is_exact
    assert torch.equal(run_all(exact), hyper_attention(q, k, v, params=SHORT, is_causal=is_causal))


@settings(max_examples=30, deadline=None)
@given(cases(max_len=80), st.data())
def test_stages_run_again_in_any_order_change_no_result(case: Case, data: st.DataObject) -> None:
    stages = attention_stages(
        case.q, case.k, case.v, params=case.params, seed=case.seed, is_causal=case.is_causal, enable_gqa=True
    )
    first = {name: [x.clone() for x in tensors(stage())] for name, stage in stages.items()}
    for name in data.draw(st.lists(st.sampled_from(list(stages)), max_size=8)):
        again = tensors(stages[name]())
        assert len(again) == len(first[name])
        for one, other in zip(again, first[name], strict=True):
            assert torch.equal(bits(one), bits(other))


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_first_three_stages_make_the_plan_of_the_call(is_causal: bool, pairing: str) -> None:
    q, k, v = qkv(queries=60, heads=2)
    params = small_params("stratified", pairing)
    stages = attention_stages(q, k, v, params=params, seed=5, is_causal=is_causal)
    made = [stages[name]() for name in ("hash", "sort", "sample")][-1]
    plan = make_plan(q, k, params, 5, is_causal=is_causal)
    assert all(torch.equal(a, b) for a, b in zip(tensors(made), tensors(plan.levels), strict=True))


def test_inputs_are_left_alone_and_no_gradient_is_recorded() -> None:
    inputs = [x.requires_grad_() for x in qkv(queries=40)]
    before = [x.detach().clone() for x in inputs]
    for is_causal in (False, True):
        out = run_all(attention_stages(inputs[0], inputs[1], inputs[2], params=LONG, is_causal=is_causal))
        assert not out.requires_grad
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("name", NAMES[True][1:])
def test_a_stage_before_its_time_names_the_one_that_is_missing(name: str) -> None:
    stages = attention_stages(*qkv(queries=40), params=LONG, is_causal=True)
    with pytest.raises(RuntimeError, match=f"stage '{name}' needs the result of stage 'hash'"):
        stages[name]()


def test_a_stage_that_fails_keeps_the_results_before_it() -> None:
    fails = [False, True, False]

    def second(done: Any) -> int:
        if fails.pop(0):
            raise RuntimeError("once")
        return int(done["first"]) + 1

    stages = chained({"first": lambda done: 1, "second": second, "third": lambda done: done["second"] * 10})
    assert [stage() for stage in stages.values()] == [1, 2, 20]
    with pytest.raises(RuntimeError, match="once"):
        stages["second"]()
    assert (stages["third"](), stages["second"]()) == (20, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "oracle"}, "backend must be one of auto, torch, triton, got 'oracle'"),
        ({"backend": "tritn"}, "did you mean 'triton'"),
        ({"params": {"block_size": 8}}, "params must be HyperAttentionParams"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"scale": float("nan")}, "scale"),
        ({"is_causal": True}, "is_causal needs as many queries as keys"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: dict[str, Any], words: str) -> None:
    q, k, v = qkv(queries=40, keys=41)
    with pytest.raises(ValueError) as caught:
        attention_stages(q, k, v, **{"params": HyperAttentionParams(), **changes})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_grouped_heads_are_asked_for_as_in_the_call() -> None:
    q, k, v = qkv(queries=40, heads=4, kv_heads=2)
    with pytest.raises(ValueError, match="enable_gqa=True"):
        attention_stages(q, k, v, params=LONG)
