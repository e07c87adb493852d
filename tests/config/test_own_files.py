"""A user's own conf/ beside the project: its files add to those that ship, and never take the place of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperbench.commands.listing import rows
from hyperbench.config import catalog
from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import RunConfig, load
from hyperbench.config.types import call_options

MINE = "# @package method.mine\n_target_: my_package.attention\ndescription: mine\nwindow: 64\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, whose name would mean something on a command line."""
    folder = tmp_path / "a, b=[c] 'd'"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    """A file under conf/."""
    path = folder / "conf" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def config_of(*words: str) -> RunConfig:
    """The configuration of some words on a CPU."""
    return load(words, lambda name: ("cpu", ""))


def refusal(*words: str) -> str:
    """The one line with which words are refused."""
    with pytest.raises(ConfigError) as caught:
        config_of(*words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_methods_inputs_sweeps_and_protocols_are_found_and_may_name_each_other(folder: Path) -> None:
    write(folder, "method/mine.yaml", MINE)
    write(folder, "input/ramp.yaml", "name: ramp\ndescription: grows\nslope: 2.0\n")
    write(folder, "protocol/hasty.yaml", "defaults: [quick]\nname: hasty\nmax_samples: 7\nmin_samples: 3\n")
    sweep = "# @package _global_\ndefaults:\n  - override /method: [flash2, mine]\n  - override /input: ramp\n"
    axes = "sweep:\n  name: ours\n  description: ours\n  axes:\n    method.mine.window: [64, 128]\n"
    write(folder, "sweep/ours.yaml", sweep + axes)
    config = config_of("sweep=ours", "protocol=hasty")
    assert [(p.method, p.hyper.get("window"), p.input) for p in config.points] == [
        ("flash2", None, "ramp"), ("mine", 64, "ramp"), ("mine", 128, "ramp")
    ]  # fmt: skip
    assert config.points[1].input_params == {"slope": 2.0}
    assert (config.protocol.name, config.protocol.max_samples, config.protocol.rounds) == ("hasty", 7, 1)
    assert {"name": "mine", "description": "mine"} in rows("methods")
    assert [p.method for p in config_of("method=[flash2,mine]", "input=gaussian,ramp").points] == ["flash2", "mine"] * 2


def test_nothing_of_it_is_read_where_there_is_none_or_it_is_that_of_a_checkout(folder: Path) -> None:
    shipped = catalog.names("method")
    assert "mine" not in shipped
    write(folder, "method/mine.yaml", MINE)
    assert catalog.names("method") == sorted([*shipped, "mine"])
    write(folder, "config.yaml", "")
    (folder / "hyperbench" / "config").mkdir(parents=True)
    assert catalog.names("method") == shipped
    assert "mine" in refusal("method=[mine]")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("method/flash2.yaml", MINE, ()),
        ("input/clustered.yaml", "name: clustered\n", ("input=gaussian,clustered",)),
        ("protocol/quick.yaml", "name: quick\n", ("protocol=quick",)),
    ],
)
def test_a_name_that_ships_is_refused_where_it_is_used(
    folder: Path, name: str, text: str, words: tuple[str, ...]
) -> None:
    path = write(folder, name, text)
    group = name.partition("/")[0]
    assert refusal(*words) == (
        f"{path.relative_to(folder)} has the name of a {group} that ships with hyperbench; give it another name"
    )


def test_a_name_that_ships_is_no_obstacle_to_what_does_not_use_it(folder: Path) -> None:
    write(folder, "method/zero.yaml", MINE)
    write(folder, "input/gaussian.yaml", "name: gaussian\n")
    write(folder, "device/cpu.yaml", "name: mine\n")
    config = config_of("input=clustered")
    assert [p.method for p in config.points] == ["flash2", "hyper"]
    assert config.device.name == "cpu"


@pytest.mark.parametrize(
    ("name", "text", "words", "told"),
    [
        ("method/mine.yaml", MINE.partition("\n")[2], ("method=[mine]",), "# @package method.mine"),
        ("sweep/ours.yaml", "sweep: {name: ours, axes: {}}\n", ("sweep=ours",), "# @package _global_"),
        ("method/mine.yaml", "a: [", ("method=[mine]",), "conf/method/mine.yaml"),
        ("method/mine.yaml", "# @package method.mine\na: 1\na: 2\n", ("method=[mine]",), "a"),
        ("method/mine.yaml", MINE + "layout: hbnd\n", ("method=[mine]",), "method.mine.layout=hbnd is unknown"),
        ("method/mine.yaml", MINE, ("method=[mine]", "+method.mine.layout=bhnd,bnhd"), "takes one value for a run"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    folder: Path, name: str, text: str, words: tuple[str, ...], told: str
) -> None:
    write(folder, name, text)
    assert told in refusal(*words)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"layout": "bnhdx"}, "method.mine.layout=bnhdx is unknown; allowed: bhnd, bnhd; did you mean 'bnhd'?"),
        ({"kind": "best"}, "method.mine.kind=best is unknown; allowed: trivial, oracle"),
        ({"causal": "never"}, "method.mine.causal=never must be true or false"),
        ({"allow_leak": 1}, "method.mine.allow_leak=1 must be true or false"),
    ],
)
def test_an_option_that_is_not_allowed_is_one_line(node: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call_options("mine", node)
    assert str(caught.value) == told


def test_options_of_a_call_are_no_parameters(folder: Path) -> None:
    write(folder, "method/mine.yaml", MINE + "kind: trivial\nlayout: bnhd\ncausal: false\nallow_leak: true\n")
    config = config_of("method=[flash2,mine]")
    options = config.call_options["mine"]
    assert (options.layout, options.causal, options.allow_leak) == ("bnhd", False, True)
    assert config.points[1].hyper == {"window": 64}
    assert config.call_options["flash2"].layout is None
