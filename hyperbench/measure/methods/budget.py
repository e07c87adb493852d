"""Equal work: the size at which a baseline meets as many keys per query as HyperAttention does at the same point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from hyperattn_core import HyperAttentionParams
from hyperattn_core.params import check_choice, check_int
from hyperbench.flops import hyper_keys
from hyperbench.store.schema import Point

#: What `match` may be, besides None.
MATCHES = ("hyper",)
_DEFAULTS = HyperAttentionParams()


@dataclass(frozen=True)
class Budget:
    """The sizes b, m and min_seq_len of the HyperAttention whose work a baseline is held to."""

    block_size: int = _DEFAULTS.block_size
    sample_size: int = _DEFAULTS.sample_size
    min_seq_len: int = _DEFAULTS.min_seq_len

    @classmethod
    def of(cls, hyper: dict[str, Any]) -> Budget:
        """The sizes among a method's parameters; those that are not given are the library's own.

        Raises ValueError, one line, on one that is no positive integer.
        """
        given = {name: hyper[name] for name in SIZES if hyper.get(name) is not None}
        return cls(**{name: check_int(name, value, low=1) for name, value in given.items()})

    def keys(self, seq_len: int, *, is_causal: bool) -> float:
        """Keys with a weight for a query, on average over the queries."""
        return hyper_keys(seq_len, self.block_size, self.sample_size, self.min_seq_len, is_causal=is_causal)


#: The parameters of a baseline that are HyperAttention's sizes, with the library's values.
SIZES = asdict(Budget())


def check_match(hyper: dict[str, Any]) -> None:
    """Raise ValueError, one line, unless `match` is None or "hyper" and the sizes are positive integers."""
    if hyper.get("match") is not None:
        check_choice("match", hyper["match"], MATCHES)
    Budget.of(hyper)


def nearest_size(keys_of: Callable[[int], float], wanted: float, most: int) -> int:
    """The size from 1 to `most` at which the keys per query, `keys_of`, are nearest to `wanted`.

    `keys_of` must not fall with the size; of two that are as near the smaller one is taken.
    """
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if keys_of(middle) < wanted:
            low = middle + 1
        else:
            high = middle
    return low - 1 if low > 1 and wanted - keys_of(low - 1) <= keys_of(low) - wanted else low


def ramp_sum(length: int, most: int) -> int:
    """Sum of min(i, most) for i from 1 to `length`: keys that queries 0, 1, ... see, up to `most` of them."""
    if length <= 0 or most <= 0:
        return 0
    if length <= most:
        return length * (length + 1) // 2
    return most * (most + 1) // 2 + (length - most) * most


def told(keys: float, point: Point) -> str:
    """The keys per query of a baseline at a point beside those of HyperAttention, for the message of a timing."""
    wanted = Budget.of(point.hyper).keys(point.seq_len, is_causal=point.is_causal)
    return f"{keys:,.1f} keys a query, hyper {wanted:,.1f}"
