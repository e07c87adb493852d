"""Record q, k and v of some layers of a model through transformers' attention interface, and write them to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperbench.config.captures import PARTS
from hyperbench.store.files import atomic_write

_NAME = "hyperbench_capture"
#: Arguments that make attention something else than the softmax of scaled products.
_OTHER_ATTENTION = ("softcap", "s_aux", "position_bias")
#: The dtypes in which a capture is stored; int8 has a scale for each row.
STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "int8": torch.int8}


@dataclass
class Recording:
    """The tensors of each layer that was asked for, q (H, N, D), k and v (Hkv, N, D), and how it attends."""

    layers: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)
    causal: dict[int, bool] = field(default_factory=dict)


def record(model: Any, ids: Sequence[int], layers: Sequence[int], heads: Sequence[int] | None = None) -> Recording:
    """Run a model on some tokens and keep q, k and v of these layers, after the rotary embedding.

    With `heads` only these query heads are kept, with the key heads they use. Raises ValueError, one line, on a layer
    or head that the model lacks, and on a layer whose attention is not softmax attention over all positions.
    """
    count = int(model.config.get_text_config().num_hidden_layers)
    for layer in layers:
        if layer not in range(count):
            raise ValueError(f"--layers {layer}: the model has layers 0 to {count - 1}")
    found = Recording()
    with _recording(model, found, frozenset(layers)), torch.no_grad():
        model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False)
    missing = [layer for layer in layers if layer not in found.layers]
    if missing:
        raise ValueError(f"layer {missing[0]} of the model does not attend through transformers' attention interface")
    if heads is not None:
        found.layers = {layer: _heads_of(tensors, heads) for layer, tensors in found.layers.items()}
    return found


@contextmanager
def _recording(model: Any, found: Recording, layers: frozenset[int]) -> Iterator[None]:
    """Have a model attend through a function that keeps what it is given; afterwards it attends as before."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
    ) -> tuple[Tensor, None]:
        layer = getattr(module, "layer_idx", None)
        if layer in layers:
            reason = _why_other((query, key, value), attention_mask, others)
            if reason:
                raise ValueError(f"layer {layer} of the model has {reason}: its q, k and v alone are not its attention")
            scale, causal = others.get("scaling"), others.get("is_causal")
            found.layers[layer] = (query[0].clone(), key[0].clone(), value[0].clone())
            found.scales[layer] = float(scale if scale is not None else query.shape[3] ** -0.5)
            found.causal[layer] = bool(causal if causal is not None else getattr(module, "is_causal", True))
        attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **others)
        return attended

    with attending_by(model, _NAME, attend):
        yield


@contextmanager
def attending_by(model: Any, name: str, attend: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Have all layers of a model attend by a function, known to transformers by a name; afterwards as before."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    before = model.config._attn_implementation
    AttentionInterface.register(name, attend)
    # Without a function for masks of the same name a model is given none at all.
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _why_other(tensors: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, others: dict[str, Any]) -> str:
    """The reason why a call is not plain attention over all positions, or nothing."""
    query, key, value = tensors
    for name in _OTHER_ATTENTION:
        if others.get(name) is not None:
            return name
    window = others.get("sliding_window")
    if window is not None and window < key.shape[2]:
        return f"a sliding window of {window}"
    if mask is not None:
        return "a mask of its own"
    if not query.shape[2:] == key.shape[2:] == value.shape[2:]:
        return f"q {list(query.shape)}, k {list(key.shape)} and v {list(value.shape)}"
    return ""


def _heads_of(tensors: tuple[Tensor, Tensor, Tensor], heads: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Some query heads and their key heads: one for each, or for each group where all of them are whole."""
    q, k, v = tensors
    for head in heads:
        if head not in range(q.shape[0]):
            raise ValueError(f"--heads {head}: the model has query heads 0 to {q.shape[0] - 1}")
    group = q.shape[0] // k.shape[0]
    keys = [head // group for head in heads]
    whole = list(dict.fromkeys(keys))
    if list(heads) == [key * group + i for key in whole for i in range(group)]:
        keys = whole
    return q[list(heads)], k[keys], v[keys]


def save(path: Path, found: Recording, dtype: str, metadata: dict[str, str]) -> None:
    """Write what was recorded as `hyperbench.config.captures` describes it, whole or not at all.

    Raises ValueError, one line, if the layers differ in what one file says of all, or if a number does not fit `dtype`.
    """
    from safetensors import torch as tensor_files

    scales, causal = set(found.scales.values()), set(found.causal.values())
    if len(scales) > 1 or len(causal) > 1:
        raise ValueError("the layers differ in their softmax scale or masking; make a capture of each kind")
    told = {**metadata, "scale": repr(scales.pop()), "causal": str(causal.pop()).lower()}
    tensors: dict[str, Tensor] = {}
    for layer, parts in sorted(found.layers.items()):
        for part, x in zip(PARTS, parts, strict=True):
            tensors |= stored(f"layers.{layer}.{part}", x.cpu(), STORED[dtype])
    content = tensor_files.save(tensors, told)
    # Not save_file, which puts a file in its place that nobody else may read.
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def stored(name: str, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """A tensor (H, N, D) in a dtype, by its name in the file; int8 with the scale of each row (H, N) beside it."""
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} of the model holds NaN or infinite numbers")
    if dtype is torch.int8:
        scale = x.float().abs().amax(dim=2).clamp_min(torch.finfo(torch.float32).tiny) / 127.0
        # Of the smallest numbers the scale itself is rounded.
        whole = (x.float() / scale.unsqueeze(2)).round().clamp(-127, 127)
        return {name: whole.to(torch.int8).contiguous(), f"{name}_scale": scale.contiguous()}
    cast = x.to(dtype).contiguous()
    if not bool(cast.isfinite().all()):
        raise ValueError(f"{name} of the model holds numbers too large for {dtype}; take --dtype bfloat16 or float32")
    return {name: cast}
