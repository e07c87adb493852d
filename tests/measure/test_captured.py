"""Captured inputs give back what is in the file, to the bit, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.config import captures
from hyperbench.measure.inputs import check_params, make_inputs
from hyperbench.measure.models.capture import stored
from hyperbench.store.schema import Point
from tests.helpers import made_captures
from tests.helpers.made_records import a_point


def a_captured(path: Path, heads: int = 6, kv_heads: int = 2, seq_len: int = 40, **changes: Any) -> Point:
    """A point on a capture."""
    params = {"path": str(path), "layer": 8, "head": changes.pop("head", None), "sha256": captures.sha256(str(path))}
    return a_point(
        input="captured", input_params=params, heads=heads, kv_heads=kv_heads, seq_len=seq_len, head_dim=8, **changes
    )


def made_of(path: Path, **changes: Any) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a point on a capture."""
    return make_inputs(a_captured(path, **changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A capture of random tensors."""
    return made_captures.write(tmp_path / "one.safetensors")


def test_rows_and_heads_are_those_of_the_file(path: Path) -> None:
    q, k, v = (made_captures.tensors()[f"layers.8.{part}"] for part in "qkv")
    for x, whole in zip(made_of(path), (q, k, v), strict=True):
        assert torch.equal(x[0], whole)
    for x, whole in zip(made_of(path, seq_len=7, heads=3, kv_heads=1), (q[:3], k[:1], v[:1]), strict=True):
        assert torch.equal(x[0], whole[:, :7])
    # Each query head with a key head of its own: that of its group, which are heads 0 to 2 and 3 to 5.
    found = made_of(path, heads=5, kv_heads=5)
    assert torch.equal(found[0][0], q[:5])
    assert torch.equal(found[1][0], k[[0, 0, 0, 1, 1]])
    assert torch.equal(found[2][0], v[[0, 0, 0, 1, 1]])
    one = made_of(path, heads=1, kv_heads=1, head=4)
    assert all(torch.equal(x[0], y) for x, y in zip(one, (q[4:5], k[1:], v[1:]), strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_stored_dtypes_are_cast_to_that_of_the_point(tmp_path: Path, dtype: str) -> None:
    content = made_captures.tensors(dtype=getattr(torch, dtype))
    path = made_captures.write(tmp_path / "one", content)
    for asked in ("float64", "float16"):
        for part, x in zip("qkv", made_of(path, dtype=asked), strict=True):
            assert torch.equal(x[0], content[f"layers.8.{part}"].to(getattr(torch, asked)))


def test_int8_rows_have_their_scales(tmp_path: Path) -> None:
    original = made_captures.tensors()
    original["layers.8.k"][1, 3] = 0.0
    content: dict[str, Tensor] = {}
    for name, x in original.items():
        content |= stored(name, x, torch.int8)
    path = made_captures.write(tmp_path / "one", content)
    check_params("captured", a_captured(path).input_params)
    for part, x in zip("qkv", made_of(path), strict=True):
        whole = original[f"layers.8.{part}"]
        step = whole.abs().amax(dim=2, keepdim=True) / 127
        assert bool(((x[0] - whole).abs() <= 0.51 * step).all())
    assert not bool(made_of(path)[1][0, 1, 3].any())


def test_another_softmax_scale_is_folded_into_q(path: Path, tmp_path: Path) -> None:
    scaled = made_captures.write(tmp_path / "scaled", metadata={"scale": "0.5"})
    plain, other = made_of(path), made_of(scaled)
    logits = 0.5 * plain[0] @ plain[1].repeat_interleave(3, dim=1).mT
    assert torch.allclose(other[0] @ other[1].repeat_interleave(3, dim=1).mT * 8**-0.5, logits, atol=1e-5)
    assert torch.equal(plain[1], other[1])
    assert torch.equal(plain[2], other[2])


def test_a_file_that_changes_during_the_run_is_noticed(path: Path) -> None:
    point = a_captured(path)
    made_captures.write(path, {name: 2 * x for name, x in made_captures.tensors().items()})
    with pytest.raises(ValueError, match="has changed since the run began"):
        make_inputs(point)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_refused_before_and_during_the_run(tmp_path: Path, bad: float) -> None:
    content = made_captures.tensors(dtype=torch.float16)
    content["layers.8.v"][1, 39, 7] = bad
    path = made_captures.write(tmp_path / "one", content)
    told = r"layers\.8\.v of input\.path=.* holds NaN or infinite numbers"
    with pytest.raises(ValueError, match=told):
        check_params("captured", a_captured(path).input_params)
    with pytest.raises(ValueError, match=told):
        made_of(path)
    # A head that is not asked for, and rows that are not, are not looked at while measuring.
    made_of(path, heads=1, kv_heads=1, head=0)
    made_of(path, seq_len=39)


def test_damage_that_only_the_whole_header_tells_is_one_line(path: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        header["layers.0.v"]["data_offsets"] = header["layers.0.k"]["data_offsets"]

    made_captures.with_header(path, overlap)
    with pytest.raises(ValueError, match="is no safetensors file") as caught:
        check_params("captured", a_captured(path).input_params)
    assert "\n" not in str(caught.value)


def test_what_is_shipped_is_whole_and_tells_where_it_comes_from() -> None:
    capture = captures.read("shipped:smollm2.safetensors")
    assert set(capture.layers) == {4, 13, 23}
    assert {layer.rows for layer in capture.layers.values()} == {8192}
    assert {"model", "text", "licence", "positions", "rotary", "scale", "causal"} <= set(capture.metadata)
    assert capture.scale(64) == 0.125
    notice = (capture.file.parent / "NOTICE").read_text(encoding="utf-8")
    assert "Apache" in notice
    assert "public domain" in notice
    assert capture.metadata["text_sha256"] in notice


@pytest.mark.parametrize(
    ("layer", "sinks", "window"),
    [(4, (0.0, 0.1), (0.2, 0.7)), (13, (0.25, 0.6), (0.4, 0.75)), (23, (0.4, 0.8), (0.05, 0.4))],
)
def test_layers_that_are_shipped_are_what_the_docs_say(
    layer: int, sinks: tuple[float, float], window: tuple[float, float]
) -> None:
    """The attention of the last of 2,048 queries to the first 4 keys, and to the 256 keys up to their own."""
    params = {"family": "captured", "path": "shipped:smollm2.safetensors", "layer": layer, "head": None}
    q, k, _ = make_inputs(a_point(input="smollm2", input_params=params, heads=1, kv_heads=1, seq_len=2048))
    queries = torch.arange(1536, 2048)
    logits = (q[0, 0, queries] @ k[0, 0].T) / 8
    distance = queries.unsqueeze(1) - torch.arange(2048)
    probs = logits.masked_fill(distance < 0, -torch.inf).softmax(1)
    first, near = float(probs[:, :4].sum(1).mean()), float((probs * (distance < 256)).sum(1).mean())
    assert sinks[0] <= first <= sinks[1]
    assert window[0] <= near <= window[1]
