"""Training the byte-level model with one attention or another: the same weights, batches and draws for all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from byte_lm import Attend, ByteLM, Text, draw_batch
from detached_merge import merged_parts
from torch import Tensor

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan

ATTENTIONS = ("exact", "hyper", "hyper_lse_detached")
MAX_LAYERS = 64
_WARMUP = 0.1
_LEAST_RATE = 0.1
_CLIP = 1.0

MakeAttend = Callable[[HyperAttentionParams, int], Attend]


@dataclass(frozen=True)
class Settings:
    """One training: the model's sizes, the batches, the optimiser and the estimator's parameters."""

    params: HyperAttentionParams
    steps: int
    batch: int
    context: int
    width: int
    heads: int
    layers: int
    learning_rate: float
    eval_every: int
    eval_batches: int
    device: str


@dataclass(frozen=True)
class Row:
    """Losses in nats per byte after a number of steps; train_loss is the mean over the steps since the last row."""

    seed: int
    step: int
    attention: str
    train_loss: float | None
    eval_loss: float
    eval_loss_exact: float


@dataclass(frozen=True)
class Trained:
    """A trained model with its losses on the way; `seconds` are those of the training steps alone."""

    model: ByteLM
    rows: list[Row]
    seconds: float


def make_attend(name: str) -> MakeAttend:
    """Factory of the attention of one step or batch, from the estimator's parameters and a number for its draws."""
    return {"exact": _exact, "hyper": _hyper, "hyper_lse_detached": _hyper_lse_detached}[name]


def _exact(params: HyperAttentionParams, draw: int) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        out, _ = exact_attention(q, k, v, is_causal=True, return_lse=True)
        return out

    return attend


def _hyper(params: HyperAttentionParams, draw: int) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        return hyper_attention(q, k, v, is_causal=True, params=params, seed=draw * MAX_LAYERS + layer)

    return attend


def _hyper_lse_detached(params: HyperAttentionParams, draw: int) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        plan = make_plan(q, k, params, draw * MAX_LAYERS + layer, is_causal=True)
        return merged_parts(q, k, v, plan, detach=True)

    return attend


def train(
    name: str,
    make: MakeAttend,
    text: Text,
    settings: Settings,
    seed: int,
    report: Callable[[Row], None] = lambda row: None,
) -> Trained:
    """Train a model from its seed; every step draws anew, every evaluation draws the same.

    Args:
        name: what the rows call the attention.
        make: the attention that is trained with.
        text: what is learnt, and what is held out.
        settings: sizes and parameters.
        seed: of the initial weights, the batches and the draws of the steps.
        report: called with each row.
    """
    device = settings.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ByteLM(settings.width, settings.heads, settings.layers)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings.steps))
    rows: list[Row] = []
    losses: list[Tensor] = []
    seconds = 0.0

    # Without a gradient there is nothing to detach, and the library's own attention is quicker.
    read = _hyper if make is _hyper_lse_detached else make

    def write(step: int) -> None:
        train_loss = float(torch.stack(losses).mean()) if losses else None
        held_out = [evaluate(model, attend, text, settings) for attend in (read, _exact)]
        rows.append(Row(seed, step, name, train_loss, *held_out))
        report(rows[-1])

    write(0)
    start = time.perf_counter()
    for step in range(settings.steps):
        draw = seed * settings.steps + step
        pieces = draw_batch(text.train, settings.batch, settings.context, draw).to(device)
        loss = model(pieces, make(settings.params, draw))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if (step + 1) % settings.eval_every == 0 or step + 1 == settings.steps:
            losses[-1].item()  # waits for the device
            seconds += time.perf_counter() - start
            write(step + 1)
            losses.clear()
            start = time.perf_counter()
    return Trained(model, rows, seconds)


def _rate(step: int, steps: int) -> float:
    """A linear rise over the first tenth of the steps, then a cosine down to a tenth of the learning rate."""
    warmup = max(1, round(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return _LEAST_RATE + (1 - _LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def evaluate(model: ByteLM, make: MakeAttend, text: Text, settings: Settings) -> float:
    """The mean loss on held-out pieces, in nats per byte: the same pieces and the same draws at every call."""
    losses = []
    for index in range(settings.eval_batches):
        # Negative numbers, so that no draw is one of a training step.
        losses.append(model(held_out_batch(text, settings, index), make(settings.params, -1 - index)))
    return float(torch.stack(losses).double().mean())


def held_out_batch(text: Text, settings: Settings, index: int) -> Tensor:
    """Batch number `index` of the held-out text, int64 (B, N + 1)."""
    return draw_batch(text.held_out, settings.batch, settings.context, index).to(settings.device)
