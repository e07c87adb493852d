"""Captures made on the spot: some layers of random tensors, and files that are damaged in one place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HEADS, KV_HEADS, ROWS, HEAD_DIM = 6, 2, 40, 8


def tensors(layers: Sequence[int] = (0, 8), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """q (6, 40, 8), k and v (2, 40, 8) of some layers, random, by their names."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"layers.{layer}.{part}": torch.randn(heads, ROWS, HEAD_DIM, generator=generator).to(dtype)
        for layer in layers
        for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
    }


def write(path: Path, content: Mapping[str, Tensor] | None = None, metadata: dict[str, str] | None = None) -> Path:
    """Write a capture of these tensors, or of random ones."""
    save_file(dict(tensors() if content is None else content), path, metadata)
    return path


def with_header(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the header of a capture in place; the numbers stay."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return path
