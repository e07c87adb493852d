"""Choosing layers of a model, and having them attend by HyperAttention for a while."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import nn

from hyperattn_core.functional import hyper_attention
from hyperattn_core.params import HyperAttentionParams
from hyperattn_core.transformers.interface import ATTRIBUTE, Attend, Layer, Patch, attention_forward

#: The name under which transformers knows the function of this package.
IMPLEMENTATION = "hyperattn"
_SEEDS_A_LAYER = 1000


@contextmanager
def patched(
    model: nn.Module,
    layers: Collection[int] | Mapping[int, HyperAttentionParams | Attend] | None = None,
    *,
    last: int | None = None,
    first: int | None = None,
    params: HyperAttentionParams | None = None,
    attend: Attend | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Iterator[Patch]:
    """Have layers of a model attend by HyperAttention; afterwards it attends as before.

    Prefill and training calls are approximate. Exact, by PyTorch's fused attention, are decoding steps, calls under a
    mask of their own (padding, packed sequences, a sliding window shorter than the keys, keys from a cache), with
    dropout, and up to params.min_seq_len keys. The first call of each kind, but for decoding steps, is told by an
    ExactAttentionWarning. Layers that are not chosen use PyTorch's fused attention as well.

    Args:
        model: a model of transformers whose layers attend through its attention interface.
        layers: indices of the layers, the first one is 0; or parameters, or a function, for each. All if none of
            layers, last and first is given.
        last: the last so many layers, as in the paper's Fig. 3.
        first: the first so many layers.
        params: of HyperAttention, HyperAttentionParams() if None.
        attend: another function in its place: attend(q, k, v, *, is_causal, scale, seed) with q (B, H, Nq, D), k and v
            (B, Hkv, Nk, D), H a multiple of Hkv, gives (B, H, Nq, Dv).
        seed: of the draws; each layer has one of its own.
        strict: raise ExactAttentionError rather than attend exactly, but in decoding steps.

    Yields:
        The layers, and what became of each call.

    Raises:
        ValueError: no such layers, a model that is patched already or has no such attention.
        ImportError: transformers is missing, or older than 5.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    modules = attention_modules(model)
    count = 1 + max(modules, default=-1)
    if not count:
        raise ValueError(f"{type(model).__name__} has no layers that attend through transformers' attention interface")
    if any(hasattr(module, ATTRIBUTE) for of in modules.values() for module in of):
        raise ValueError("the model is patched already")
    if params is not None and attend is not None:
        raise ValueError("params and attend exclude each other")
    chosen = _chosen(count, layers, last, first)
    patch = Patch(tuple(sorted(chosen)), strict)
    ways = {index: _way(chosen[index] or attend or params or HyperAttentionParams()) for index in chosen}
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    # A model whose attention has no mask function of the same name is given no mask at all.
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    before = model.config._attn_implementation  # type: ignore[union-attr]
    try:
        for index, (function, exact_up_to) in ways.items():
            layer = Layer(patch, index, function, seed * _SEEDS_A_LAYER + index, exact_up_to)
            for module in modules[index]:
                setattr(module, ATTRIBUTE, layer)
        model.set_attn_implementation(IMPLEMENTATION)  # type: ignore[operator]
        yield patch
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]
        for of in modules.values():
            for module in of:
                module.__dict__.pop(ATTRIBUTE, None)


def attention_modules(model: nn.Module) -> dict[int, list[nn.Module]]:
    """Layer index -> the modules that attend in it: one, or two in the decoder of an encoder-decoder model."""
    found: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        index = getattr(module, "layer_idx", None)
        if isinstance(index, int) and "attention" in type(module).__name__.lower():
            found.setdefault(index, []).append(module)
    return found


def _chosen(
    count: int,
    layers: Collection[int] | Mapping[int, HyperAttentionParams | Attend] | None,
    last: int | None,
    first: int | None,
) -> dict[int, HyperAttentionParams | Attend | None]:
    """Layer -> what was given for it alone, if anything. Raises ValueError on layers that there are not."""
    given = [name for name, value in (("layers", layers), ("last", last), ("first", first)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other")
    for name, value in (("last", last), ("first", first)):
        if value is not None and not 0 <= value <= count:
            raise ValueError(f"{name}={value}: the model has {count} layers")
    if layers is None:
        start = count - last if last is not None else 0
        return dict.fromkeys(range(start, first if first is not None else count))
    missing = [index for index in layers if index not in range(count)]
    if missing:
        raise ValueError(f"layers={missing[0]}: the model has layers 0 to {count - 1}")
    return dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers)


def _way(choice: HyperAttentionParams | Attend) -> tuple[Attend, int]:
    """The function of a layer, and the number of keys up to which it is exact anyhow."""
    if not isinstance(choice, HyperAttentionParams):
        return choice, 0
    return partial(hyper_attention, params=choice, enable_gqa=True), choice.min_seq_len
