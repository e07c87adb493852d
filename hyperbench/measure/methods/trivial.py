"""Answers that need little or no attention: context for every error, and floors for every time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hyperbench.flops import pair_flops
from hyperbench.measure.methods.budget import SIZES, Budget, check_match, told
from hyperbench.store.schema import Pass, Point

#: Rows that go by one mask: few, since all of them meet the keys of any.
_MASKED_ROWS = 256

Function = TypeVar("Function", bound=Callable[..., Tensor])


def ignoring(*names: str) -> Callable[[Function], Function]:
    """Mark a method whose output does not depend on these inputs, and is not meant to."""

    def mark(function: Function) -> Function:
        function.__dict__["ignores"] = names
        return function

    return mark


@ignoring("q", "k", "v")
def zero(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """Zeros (B, H, N, Dv), differentiable so that its gradients are zeros too."""
    return q.new_zeros(*q.shape[:3], v.shape[3]) + 0.0 * (q.sum() + k.sum() + v.sum())


@ignoring("q", "k")
def mean_v(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    """The mean of the values that a query may see (B, H, N, Dv); the gradients of q and k are zeros."""
    shared = repeat_heads(v, q.shape[1])
    if is_causal:
        wide = torch.promote_types(v.dtype, torch.float32)
        counts = torch.arange(1, v.shape[2] + 1, device=v.device, dtype=wide).unsqueeze(1)
        mean = (shared.to(wide).cumsum(dim=2) / counts).to(v.dtype)
    else:
        mean = shared.mean(dim=2, keepdim=True).expand(*q.shape[:3], v.shape[3])
    return mean + 0.0 * (q.sum() + k.sum())


class Uniform:
    """Attention over the same uniformly drawn keys for all queries, without any hashing.

    Without `match` there are 2 m of them (m is `sample_size`); with match="hyper" so many that a query meets as many on
    average as in HyperAttention at the same point. Under a causal mask a query attends to those of the drawn keys that
    it may see; the key at position 0 is always among them, so that no query is left with none.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0, **hyper: Any) -> Tensor:
        """Attention of q (B, H, N, D) over the drawn keys of k and v (B, Hkv, N, D): (B, H, N, Dv)."""
        seq_len, heads = k.shape[2], q.shape[1]
        count = _drawn_keys(seq_len, is_causal, {**self.defaults(), **hyper})
        generator = torch.Generator(device="cpu").manual_seed(seed)
        fixed = int(is_causal)
        drawn = torch.randperm(seq_len - fixed, generator=generator, device="cpu")[: count - fixed] + fixed
        drawn = torch.cat([drawn.new_zeros(fixed), drawn]).sort().values
        index = drawn.to(k.device)
        keys, values = repeat_heads(k[:, :, index], heads), repeat_heads(v[:, :, index], heads)
        if not is_causal:
            return scaled_dot_product_attention(q, keys, values)
        # Some rows at a time meet the keys before the last of them, so that no mask has a row for each query.
        positions, outs, first = drawn.tolist(), [], 0
        for rows in q.split(_MASKED_ROWS, dim=2):
            stop = first + rows.shape[2]
            seen = bisect_left(positions, stop)
            own = torch.arange(first, stop, device=q.device, dtype=torch.int64)
            mask = index[:seen] <= own.unsqueeze(1)
            outs.append(scaled_dot_product_attention(rows, keys[:, :, :seen], values[:, :, :seen], attn_mask=mask))
            first = stop
        return torch.cat(outs, dim=2)

    def defaults(self) -> dict[str, Any]:
        """The value of every parameter that is not given."""
        return {"match": None, **SIZES, "seed": 0}

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError on a value out of its range."""
        check_match(hyper)

    def executed_flops(self, point: Point, pass_: Pass) -> float:
        """Operations at a point: those of the drawn keys that a query may see, on average over the draws."""
        return pair_flops(point, self._keys(point) * point.seq_len, pass_)

    def note(self, point: Point) -> str:
        """The keys that are drawn, and those that a query meets."""
        count = _drawn_keys(point.seq_len, point.is_causal, point.hyper)
        return f"{count} keys drawn: {told(self._keys(point), point)}"

    def _keys(self, point: Point) -> float:
        count = _drawn_keys(point.seq_len, point.is_causal, point.hyper)
        return (count + 1) / 2 if point.is_causal else count


def _drawn_keys(seq_len: int, is_causal: bool, hyper: dict[str, Any]) -> int:
    """Keys that are drawn; under a causal mask a query sees half of them on average, and the first key."""
    budget = Budget.of(hyper)
    if hyper.get("match") is None:
        return min(2 * budget.sample_size, seq_len)
    wanted = budget.keys(seq_len, is_causal=is_causal)
    return min(max(1, round(2 * wanted - 1 if is_causal else wanted)), seq_len)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Each of the kv heads of x (B, Hkv, N, D) repeated for its group of query heads: (B, H, N, D)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


uniform = Uniform()
