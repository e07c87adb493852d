"""Methods that look at neighbours alone: a sliding window with the first tokens, and the blocks of HyperAttention."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan
from hyperattn_core.params import check_int
from hyperbench.flops import hyper_keys, pair_flops
from hyperbench.measure.methods.budget import SIZES, Budget, check_match, nearest_size, told
from hyperbench.measure.methods.windows.attention import window_attention
from hyperbench.measure.methods.windows.band import Band
from hyperbench.store.schema import Pass, Point

_BLOCKS = HyperAttentionParams(sample_size=1, sampling="stratified")


class WindowSinks:
    """A sliding window of keys and the first tokens: what a query finds without looking for it.

    Under a causal mask the window ends at the query, else the query is in its middle. With match="hyper" the window has
    the length at which a query meets as many keys as in HyperAttention at the same point, the first tokens among them.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, **hyper: Any) -> Tensor:
        """Attention of q (B, H, N, D) over k and v (B, Hkv, N, D) in the window: (B, H, N, Dv)."""
        band = _band(q.shape[2], is_causal, {**self.defaults(), **hyper})
        if not band.is_everything:
            return window_attention(q, k, v, band)
        out = exact_attention(q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1])
        assert isinstance(out, Tensor)
        return out

    def defaults(self) -> dict[str, Any]:
        """The value of every parameter that is not given."""
        return {"window": None, "sinks": 4, "match": None, **SIZES}

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError on a value out of its range, or unless one of `window` and `match` is given."""
        check_match(hyper)
        check_int("sinks", hyper.get("sinks", 0), low=0)
        window, match = hyper.get("window"), hyper.get("match")
        if window is not None:
            check_int("window", window, low=1)
        if (window is None) == (match is None):
            raise ValueError(
                f"window={window} and match={match}: give one of the two, a window or match=hyper (the other null)"
            )

    def executed_flops(self, point: Point, pass_: Pass) -> float:
        """Operations of the pairs that meet at a point."""
        return pair_flops(point, _band(point.seq_len, point.is_causal, point.hyper).pairs, pass_)

    def note(self, point: Point) -> str:
        """The window that was taken, and the keys per query."""
        band = _band(point.seq_len, point.is_causal, point.hyper)
        return f"window {band.left + 1 + band.right}, first tokens {band.sinks}: {told(band.keys, point)}"


class BlockOnly:
    """HyperAttention without its sample: each query meets one block of keys of its own LSH buckets, and no others.

    Under a causal mask the leaves are exact and each level has its blocks (Algorithm 4). With match="hyper" the blocks
    have the length at which a query meets as many keys as in HyperAttention with its sample, else `block_size` keys.
    """

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0, match: str | None = None, **hyper: Any
    ) -> Tensor:
        """Attention of q (B, H, N, D) over k and v (B, Hkv, N, D) within the blocks: (B, H, N, Dv)."""
        params = replace(_BLOCKS, **{**hyper, "sample_size": 1})
        size = _block_size(q.shape[2], is_causal, match, Budget.of(hyper))
        plan = make_plan(q, k, replace(params, block_size=size), seed, is_causal=is_causal)
        # A plan has a sample wherever blocks leave keys out: here it weighs nothing.
        levels = tuple(replace(x, sample_weight=torch.zeros_like(x.sample_weight)) for x in plan.levels)
        out = hyper_attention(
            q, k, v, is_causal=is_causal, plan=replace(plan, levels=levels), enable_gqa=q.shape[1] != k.shape[1]
        )
        assert isinstance(out, Tensor)
        return out

    def defaults(self) -> dict[str, Any]:
        """The value of every parameter that is not given."""
        more = {"num_projections": _BLOCKS.num_projections, "pairing": _BLOCKS.pairing}
        return {**SIZES, **more, "match": None, "seed": 0}

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError on a value out of its range."""
        check_match(hyper)
        replace(_BLOCKS, **{name: value for name, value in hyper.items() if name not in ("match", "seed")})

    def executed_flops(self, point: Point, pass_: Pass) -> float:
        """Operations of the pairs that meet at a point."""
        return pair_flops(point, self._size_and_keys(point)[1] * point.seq_len, pass_)

    def note(self, point: Point) -> str:
        """The blocks that were taken, and the keys per query."""
        size, keys = self._size_and_keys(point)
        return f"blocks of {size}: {told(keys, point)}"

    def _size_and_keys(self, point: Point) -> tuple[int, float]:
        budget = Budget.of(point.hyper)
        size = _block_size(point.seq_len, point.is_causal, point.hyper.get("match"), budget)
        return size, hyper_keys(point.seq_len, size, 0, budget.min_seq_len, is_causal=point.is_causal)


def _band(seq_len: int, is_causal: bool, hyper: dict[str, Any]) -> Band:
    """The window that is given, or the one that is matched. Raises ValueError where neither is given."""
    window, sinks = hyper.get("window"), hyper["sinks"]
    if window is None:
        if hyper.get("match") is None:
            raise ValueError("window needs a value where match is null")
        window = _matched_window(seq_len, is_causal, sinks, Budget.of(hyper))
    return Band.of(window, sinks, seq_len, is_causal=is_causal)


@lru_cache(maxsize=4096)
def _matched_window(seq_len: int, is_causal: bool, sinks: int, budget: Budget) -> int:
    return nearest_size(
        lambda size: Band.of(size, sinks, seq_len, is_causal=is_causal).keys,
        budget.keys(seq_len, is_causal=is_causal),
        seq_len if is_causal else 2 * seq_len - 1,
    )


@lru_cache(maxsize=4096)
def _block_size(seq_len: int, is_causal: bool, match: str | None, budget: Budget) -> int:
    """Keys of a block: `block_size`, or what meets as many keys without a sample as HyperAttention does with one."""
    if match is None:
        return budget.block_size
    return nearest_size(
        lambda size: hyper_keys(seq_len, size, 0, budget.min_seq_len, is_causal=is_causal),
        budget.keys(seq_len, is_causal=is_causal),
        seq_len,
    )


window_sinks = WindowSinks()
block_only = BlockOnly()
