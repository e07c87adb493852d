"""Queries, keys and values that a file holds: those of a real model on a real text (see `hyperbench capture`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperbench.config import captures
from hyperbench.config.captures import Capture
from hyperbench.measure.inputs import Inputs, Numbers, Shape


def draw(
    numbers: Numbers, shape: Shape, path: str | None, layer: int | None, head: int | None, sha256: str | None = None
) -> Inputs:
    """The first seq_len rows of the first query heads of a layer, or of one of them, with the key heads they use.

    Nothing is random. A softmax scale other than 1 / sqrt(D) is folded into q. With kv_heads = heads each query head
    has its key head for itself. Raises ValueError if the file is not the one of this hash, or holds NaN.
    """
    assert path is not None
    assert layer is not None
    capture = captures.read(path)
    if sha256 not in (None, found := captures.sha256(path)):
        raise ValueError(f"input.path={path} has changed since the run began: its SHA-256 was {sha256}, now {found}")
    sizes = capture.layers[layer]
    queries = list(range(shape.heads)) if head is None else [head]
    group = sizes.heads // sizes.kv_heads
    # One key head for each query head, or for as many as share one in the file.
    keys = [i // group for i in queries][:: shape.heads // shape.kv_heads]
    q, k, v = (
        _rows(capture, layer, part, heads, shape.seq_len) for part, heads in (("q", queries), ("k", keys), ("v", keys))
    )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not bool(x.isfinite().all()):
            raise ValueError(f"layers.{layer}.{name} of input.path={path} holds NaN or infinite numbers")
    factor = capture.scale(shape.head_dim) * math.sqrt(shape.head_dim)
    return q if math.isclose(factor, 1.0, rel_tol=1e-9) else q * factor, k, v


def check(path: str, layer: int, head: int | None = None, **others: object) -> None:
    """Read all that points on this layer may be given. Raises ValueError on damage that the header does not tell."""
    from safetensors import SafetensorError

    sizes = captures.read(path).layers[layer]
    chosen = range(sizes.heads) if head is None else [head]
    try:
        for one in chosen:
            draw(Numbers(0, "captured"), Shape(1, 1, 1, sizes.rows, sizes.head_dim), path, layer, one)
    except SafetensorError as error:
        raise ValueError(f"input.path={path} is no safetensors file: {' '.join(str(error).split())}") from None


def _rows(capture: Capture, layer: int, part: str, heads: Sequence[int], rows: int) -> Tensor:
    """The first rows of some heads of a tensor, (1, heads, rows, D), in float32 (float64 stays); no more is read."""
    from safetensors import safe_open

    name = f"layers.{layer}.{part}"
    with safe_open(str(capture.file), framework="pt") as file:
        read = {head: file.get_slice(name)[head : head + 1, :rows] for head in set(heads)}
        if read[heads[0]].dtype == torch.int8:
            scales = file.get_slice(f"{name}_scale")
            read = {head: x.float() * scales[head : head + 1, :rows].unsqueeze(2) for head, x in read.items()}
    x = torch.cat([read[head] for head in heads]).unsqueeze(0)
    return x if x.dtype == torch.float64 else x.float()
