"""Grids of a sweep are put together, not multiplied, and a sweep may name its inputs; what is no grid is one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from hyperbench.config.axes import grids_of, inputs_of
from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import RunConfig, load
from hyperbench.config.overrides import parse

Compose = Callable[..., RunConfig]
BUDGETS = [
    {"method.hyper.block_size": 8, "method.hyper.sample_size": 8, "method.uniform.sample_size": 8},
    {"method.hyper.block_size": 16, "method.hyper.sample_size": 16, "method.uniform.sample_size": 16},
]


@pytest.fixture
def of_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """A function that composes a sweep of these axes and grids with these words, on a CPU."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)

    def compose(*words: str, methods: str = "flash2, hyper, uniform", **sweep: Any) -> RunConfig:
        head = f"# @package _global_\ndefaults:\n  - override /method: [{methods}]\n"
        data = {"shape": {"seq_len": 64}, "sweep": {"name": "mine", "description": "", **sweep}}
        text = yaml.safe_dump(data, sort_keys=False)
        (folder / "mine.yaml").write_text(head + text, encoding="utf-8")
        return load(["sweep=mine", *words], lambda asked: ("cpu", ""))

    return compose


def refusal(compose: Compose, *words: str, **sweep: Any) -> str:
    """The one line with which a sweep is refused."""
    with pytest.raises(ConfigError) as caught:
        compose(*words, **sweep)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def settings(config: RunConfig, method: str, *names: str) -> list[tuple[Any, ...]]:
    """Fields and parameters of every point of a method, in order."""
    return [
        tuple(point.hyper[name] if name in point.hyper else getattr(point, name) for name in names)
        for point in config.points
        if point.method == method
    ]


def test_values_of_one_grid_go_together_and_grids_are_put_together(of_sweep: Compose) -> None:
    config = of_sweep(grids=BUDGETS)
    assert settings(config, "hyper", "block_size", "sample_size") == [(8, 8), (16, 16)]
    assert settings(config, "uniform", "sample_size") == [(8,), (16,)]
    # A method of which no grid speaks has one point, not one a grid.
    assert settings(config, "flash2", "seq_len") == [(64,)]


def test_axes_of_the_sweep_multiply_every_grid_and_equal_points_are_one(of_sweep: Compose) -> None:
    varied = [{"method.hyper.num_projections": [3, 5]}, {"method.hyper.num_projections": [5, 7]}, {}]
    config = of_sweep(axes={"shape.seq_len": [32, 64], "is_causal": [False, True]}, grids=varied)
    assert len(config.points) == 2 * 2 * (1 + 4 + 1)
    assert settings(config, "hyper", "seq_len", "is_causal", "num_projections")[:5] == [
        (32, False, 3), (32, False, 5), (32, False, 7), (32, False, None), (32, True, 3),
    ]  # fmt: skip


def test_a_grid_may_narrow_an_axis_of_the_sweep(of_sweep: Compose) -> None:
    grids = [{}, {"is_causal": True, "method.hyper.min_seq_len": [16, 32]}]
    config = of_sweep(axes={"is_causal": [False, True]}, grids=grids)
    assert settings(config, "hyper", "is_causal", "min_seq_len") == [
        (False, None), (True, None), (True, 16), (True, 32),
    ]  # fmt: skip
    assert settings(config, "flash2", "is_causal") == [(False,), (True,)]


def test_a_value_of_the_command_line_replaces_those_of_every_grid(of_sweep: Compose) -> None:
    config = of_sweep("method.hyper.block_size=4", grids=BUDGETS)
    assert settings(config, "hyper", "block_size", "sample_size") == [(4, 8), (4, 16)]
    config = of_sweep("method.hyper.sample_size=2,4", "shape.seq_len=16,32", grids=BUDGETS[:1])
    assert settings(config, "hyper", "seq_len", "block_size", "sample_size") == [
        (16, 8, 2), (16, 8, 4), (32, 8, 2), (32, 8, 4),
    ]  # fmt: skip


def test_of_a_grid_that_narrows_an_axis_there_is_what_the_command_line_asks_for() -> None:
    composed = {"sweep": {"grids": [{}, {"is_causal": True}, {"shape.seq_len": [8, 16]}]}, "method": {}}
    for words, wanted in (
        (["is_causal=false"], [{}, {"shape.seq_len": [8, 16]}]),
        (["is_causal=true", "shape.seq_len=16,32"], [{}, {"is_causal": [True]}, {"shape.seq_len": [16]}]),
        (["is_causal=false,true", "shape.seq_len=[32]"], [{}, {"is_causal": [True]}]),
    ):
        assert grids_of(composed, parse(words), []) == wanted
    causal = {"sweep": {"grids": [{"is_causal": True}]}, "method": {}}
    with pytest.raises(ConfigError, match="no grid of this sweep holds what the command line asks for"):
        grids_of(causal, parse(["is_causal=false"]), [])


def test_grids_leave_out_the_methods_that_a_run_does(of_sweep: Compose) -> None:
    config = of_sweep("~method.uniform", grids=BUDGETS)
    assert {point.method for point in config.points} == {"flash2", "hyper"}
    assert settings(config, "hyper", "block_size") == [(8,), (16,)]


def test_a_sweep_names_its_inputs_and_the_command_line_replaces_them(of_sweep: Compose) -> None:
    axes = {"input": ["clustered", "gaussian"], "is_causal": [False, True]}
    config = of_sweep(axes=axes, methods="flash2")
    assert settings(config, "flash2", "input", "is_causal") == [
        ("clustered", False), ("clustered", True), ("gaussian", False), ("gaussian", True),
    ]  # fmt: skip
    assert (config.axes["input"], len(config.resolved["inputs"])) == (["clustered", "gaussian"], 2)
    assert config.points[0].input_params["num_clusters"] == 256
    assert config.config_hash == of_sweep("input=clustered,gaussian", axes=axes, methods="flash2").config_hash
    for words, inputs in (
        ("input=heavy_keys", {"heavy_keys"}),
        ("input=gaussian,clustered", {"gaussian", "clustered"}),
    ):
        assert {point.input for point in of_sweep(words, axes=axes).points} == inputs
    assert {point.input for point in of_sweep(axes={"input": "clustered"}).points} == {"clustered"}


def test_a_sweep_without_grids_is_resolved_as_it_was_before_there_were_any(of_sweep: Compose) -> None:
    assert set(of_sweep(axes={}).resolved["sweep"]) == {"name", "description", "axes"}
    assert of_sweep(grids=BUDGETS[:1]).resolved["sweep"]["grids"] == [
        {key: [value] for key, value in BUDGETS[0].items()}
    ]


@pytest.mark.parametrize(
    ("grids", "told"),
    [
        (3, "sweep.grids=3 must be a list of mappings"),
        ([], "sweep.grids=[] must be a list of mappings"),
        (["a"], "sweep.grids=[a] must be a list of mappings"),
        ({"method.hyper.block_size": [8]}, "must be a list of mappings"),
        ([{"method.hyper.block_size": []}], "method.hyper.block_size=[] is empty"),
        ([{"method.hypr.block_size": 8}], "method.hypr.block_size is swept"),
        ([{"colour": [1]}], "colour takes one value for a run"),
        ([{"protocol.rounds": 1}], "protocol.rounds takes one value for a run"),
        ([{"input.std": 2}], "input.std cannot be swept together with several inputs"),
        ([{"input": "gaussian"}], "input takes one value for a run"),
    ],
)
def test_what_is_no_grid_is_one_line(grids: Any, told: str) -> None:
    composed = {"sweep": {"grids": grids}, "method": {"hyper": {}, "flash2": {}}}
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        grids_of(composed, parse([]), ["gaussian", "clustered"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "axes", "told"),
    [
        ([], {"input": ["gausian"]}, "sweep.axes.input=gausian is unknown; allowed: "),
        ([], {"input": [3]}, "sweep.axes.input=3 is unknown"),
        ([], {"input": None}, "sweep.axes.input=None is unknown"),
        (["+sweep.axes.input=[gaussian]"], {}, "choose inputs by input=NAME,NAME"),
        (["sweep.axes.input=gaussian", "input=clustered"], {"input": "clustered"}, "choose inputs by input=NAME,NAME"),
    ],
)
def test_inputs_that_are_none_are_one_line(words: list[str], axes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        inputs_of(OmegaConf.create({"sweep": {"axes": axes}}), parse(words))
    assert "\n" not in str(caught.value)


def test_axes_that_are_no_mapping_and_sizes_that_are_none_are_refused(of_sweep: Compose) -> None:
    assert "sweep.axes=3 must be a mapping" in refusal(of_sweep, axes=3)
    assert "shape.seq_len=0 must be an integer of at least 1" in refusal(of_sweep, grids=[{"shape.seq_len": [0]}])


def test_the_tradeoff_sweep_holds_baselines_to_the_budgets_of_hyper() -> None:
    words = ("input=gaussian", "shape.seq_len=4096", "is_causal=false")
    config = load(["sweep=tradeoff", *words], lambda asked: ("cpu", ""))
    budgets = [(None, None), (64, 64), (128, 128), (512, 512)]
    for method in ("uniform", "window_sinks", "block_only"):
        assert settings(config, method, "block_size", "sample_size") == budgets
        assert set(settings(config, method, "match")) == {("hyper",)}
    assert settings(config, "hyper", "block_size", "sample_size")[:4] == budgets
    for method in ("flash2", "hyper_paper", "mean_v", "zero"):
        assert len(settings(config, method, "seq_len")) == 1
    # Far fewer than the product of six axes.
    assert len(config.points) < 40
