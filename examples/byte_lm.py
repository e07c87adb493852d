"""A small byte-level causal language model whose attention is given to it, and text that ships with Python."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

NUM_BYTES = 256
_HELD_OUT = 0.1


class Attend(Protocol):
    """Causal attention of one layer: q, k and v (B, H, N, D) to out (B, H, N, D)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Attend within layer number `layer`."""
        ...


@dataclass(frozen=True)
class Text:
    """Bytes to train on and, from the end of the same text, bytes that are held out; int64 (n,)."""

    name: str
    sha256: str
    train: Tensor
    held_out: Tensor


def python_help() -> Text:
    """The texts behind Python's help("TOPIC"), in alphabetical order: 0.4 to 0.5 MB that every Python has."""
    from pydoc_data.topics import topics

    return split("pydoc_data.topics", "\n\n".join(topics[name] for name in sorted(topics)).encode())


def split(name: str, content: bytes) -> Text:
    """The text with its last tenth held out."""
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8).long()
    cut = round(len(values) * (1 - _HELD_OUT))
    return Text(name, hashlib.sha256(content).hexdigest(), values[:cut], values[cut:])


def draw_batch(values: Tensor, batch: int, context: int, seed: int) -> Tensor:
    """Pieces of the text at random places, int64 (batch, context + 1): the same for a seed, on every device."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(values) - context, (batch, 1), generator=generator)
    return values[starts + torch.arange(context + 1)]


class ByteLM(nn.Module):
    """A transformer with pre-normalisation and rotary positions; `attend` is the only way between positions."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_BYTES, width)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.read = nn.Linear(width, NUM_BYTES, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if "embed" in name else weight.shape[1] ** -0.5)

    def forward(self, pieces: Tensor, attend: Attend) -> Tensor:
        """The mean loss in nats per byte of predicting each next byte of pieces (B, N + 1)."""
        x = self.embed(pieces[:, :-1])
        for index, layer in enumerate(self.layers):
            x = layer(x, attend, index)
        logits = self.read(self.norm(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1), pieces[:, 1:].flatten())


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, attend: Attend, index: int) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = attend(rotated(q), rotated(k), v, index)
        x = x + self.project(out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


def rotated(x: Tensor) -> Tensor:
    """Rotary positions: each pair of columns of x (B, H, N, D) turned by an angle that grows with the position."""
    half = x.shape[3] // 2
    rates = 10_000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[2], device=x.device).unsqueeze(1) * rates
    cos, sin = angles.cos(), angles.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=3)
