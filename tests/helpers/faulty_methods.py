"""Methods with the mistakes that people make: each looks like attention, and a stopwatch would believe it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.helpers.odd_methods import exact


def heads_for_positions(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The layout (B, N, H, D) where (B, H, N, D) is meant: every position attends to its own heads alone."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def viewed_not_transposed(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """A view where a transpose is meant, so that heads and positions are mixed."""
    b, h, n, d = q.shape
    k, v = (x.repeat_interleave(h // x.shape[1], dim=1) for x in (k, v))
    mixed = (x.reshape(b, n, h, d).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*mixed, is_causal=is_causal).transpose(1, 2).reshape(b, h, n, d)


def zeros(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """A kernel that was never launched."""
    return torch.zeros_like(q) + 0.0 * (q.sum() + k.sum() + v.sum())


def forgets_the_keys(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Queries where keys are meant."""
    return exact(q, q[:, : k.shape[1]] + 0.0 * k.sum(), v, is_causal=is_causal)


def forgets_the_queries(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Keys where queries are meant."""
    return exact(k.repeat_interleave(q.shape[1] // k.shape[1], dim=1) + 0.0 * q.sum(), k, v, is_causal=is_causal)


def without_mask(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The mask forgotten."""
    return exact(q, k, v, is_causal=False)


def off_by_one(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The mask lets the next position through."""
    n = q.shape[2]
    mask = torch.ones(n, n, dtype=torch.bool).tril(1 if is_causal else n)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def centred_values(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The mean of all values taken off and added again: values to come leave their rounding behind."""
    mean = v.mean(dim=2, keepdim=True)
    return exact(q, k, v - mean, is_causal=is_causal) + mean.repeat_interleave(q.shape[1] // k.shape[1], dim=1)


def largest_logit_of_all(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Softmax shifted by the largest logit before the mask: large keys to come make all weights zero."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = q @ k.mT / q.shape[3] ** 0.5
    weights = (logits - logits.amax(dim=3, keepdim=True)).exp()
    weights = weights.tril() if is_causal else weights
    return weights / (weights.sum(dim=3, keepdim=True) + 1e-6) @ v


def later_queries(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Queries centred by the mean of all: no key or value to come, but queries to come reach an output."""
    return exact(q - q.mean(dim=2, keepdim=True), k, v, is_causal=is_causal)


class Remembers:
    """Keeps answers by what `name` makes of the inputs: where they lie, or what they hold."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._kept: dict[Any, Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        if torch.is_grad_enabled():
            return 1.01 * exact(q, k, v, is_causal=is_causal)
        places = tuple((x.data_ptr(), tuple(x.shape)) for x in (q, k, v))
        if self._by == "place":
            key: Any = (*places, is_causal)
        elif self._by == "version":
            key = (*places, *(x._version for x in (q, k, v)), is_causal)
        else:
            key = (*(x.numpy().tobytes() for x in (q, k, v)), is_causal)
        if key not in self._kept:
            self._kept[key] = 1.01 * exact(q, k, v, is_causal=is_causal)
        return self._kept[key]


by_place = Remembers("place")
by_version = Remembers("version")
by_content = Remembers("content")
_ORDERS: dict[Any, Tensor] = {}


def remembers_the_order(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Attention to the larger half of the keys, chosen anew only where keys lie elsewhere: the choice is not timed."""
    place = (k.data_ptr(), tuple(k.shape))
    if place not in _ORDERS:
        _ORDERS[place] = k.norm(dim=3).argsort(dim=2, descending=True)[0, 0, : (k.shape[2] + 1) // 2]
    order = _ORDERS[place]
    return exact(q, k[:, :, order], v[:, :, order], is_causal=False)


def scales_in_place(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Saves a tensor by scaling the queries where they are."""
    with torch.no_grad():
        q.data.mul_(0.5)
    return exact(q, k, v, is_causal=is_causal)


def sorts_in_place(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Sorts keys and values together where they are: a second call finds the same attention, others another input."""
    order = k.norm(dim=3)[0, 0].argsort()
    out = exact(q, k, v, is_causal=is_causal)
    for x in (k, v):
        x.data.copy_(x.data[:, :, order])
    return out


class Later:
    """Goes wrong after a number of calls, when checks are over and times are taken."""

    def __init__(self, fault: str) -> None:
        self._fault = fault
        self.calls = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, after: int) -> Tensor:
        self.calls += 1
        out = exact(q, k, v, is_causal=is_causal)
        if self.calls <= after:
            return out
        if self._fault == "in place":
            v.data.mul_(1.5)
        return {"in place": out, "drifts": out * (1 + 1e-3), "nan": out * float("nan"), "nothing": None}[self._fault]  # type: ignore[return-value]


later_in_place = Later("in place")
later_drifts = Later("drifts")
later_nan = Later("nan")
later_nothing = Later("nothing")


class _SpendsItsGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.scale = torch.ones(())
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        ctx.scale *= 0.5
        return grad * (2 * ctx.scale)


def spends_its_graph(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """A backward pass that uses up what it has saved: right once, wrong when one graph is run again."""
    out: Tensor = _SpendsItsGraph.apply(exact(q, k, v, is_causal=is_causal))
    return out


_goes_on = torch.Generator().manual_seed(0)


def _noise(out: Tensor) -> Tensor:
    return torch.randn(out.shape, generator=_goes_on, dtype=out.dtype)


def draws_anew(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Noise of a generator of its own, which nobody seeds."""
    out = exact(q, k, v, is_causal=is_causal)
    return out + 1e-3 * _noise(out)


def draws_anew_and_says_so(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Noise below what a type explains, that no seed decides."""
    out = exact(q, k, v, is_causal=is_causal)
    return out * (1 + 1e-6 * _noise(out))


draws_anew_and_says_so.__dict__["deterministic"] = False


def takes_gradients_given(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Raises if gradients are being accumulated on its inputs."""
    assert all(x.grad is None for x in (q, k, v))
    return exact(q, k, v, is_causal=is_causal)


def one_length_only(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, only: int) -> Tensor:
    """Takes one length, and no shorter one."""
    if q.shape[2] != only:
        raise NotImplementedError(f"seq_len {q.shape[2]} is not supported")
    return exact(q, k, v, is_causal=is_causal)


def one_length_only_and_leaks(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, only: int) -> Tensor:
    """The same, without a mask."""
    return one_length_only(q, k, v, is_causal=False, only=only)


def leaks_keys(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Keys centred by the mean of all of them, which rounds each differently."""
    return exact(q, k - k.mean(dim=2, keepdim=True), v, is_causal=is_causal)


_unfinished: list[Any] = []


def answers_late(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Returns before its work is done, as a kernel on a stream that nobody waits for: it is done by the next call."""
    for finish in _unfinished:
        finish()
    answer, out = exact(q, k, v, is_causal=is_causal), torch.zeros_like(q)
    _unfinished[:] = [lambda: out.copy_(answer)]
    return out


class Compiles:
    """Attention whose first call takes a minute and a half, and every other a millisecond, of a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.is_compiled = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        self.now_s += 1e-3 if self.is_compiled else 90.0
        self.is_compiled = True
        return exact(q, k, v, is_causal=is_causal)


compiles = Compiles()
