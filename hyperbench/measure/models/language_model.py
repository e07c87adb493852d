"""A causal language model whose layers attend by a method: hidden states, losses, and the time of attention."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hyperattn_core.transformers import attention_modules, patched
from hyperbench.measure.models.load import Loaded, loaded_from, place_of_task

#: attend(q, k, v, *, seed): causal attention with the usual scale, of q (B, H, N, D) over k and v (B, Hkv, N, D).
Attend = Callable[..., Tensor]
_ROWS_AT_ONCE = 1024
_CHECKED_TOKENS = 16


@dataclass
class Reading:
    """One pass of the model over some tokens.

    Attributes:
        hidden: the last hidden states (N, hidden size).
        attention_ms: layer -> time of its attention, of the layers that were run.
        forward_ms: time of the whole pass without the head; None where its first layers were not run.
        kept: layer -> the output of the layer before it, for readings that begin there.
        keys_values: keys and values of each layer, (1, Hkv, N, D); none where they were not kept.
    """

    hidden: Tensor
    attention_ms: dict[int, float]
    forward_ms: float | None
    kept: dict[int, Any] = field(default_factory=dict)
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class LanguageModel:
    """A model with its tokenizer. Raises ValueError, one line, on one whose passes cannot be taken apart."""

    def __init__(self, loaded: Loaded) -> None:
        self.name, self.tokenizer = loaded.name, loaded.tokenizer
        self._model = loaded.model
        self._device = next(loaded.model.parameters()).device
        self._head = loaded.model.get_output_embeddings()
        self._layers = _layers_of(loaded.model)
        self._check_head()

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self._layers)

    @torch.no_grad()
    def read(
        self,
        ids: Sequence[int],
        attend: Mapping[int, Attend],
        *,
        seed: int = 0,
        after: Reading | None = None,
        keep: Collection[int] = (),
        generates: bool = False,
    ) -> Reading:
        """Run the model on tokens, its layers attending by these functions.

        With `after`, layers before the first of `attend` are not run: what they gave is taken from that reading, which
        has kept it and is of the same tokens. Keys and values are kept if it `generates`. Raises what the functions
        raise.
        """
        from transformers import DynamicCache

        start = min(attend, default=0) if after is not None else 0
        found = Reading(torch.empty(0), {}, None)
        with ExitStack() as stack:
            ways: dict[int, Any] = {i: self._timed(way, i, found.attention_ms) for i, way in attend.items()}
            stack.enter_context(patched(self._model, ways, seed=seed, strict=True))
            if after is not None and start:
                stack.enter_context(_given(self._layers[:start], after.kept[start]))
            for layer in keep:
                stack.enter_context(_kept(self._layers[layer - 1], layer, found.kept))
            tokens = torch.tensor([list(ids)], device=self._device)
            cache = DynamicCache() if generates else None
            begun = self._now_s()
            states = self._model.base_model(input_ids=tokens, cache=cache, use_cache=generates).last_hidden_state
            took_ms = (self._now_s() - begun) * 1e3
        if cache is not None:
            before = after.keys_values[:start] if after is not None else []
            found.keys_values = [*before, *((layer.keys, layer.values) for layer in cache.layers[start:])]
        found.hidden, found.forward_ms = states[0], took_ms if not start else None
        return found

    @torch.no_grad()
    def losses(self, reading: Reading, ids: Sequence[int]) -> Tensor:
        """The loss (natural logarithm) of each token but the first, float32 (N - 1,), some rows of logits at a time."""
        wanted = torch.tensor(list(ids[1:]), device=self._device)
        parts = zip(reading.hidden[:-1].split(_ROWS_AT_ONCE), wanted.split(_ROWS_AT_ONCE), strict=True)
        return torch.cat([cross_entropy(self._head(rows).float(), of, reduction="none") for rows, of in parts]).cpu()

    @torch.no_grad()
    def next_token(self, reading: Reading) -> Tensor:
        """The logarithms of the probabilities of the token that follows, float32 (vocabulary,)."""
        return torch.as_tensor(self._head(reading.hidden[-1]).float().log_softmax(-1).cpu())

    @torch.no_grad()
    def generate(
        self, reading: Reading, most: int, *, stop_at: Collection[int] = (), at_least: int = 0
    ) -> tuple[int, ...]:
        """The tokens that follow a reading that has kept keys and values, each the likeliest, at most so many.

        They end before one that ends a text for the model, or is in `stop_at`; the first `at_least` are none of those.
        Every step attends exactly, to all keys.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(reading.keys_values):
            cache.update(keys, values, layer)
        stops, found, hidden = sorted({*self._ends, *stop_at}), list[int](), reading.hidden[-1]
        while True:
            scores = self._head(hidden).float()
            if len(found) < at_least:
                scores[stops] = -math.inf
            token = int(scores.argmax())
            if token in stops:
                break
            found.append(token)
            if len(found) == most:
                break
            step = torch.tensor([[token]], device=self._device)
            hidden = self._model.base_model(input_ids=step, cache=cache, use_cache=True).last_hidden_state[0, -1]
        return tuple(found)

    @property
    def _ends(self) -> list[int]:
        """The tokens that end a text, as the model says, or else its tokenizer."""
        settings = getattr(self._model, "generation_config", None)
        found = getattr(settings, "eos_token_id", None)
        if found is None:
            found = getattr(self.tokenizer, "eos_token_id", None)
        return [] if found is None else [found] if isinstance(found, int) else list(found)

    def encoded(self, text: str, *, chat: bool = False) -> tuple[int, ...]:
        """The tokens of a prompt, with those that mark its beginning for the model.

        With `chat` it is what a user says, in the chat template of the model, if that has one.
        """
        if chat and getattr(self.tokenizer, "chat_template", None):
            said = [{"role": "user", "content": text}]
            text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return tuple(self.tokenizer(text)["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """The text of some tokens, without those that mark something for the model."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @lru_cache(maxsize=64)  # noqa: B019 a process has one model
    def tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, without any at its beginning or end that mark them."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _timed(self, attend: Attend, layer: int, times_ms: dict[int, float]) -> Attend:
        def call(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, scale: float | None, seed: int) -> Tensor:
            usual = 1.0 / math.sqrt(q.shape[3])
            if scale is not None and not math.isclose(scale, usual):
                q = q * (scale / usual)
            begun = self._now_s()
            out = attend(q, k, v, seed=seed)
            times_ms[layer] = (self._now_s() - begun) * 1e3
            return out

        return call

    def _now_s(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @torch.no_grad()
    def _check_head(self) -> None:
        """Raise ValueError unless logits are no more than the head makes of the last hidden state."""
        tokens = torch.arange(_CHECKED_TOKENS, device=self._device).unsqueeze(0)
        logits = self._model(input_ids=tokens, use_cache=False).logits
        mine = self._head(self._model.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
        if logits.shape != mine.shape or not torch.allclose(logits, mine, rtol=1e-2, atol=1e-2):
            raise ValueError(f"{self.name}: its logits are scaled or capped after the head, and such are not read here")


def loaded_model(model: str | None, path: str | None, dtype: str, device: str) -> LanguageModel:
    """Load the model of a task. Raises ValueError, one line."""
    from transformers import AutoModelForCausalLM

    return LanguageModel(loaded_from(place_of_task(model, path), AutoModelForCausalLM, dtype, device))


def _layers_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model in order. Raises ValueError where they are no list of one after the other."""
    attentions = attention_modules(model)
    for found in model.modules():
        if isinstance(found, nn.ModuleList) and len(found) == len(attentions):
            inside = [set(map(id, layer.modules())) for layer in found]
            if all(i in attentions and id(attentions[i][0]) in ids for i, ids in enumerate(inside)):
                return list(found)
    raise ValueError(f"{type(model).__name__} has no list of layers that attend through transformers' interface")


@contextmanager
def _given(layers: Sequence[nn.Module], output: Any) -> Iterator[None]:
    """Have layers give an output without being run."""
    for layer in layers:
        layer.forward = lambda *_, **__: output
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def _kept(layer: nn.Module, name: int, kept: dict[int, Any]) -> Iterator[None]:
    """Keep the output of a layer under a name."""
    handle = layer.register_forward_hook(lambda module, given, output: kept.__setitem__(name, output))
    try:
        yield
    finally:
        handle.remove()
