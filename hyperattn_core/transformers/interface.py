"""The functions that transformers calls for attention and its mask, and what becomes of each call."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

#: attend(q, k, v, *, is_causal, scale, seed): attention of q (B, H, Nq, D) over k and v (B, Hkv, Nk, D).
Attend = Callable[..., Tensor]
#: What is counted for a call that is not exact.
APPROXIMATE = "hyper"
#: The attribute of an attention module that says how it attends.
ATTRIBUTE = "hyperattn_layer"
_DECODING = "decoding step"
_MASK = "a mask of its own (padding, packed sequences, or keys from a cache)"
#: Arguments that make attention something else than the softmax of scaled products.
_OTHER_ATTENTION = {
    "softcap": "capped logits",
    "s_aux": "sinks with learned logits",
    "position_bias": "a position bias",
}


class ExactAttentionWarning(UserWarning):
    """A patched layer attends exactly, because of how it was called."""


class ExactAttentionError(ValueError):
    """A patched layer would have to attend exactly where that was not to be."""


@dataclass
class Patch:
    """The patched layers of a model, with what became of each call: layer -> "hyper" or "exact: reason" -> calls.

    Calls inside a graph that torch.compile has made are neither counted nor told.
    """

    layers: tuple[int, ...]
    strict: bool = False
    calls: dict[int, Counter[str]] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        lines = (
            f"layer {layer}: {', '.join(f'{what} {count}' for what, count in found.items())}"
            for layer, found in sorted(self.calls.items())
        )
        return "\n".join(lines) or f"{len(self.layers)} layers are patched; none was called"

    def count(self, layer: int, reason: str) -> None:
        """Count a call, exact for a reason or, where that is empty, approximate; the first of a kind is told.

        Raises ExactAttentionError where a call is exact with strict=True, unless it is a decoding step, and where a
        compiled graph has a mask, which transformers makes for whole models whatever they are given.
        """
        compiling = torch.compiler.is_compiling()
        if reason and reason != _DECODING and self.strict:
            raise ExactAttentionError(f"layer {layer} would attend exactly: {reason}")
        if compiling and reason == _MASK:
            raise ExactAttentionError(
                f"layer {layer} is compiled with {reason} and would attend exactly; compile the layers, not the model"
            )
        if compiling:
            return
        if reason and reason != _DECODING and reason not in self._told:
            self._told.add(reason)
            told = f"layer {layer} attends exactly, and so does every call like it: {reason}"
            warnings.warn(told, ExactAttentionWarning, stacklevel=2)
        self.calls.setdefault(layer, Counter())[f"exact: {reason}" if reason else APPROXIMATE] += 1


@dataclass(frozen=True)
class Layer:
    """The way in which an attention module attends; up to `exact_up_to` keys it attends exactly anyhow."""

    patch: Patch
    index: int
    attend: Attend
    seed: int
    exact_up_to: int


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """Attend in a layer, as transformers asks for it: out (B, Nq, H, Dv), and no weights."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layer: Layer | None = getattr(module, ATTRIBUTE, None)
    if layer is not None:
        asked = others.get("is_causal")
        causal = bool(asked if asked is not None else getattr(module, "is_causal", True))
        queries, seen = query.shape[2], (key, value)
        if causal and attention_mask is None and 1 < queries < key.shape[2]:
            # Without a mask these are the first tokens in a cache of fixed length, whose rest is empty.
            seen = (key[:, :, :queries], value[:, :, :queries])
        reason = _why_exact(layer, query, seen[0], attention_mask, is_causal=causal, others=others)
        layer.patch.count(layer.index, reason)
        if not reason:
            out = layer.attend(query, *seen, is_causal=causal, scale=others.get("scaling"), seed=layer.seed)
            return out.transpose(1, 2).contiguous(), None
    exact: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    return exact


def _why_exact(
    layer: Layer, query: Tensor, key: Tensor, mask: Tensor | None, *, is_causal: bool, others: Mapping[str, Any]
) -> str:
    """The reason why a call must be exact, or nothing."""
    for name, what in _OTHER_ATTENTION.items():
        if others.get(name) is not None:
            return what
    if query.shape[2] == 1:
        return _DECODING
    window, dropout = others.get("sliding_window"), others.get("dropout")
    if window is not None and window < key.shape[2]:
        return f"a sliding window of {window}"
    if mask is not None:
        return _MASK
    if dropout:
        return f"dropout of {dropout:g}"
    if is_causal and query.shape[2] != key.shape[2]:
        return "fewer queries than keys"
    if key.shape[2] <= layer.exact_up_to:
        return f"no more keys than min_seq_len={layer.exact_up_to}"
    return ""
