"""Band: which keys a query meets by position alone, and how many those are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hyperbench.measure.methods.budget import ramp_sum


@dataclass(frozen=True)
class Band:
    """The keys of each query t of n: t - left to t + right and 0 to sinks - 1, under a causal mask none after t."""

    left: int
    right: int
    sinks: int
    is_causal: bool
    seq_len: int

    @classmethod
    def of(cls, window: int, sinks: int, seq_len: int, *, is_causal: bool) -> Band:
        """A window of so many keys: it ends at the query under a causal mask, else the query is in its middle."""
        left = window - 1 if is_causal else window // 2
        return cls(left, window - 1 - left, min(sinks, seq_len), is_causal, seq_len)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that meet; none counts twice."""
        n = self.seq_len
        before = ramp_sum(n - 1, self.left) + ramp_sum(n - 1 - self.left, self.sinks)
        # Of the first queries' windows some end before the last of the first tokens.
        beyond = 0 if self.is_causal else self.sinks - 1 - self.right
        return n + before + ramp_sum(n - 1, self.right) + ramp_sum(beyond, beyond)

    @property
    def keys(self) -> float:
        """Keys per query, on average over the queries."""
        return self.pairs / self.seq_len

    @property
    def is_everything(self) -> bool:
        """True if every query meets every key that the mask allows."""
        return self.pairs == (ramp_sum(self.seq_len, self.seq_len) if self.is_causal else self.seq_len**2)

    def near(self, rows: slice) -> tuple[int, slice]:
        """All keys that some queries meet: so many first tokens, and a run of keys near the queries."""
        low, high = max(0, rows.start - self.left), min(self.seq_len, rows.stop + self.right)
        return min(self.sinks, low), slice(low, high if self.is_causal else max(high, self.sinks))

    def hidden(self, rows: slice, device: torch.device) -> Tensor:
        """True where a query of `rows` does not meet a key of `near`: (rows, keys), the first tokens in front."""
        first, near = self.near(rows)
        t = torch.arange(rows.start, rows.stop, device=device, dtype=torch.int64).unsqueeze(1)
        positions = torch.arange(near.stop, device=device, dtype=torch.int64)
        j = torch.cat([positions[:first], positions[near]])
        met = (j >= t - self.left) & (j <= t + self.right)
        return ~(met | ((j < self.sinks) & (j <= t) if self.is_causal else j < self.sinks))
