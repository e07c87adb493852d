"""Tasks in the configuration: their words, the layers that they patch, and what cannot be."""

from __future__ import annotations

import pytest

from hyperbench.config import tasks
from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import load
from hyperbench.measure.model_facts import with_models
from hyperbench.store.schema import Point

FACTS = {"layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 256, "name": "tiny"}


def points(*words: str) -> tuple[Point, ...]:
    """The points of some words on a CPU."""
    return load(["method=[flash2,hyper]", *words], lambda asked: ("cpu", "")).points


@pytest.mark.parametrize(
    ("word", "stands_for"),
    [
        ("task=copy,passkey", "input=copy,passkey"),
        ("task.depths=[0.5]", "input.depths=[0.5]"),
        ("model=smollm2", "input.model=smollm2"),
        ("model.name=org/model", "input.model=org/model"),
        ("model.path=a folder/b", "input.path=a folder/b"),
        ("+task.mine=1", "+input.mine=1"),
        ("tasks=1", "tasks=1"),
        ("modelling=1", "modelling=1"),
        ("seed=1", "seed=1"),
    ],
)
def test_words_for_tasks_and_models_are_those_of_inputs(word: str, stands_for: str) -> None:
    assert tasks.renamed(word) == stands_for


def test_no_patched_layer_is_exact_attention_alone_and_once() -> None:
    found = points("task=perplexity", "input.last=0,1,5", "shape.seq_len=64")
    assert [(p.method, p.hyper.get("layers")) for p in found] == [
        ("flash2", None), ("hyper", "last 1"), ("hyper", "last 5"),
    ]  # fmt: skip
    assert all(p.is_causal and p.is_task and p.input == "perplexity" for p in found)
    assert "last" not in found[0].input_params


@pytest.mark.parametrize(
    ("words", "layers"),
    [((), "all"), (("input.last=2",), "last 2"), (("input.layers=[0,2]",), "0,2"), (("input.layers=2",), "2")],
)
def test_layers_are_text(words: tuple[str, ...], layers: str) -> None:
    found = {p.hyper.get("layers") for p in points("task=copy", *words) if p.method == "hyper"}
    assert found <= {layers, "0", "2"} if layers == "0,2" else found == {layers}


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [("", ()), ("all", (0, 1, 2, 3)), ("last 1", (3,)), ("last 4", (0, 1, 2, 3)), ("0,2", (0, 2))],
)
def test_such_a_text_is_of_these_layers(layers: str, numbers: tuple[int, ...]) -> None:
    assert tasks.numbered(layers, 4) == numbers


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("task=perplexity", "input.last=-1"), "input.last=-1 must be a whole number of layers"),
        (("task=perplexity", "input.last=a"), "input.last=a must be a whole number of layers"),
        (("task=perplexity", "input.last=1", "input.layers=2"), "input.last=1 and input.layers=2 exclude each other"),
        (("task=perplexity", "input.layers=-1"), "input.layers=-1 must be different whole numbers"),
        (("task=perplexity", "model.path=3"), "input.path=3 must be text or null"),
        (("task=passkey", "task.depths=[]"), "input.depths=[] must be a list of places from 0 to 1"),
        (("task=passkey", "task.depths=[2]"), "input.depths=[2] must be a list of places from 0 to 1"),
        (("task=perplexity", "task.task='no name'"), "input.task=no name names no function; give package.function"),
        (("task=perplexity", "task.metrics=[]"), "input.metrics=[] must be a list of the names of the metrics"),
        (("task=perplexiti",), "input=perplexiti is unknown"),
        (("input=[perplexity,gaussian]",), "tasks of language models and other inputs are runs of their own"),
    ],
)
def test_what_cannot_be_is_one_line(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        points(*words)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_points_have_the_heads_and_layers_of_their_model_asked_once() -> None:
    asked = []

    def describe(request: dict[str, object]) -> dict[str, object]:
        asked.append(request)
        return FACTS

    found = with_models(points("task=perplexity", "input.last=0,3", "shape.seq_len=64,128"), describe)
    assert len(asked) == 1
    assert {(p.heads, p.kv_heads, p.head_dim, p.input_params["model_layers"]) for p in found} == {(4, 2, 16, 3)}
    others = points("input=gaussian")
    assert with_models(others, lambda request: pytest.fail("there is no model")) == others


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("input.last=4",), "input.last=4: the model has 3 layers"),
        (("input.layers=3",), "input.layers=3: the model has layers 0 to 2"),
        (("shape.seq_len=257",), "shape.seq_len=257 is beyond the context of tiny, 256 tokens"),
        (("shape.batch=2",), "shape.batch=2: a task is of one text at a time"),
    ],
)
def test_what_the_model_lacks_is_one_line(words: tuple[str, ...], told: str) -> None:
    chosen = {word.partition("=")[0]: word for word in ("task=perplexity", "shape.seq_len=64", *words)}
    with pytest.raises(ConfigError, match=told):
        with_models(points(*chosen.values()), lambda request: FACTS)


def test_a_length_beyond_the_context_runs_on_request() -> None:
    words = ("task=perplexity", "shape.seq_len=300", "input.beyond_context=true")
    assert {p.seq_len for p in with_models(points(*words), lambda request: FACTS)} == {300}
