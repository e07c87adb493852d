"""The best that so many keys per query can do: exact scores decide which keys are met. An oracle, not a competitor."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyperattn_core.exact import default_scale
from hyperattn_core.exact_aten import lse_dtype
from hyperattn_core.params import check_int
from hyperbench.flops import exact_flops
from hyperbench.measure.methods.budget import SIZES, Budget, check_match, nearest_size, ramp_sum, told
from hyperbench.measure.methods.trivial import repeat_heads
from hyperbench.store.schema import Pass, Point

#: Scores that are held at a time.
_MAX_SCORES = 2**22


class TopK:
    """Attention of each query over the keys that weigh most in its exact attention, `num_keys` of them.

    Without `num_keys` there are as many as HyperAttention meets at the same point, on average over the queries.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, **hyper: Any) -> Tensor:
        """Attention of q (B, H, N, D) over k and v (B, Hkv, N, D): (B, H, N, Dv).

        Some rows of scores at a time, which the backward pass makes anew; which keys are best counts as given there.
        """
        num_keys = _num_keys(k.shape[2], is_causal, hyper)
        keys, values = (repeat_heads(x, q.shape[1]) for x in (k, v))
        out: Tensor = _BestAttention.apply(q, keys, values, is_causal, num_keys)
        return out

    def defaults(self) -> dict[str, Any]:
        """The value of every parameter that is not given."""
        return {"num_keys": None, **SIZES}

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError on a value out of its range."""
        check_match(hyper)
        if hyper.get("num_keys") is not None:
            check_int("num_keys", hyper["num_keys"], low=1)

    def executed_flops(self, point: Point, pass_: Pass) -> float:
        """Operations at a point: all scores are made, so those of exact attention."""
        return exact_flops(point, pass_)

    def note(self, point: Point) -> str:
        """The keys per query."""
        num_keys = _num_keys(point.seq_len, point.is_causal, point.hyper)
        keys = _mean_keys(num_keys, point.seq_len, point.is_causal)
        return f"the best {num_keys} keys: {told(keys, point)}"


class _BestAttention(torch.autograd.Function):
    """The same for as many kv heads as query heads."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, is_causal: bool, num_keys: int) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.choice = is_causal, num_keys
        parts = [_best(q[:, :, rows], k, v, rows.start if is_causal else None, num_keys) for rows in _row_slices(q)]
        return torch.cat(parts, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v), (is_causal, num_keys) = ctx.saved_tensors, ctx.choice
        dq, dk, dv = (torch.zeros(x.shape, dtype=lse_dtype(q), device=q.device) for x in (q, k, v))
        for rows in _row_slices(q):
            leaves = [x.detach().requires_grad_() for x in (q[:, :, rows], k, v)]
            with torch.enable_grad():
                out = _best(leaves[0], leaves[1], leaves[2], rows.start if is_causal else None, num_keys)
            grads = torch.autograd.grad(out, leaves, grad_out[:, :, rows])
            dq[:, :, rows] = grads[0]
            dk += grads[1]
            dv += grads[2]
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _row_slices(q: Tensor) -> list[slice]:
    """Rows of q (B, H, N, D) of which the scores of all are held at a time."""
    seq_len = q.shape[2]
    rows = max(1, _MAX_SCORES // (q.shape[0] * q.shape[1] * seq_len))
    return [slice(first, min(first + rows, seq_len)) for first in range(0, seq_len, rows)]


def _best(q: Tensor, k: Tensor, v: Tensor, first: int | None, num_keys: int) -> Tensor:
    """Attention of rows q (B, H, R, D) over the best of k and v (B, H, N, D).

    Causal where `first` is given, the position of row 0.
    """
    dtype, seq_len = lse_dtype(q), k.shape[2]
    scores = (q.to(dtype) * default_scale(q, None)) @ k.to(dtype).transpose(2, 3)
    if first is not None:
        rows = torch.arange(first, first + q.shape[2], device=q.device, dtype=torch.int64)
        hidden = torch.arange(seq_len, device=q.device, dtype=torch.int64) > rows.unsqueeze(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    best, index = scores.topk(min(num_keys, seq_len), dim=3)
    weights = torch.zeros_like(scores).scatter(3, index, best.softmax(dim=3))
    return (weights @ v.to(dtype)).to(q.dtype)


def _mean_keys(num_keys: int, seq_len: int, is_causal: bool) -> float:
    """Keys per query on average: under a causal mask the first queries have fewer."""
    return ramp_sum(seq_len, num_keys) / seq_len if is_causal else float(min(num_keys, seq_len))


def _num_keys(seq_len: int, is_causal: bool, hyper: dict[str, Any]) -> int:
    if hyper.get("num_keys") is not None:
        return int(hyper["num_keys"])
    return _matched(seq_len, is_causal, Budget.of(hyper))


@lru_cache(maxsize=4096)
def _matched(seq_len: int, is_causal: bool, budget: Budget) -> int:
    wanted = budget.keys(seq_len, is_causal=is_causal)
    return nearest_size(lambda size: _mean_keys(size, seq_len, is_causal), wanted, seq_len)


top_k = TopK()
