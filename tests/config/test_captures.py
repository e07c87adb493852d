"""Captured inputs as the configuration sees them: what fits is taken, everything else is one line before the run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperbench.config import captures, inputs
from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import RunConfig, load
from tests.helpers import made_captures


def config_of(*words: str) -> RunConfig:
    """The configuration of some words on a machine with a CPU alone."""
    return load(words, lambda asked: ("cpu", ""))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A capture of layers 0 and 8: 6 query heads, 2 key heads, 40 rows, head_dim 8."""
    return made_captures.write(tmp_path / "a capture.safetensors", metadata={"model": "made", "scale": "0.25"})


def captured(path: Path, *words: str) -> RunConfig:
    """The configuration of a run on a capture, at its length if no other is given."""
    length = [] if any("seq_len" in word for word in words) else ["shape.seq_len=40"]
    return config_of("input=captured", f"input.path='{path}'", *length, "method=hyper", *words)


def params(path: Path, node: dict[str, Any] | None = None, **shape: int) -> dict[str, Any]:
    """The parameters of the input of a point on a capture; that of one head where nothing else is said."""
    sizes = {"batch": 1, "heads": 1, "kv_heads": 1, "seq_len": 40, "head_dim": 8}
    return inputs.params_of({"name": "captured", "path": str(path), "layer": None, "head": None, **(node or {})},
                            sizes | shape)  # fmt: skip


def refusal(call: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_header_tells_layers_sizes_and_scale(path: Path) -> None:
    capture = captures.read(str(path))
    assert capture.layers == dict.fromkeys((0, 8), captures.Layer(6, 2, 40, 8))
    assert capture.metadata["model"] == "made"
    assert capture.scale(8) == 0.25
    assert captures.read(str(made_captures.write(path.with_name("b"), metadata={"a": "b"}))).scale(4) == 0.5


def test_defaults_follow_the_file_and_the_first_layer_is_taken(path: Path) -> None:
    (point,) = captured(path).points
    assert (point.heads, point.kv_heads, point.head_dim, point.seq_len) == (1, 1, 8, 40)
    assert point.input_params == {
        "path": str(path), "layer": 0, "head": None, "sha256": captures.sha256(str(path))
    }  # fmt: skip
    lengths = {p.seq_len for p in config_of("sweep=fig4", "input=captured", f"input.path='{path}'").points}
    assert lengths == {40}
    both = config_of("input=gaussian,captured", f"+input.path='{path}'", "++input.layer=8", "shape.seq_len=16")
    assert {p.head_dim for p in both.points} == {8}


def test_layers_and_heads_are_axes(path: Path) -> None:
    found = captured(path, "input.layer=0,8", "input.head=0,5,null").points
    assert [(p.input_params["layer"], p.input_params["head"]) for p in found] == [
        (layer, head) for layer in (0, 8) for head in (0, 5, None)
    ]
    assert len({p.point_id for p in found}) == 6


def test_another_file_is_another_point_and_another_configuration(path: Path) -> None:
    before = captured(path)
    changed = made_captures.tensors()
    changed["layers.8.v"] = changed["layers.8.v"] + 1
    made_captures.write(path, changed)
    after = captured(path)
    assert before.points[0].point_id != after.points[0].point_id
    assert before.resolved["input_files"] == {str(path): before.points[0].input_params["sha256"]}
    assert before.config_hash != after.config_hash
    assert "input_files" not in config_of().resolved


@pytest.mark.parametrize(
    ("node", "shape", "told"),
    [
        ({"layer": 5}, {}, "input.layer=5 is not in"),
        ({"layer": True}, {}, "input.layer=True is not in"),
        ({"layer": "eight"}, {}, "allowed: 0, 8"),
        ({"head": 6}, {}, "input.head=6 is not in"),
        ({"head": -1}, {}, "allowed: 0 to 5, or null"),
        ({"head": 1.0}, {}, "input.head=1.0 is not in"),
        ({"head": 1}, {"heads": 2}, "input.head=1 is one head and shape.heads=2"),
        ({}, {"heads": 7}, "shape.heads=7 is more than the 6 query heads"),
        ({}, {"heads": 6, "kv_heads": 3}, "shape.kv_heads=3 does not fit"),
        ({}, {"heads": 6, "kv_heads": 3}, "allowed: 6, 2"),
        ({}, {"heads": 4, "kv_heads": 2}, "allowed: 4"),
        ({}, {"seq_len": 41}, "has 40 rows; asked for shape.seq_len=41"),
        ({}, {"head_dim": 64}, "shape.head_dim=64 does not fit layer 0"),
        ({}, {"batch": 2}, "shape.batch=2"),
        ({"sha256": 0}, {}, "input.sha256 is read from the file"),
        ({"path": None}, {}, "input.path=None names no file; give input.path=FILE"),
    ],
)
def test_what_a_capture_does_not_hold_is_refused(
    path: Path, node: dict[str, Any], shape: dict[str, int], told: str
) -> None:
    assert told in refusal(lambda: params(path, node, **shape))


def test_a_run_on_too_few_rows_is_refused(path: Path) -> None:
    assert "has 40 rows; asked for shape.seq_len=41" in refusal(lambda: captured(path, "shape.seq_len=16,41"))


def test_key_heads_may_be_shared_as_in_the_file_or_stand_alone(path: Path) -> None:
    for heads, kv_heads in ((6, 2), (6, 6), (3, 1), (3, 3), (2, 1), (5, 5), (1, 1)):
        assert params(path, heads=heads, kv_heads=kv_heads)["layer"] == 0


def without(*names: str) -> Callable[[Path], object]:
    """A capture that lacks some tensors."""
    kept = {name: x for name, x in made_captures.tensors().items() if name not in names}
    return lambda path: made_captures.write(path, kept)


def with_tensor(name: str, x: torch.Tensor) -> Callable[[Path], object]:
    """A capture with another tensor in the place of one."""
    return lambda path: made_captures.write(path, {**made_captures.tensors(), name: x})


def entry(**fields: Any) -> Callable[[Path], object]:
    """A capture whose header says something else of one tensor."""
    return lambda path: made_captures.with_header(path, lambda header: header["layers.8.k"].update(fields))


def header(text: bytes, *, length: int | None = None) -> Callable[[Path], object]:
    """A file with this header alone."""
    size = len(text) if length is None else length
    return lambda path: path.write_bytes(size.to_bytes(8, "little") + text)


DAMAGE = {
    "missing": (lambda path: path.unlink(), "cannot be read: No such file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is no file"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is no file"),
    "empty": (lambda path: path.write_bytes(b""), "it has 0 bytes"),
    "torch.save": (lambda path: torch.save(made_captures.tensors(), path), "torch.save"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": list(range(99))})), "it is a pickle"),
    "text": (lambda path: path.write_text("layers.0.q: none of them\n"), "its header would have"),
    "header of gigabytes": (header(b"{}", length=2**40), "at most 16,777,216 are read"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:60]), "it ends within its header"),
    "cut in the numbers": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "it is cut short"),
    "no JSON": (header(b"{'a': 1}"), "its header is no JSON"),
    "nested without end": (header(b"[" * 100_000), "its header is no JSON"),
    "a list": (header(b"[]"), "its header is no mapping"),
    "nothing captured": (header(b"{}"), "holds no tensor layers.L.q"),
    "metadata of numbers": (header(b'{"__metadata__": {"scale": 1}}'), "__metadata__ is no mapping of texts"),
    "offsets backwards": (entry(data_offsets=[100, 0]), "cannot take -100 bytes"),
    "offsets below zero": (entry(data_offsets=[-8, 0]), "other numbers than non-negative integers"),
    "offsets of text": (entry(data_offsets="ab"), "other numbers than non-negative integers"),
    "offsets beyond the file": (entry(data_offsets=[0, 10**18]), "it is cut short"),
    "no offsets": (entry(data_offsets=None), "lacks dtype, shape or data_offsets"),
    "shape of another size": (entry(shape=[2, 40, 9]), "cannot take"),
    "shape of floats": (entry(shape=[2.0, 40, 8]), "other numbers than non-negative integers"),
    "very many dimensions": (entry(shape=[9] * 10_000), "has 10000 dimensions"),
    "no such dtype": (entry(dtype="F8"), "is of dtype 'F8'; allowed: F64, F32"),
    "dtype that is no text": (entry(dtype=["F32"]), "is of dtype ['F32']"),
    "whole numbers": (with_tensor("layers.0.q", torch.zeros(6, 40, 8, dtype=torch.int64)), "is of dtype 'I64'"),
    "no v": (without("layers.8.v"), "has no tensor layers.8.v"),
    "no q": (without("layers.8.q"), "has no tensor layers.8.q"),
    "two dimensions": (with_tensor("layers.0.q", torch.zeros(40, 8)), "must be (heads, rows, head_dim)"),
    "no heads": (with_tensor("layers.0.q", torch.zeros(0, 40, 8)), "each above 0"),
    "fewer keys": (with_tensor("layers.0.k", torch.zeros(2, 39, 8)), "k and v must be alike"),
    "rows first": (with_tensor("layers.0.k", torch.zeros(40, 2, 8)), "k and v must be alike"),
    "heads that do not divide": (
        lambda path: made_captures.write(
            path, made_captures.tensors() | {f"layers.0.{part}": torch.zeros(4, 40, 8) for part in "kv"}
        ),
        "must divide those of q",
    ),
    "int8 without scales": (
        with_tensor("layers.0.k", torch.zeros(2, 40, 8, dtype=torch.int8)),
        "needs layers.0.k_scale, F32 [2, 40]",
    ),
    "scale of nothing": (
        lambda path: made_captures.write(path, metadata={"scale": "0"}), "scale='0'; the softmax scale must be"
    ),
    "scale that is no number": (lambda path: made_captures.write(path, metadata={"scale": "big"}), "scale='big'"),
    "scale without end": (lambda path: made_captures.write(path, metadata={"scale": "inf"}), "must be a positive"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_no_capture_is_one_line(path: Path, name: str) -> None:
    damage, told = DAMAGE[name]
    damage(path)
    line = refusal(lambda: captures.read(str(path)))
    assert told in line
    assert str(path) in line
    assert len(line) < 500


def test_a_shipped_capture_is_named_without_its_folder() -> None:
    with pytest.raises(ConfigError, match=r"allowed: smollm2\.safetensors"):
        captures.locate("shipped:../../secrets")
    assert captures.locate("shipped:smollm2.safetensors").is_file()


def test_a_function_is_an_input_without_a_file() -> None:
    found = config_of("input._target_=my.package.waves,my.ramp", "+input.sizes=[[1,2]]", "method=hyper")
    waves, ramp = found.points
    assert (waves.input, waves.input_params) == ("waves", {"_target_": "my.package.waves", "sizes": [[1, 2]]})
    assert ramp.input == "ramp"
    assert found.targets[1:] == ("my.package.waves", "my.ramp")
    for target in (None, 3, " "):
        node = {"name": "function", "_target_": target}
        assert "names no function; give input._target_=package" in refusal(lambda node=node: inputs.params_of(node, {}))
    assert inputs.name_of({"name": "mine", "_target_": "my.package.waves"}) == "mine"
