"""HyperAttentionParams: the parameters of the estimator, checked when they are made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

Sampling = Literal["iid", "stratified", "probed", "truncated"]
Pairing = Literal["rank", "bucket", "routed"]
Hashing = Literal["angular", "centred"]

MAX_NUM_PROJECTIONS = 15
DEFAULT_PROBES = 32
#: With "truncated" sampling no sample weighs more.
MAX_WEIGHT = 4.0
#: With "routed" pairing: consecutive keys of a block, and consecutive queries that share the blocks which they choose.
ROUTED_KEYS, ROUTED_QUERIES = 4, 8


@dataclass(frozen=True)
class HyperAttentionParams:
    """Parameters of HyperAttention (Han et al., ICLR 2024, Algorithms 1 to 4), and of what goes beyond the paper.

    Attributes:
        block_size: b, keys per block of the block-diagonal part; with "routed" pairing a multiple of 32.
        sample_size: m, sampled keys shared by all queries of a head (of a node, in the causal recursion).
        num_projections: r, hyperplanes of the angular LSH; 2**r buckets.
        min_seq_len: number of keys up to which attention is exact; the leaf length of the causal recursion.
        sampling: "iid" draws m keys independently (the paper); "stratified" draws one key from each of m equal
            slices of the sorted keys: unbiased too, and exact at m = Nk; "probed" draws m different keys, those that a
            few probe queries attend to with the higher probability, each weighed by its inverse: unbiased and exact at
            m = Nk as well, and of far less variance where some keys draw the attention of all queries; "truncated"
            draws the same keys, lets none weigh more than 4, and meets one key more in each node: the mean of those
            whose probability is below one, with the mean of their values and the weight that the samples lack of their
            number (biased, of less error, exact at m = Nk).
        pairing: "rank" pairs the i-th slice of sorted queries with the i-th block of sorted keys (the paper; under
            a causal mask not causal in q); "bucket" sends a query to the block that holds the keys of its own hash
            rank (strictly causal); "routed" hashes and sorts nothing: each query chooses those of all runs of 4
            consecutive keys whose mean keys have the largest logits with it, and meets them and the ones that up to
            7 queries before it chose, b keys at most (also strictly causal).
        hashing: "angular" hashes a row by the signs of its projections (the paper); "centred" by whether each lies
            above its mean, that of the node's keys for keys, and for queries that of the queries at the keys' positions
            (of all queries where there is no mask).
        num_probes: probe queries of a head and node, with "probed" and "truncated" sampling: the last ones at the
            positions of the node's keys, or where there is no mask queries drawn from the seed. At most min_seq_len;
            the default is cut to the length of a shorter node.
        probe_floor: f in (0, 1], the share of the probability of such a sample that is the same for every key; it
            bounds the weights of "probed" samples.

    Raises:
        ValueError: a value is out of its range.
    """

    block_size: int = 256
    sample_size: int = 256
    num_projections: int = 7
    min_seq_len: int = 2048
    sampling: Sampling = "truncated"
    pairing: Pairing = "bucket"
    hashing: Hashing = "angular"
    num_probes: int = DEFAULT_PROBES
    probe_floor: float = 0.1

    def __post_init__(self) -> None:
        for name in ("block_size", "sample_size", "num_projections", "min_seq_len", "num_probes"):
            high = MAX_NUM_PROJECTIONS if name == "num_projections" else None
            object.__setattr__(self, name, check_int(name, getattr(self, name), low=1, high=high))
        check_choice("sampling", self.sampling, get_args(Sampling))
        check_choice("pairing", self.pairing, get_args(Pairing))
        check_choice("hashing", self.hashing, get_args(Hashing))
        object.__setattr__(self, "probe_floor", check_share("probe_floor", self.probe_floor))
        if self.pairing == "routed":
            self._check_routed()
        if self.uses_probes and DEFAULT_PROBES != self.num_probes > self.min_seq_len:
            raise ValueError(f"num_probes must be at most min_seq_len={self.min_seq_len}, got {self.num_probes}")

    @property
    def uses_probes(self) -> bool:
        """True if samples are drawn by the attention of probe queries."""
        return self.sampling in ("probed", "truncated")

    def one_block_holds(self, num_keys: int) -> bool:
        """True if every query meets all of so many keys in one block; routed queries choose among them all the same."""
        return self.block_size >= num_keys and self.pairing != "routed"

    def _check_routed(self) -> None:
        if self.block_size % (ROUTED_KEYS * ROUTED_QUERIES):
            raise ValueError(
                f"block_size must be a multiple of {ROUTED_KEYS * ROUTED_QUERIES} with pairing='routed',"
                f" got {self.block_size}"
            )
        if self.hashing != "angular":
            raise ValueError(f"pairing='routed' hashes nothing: leave hashing out, got {self.hashing!r}")

    @classmethod
    def paper(cls) -> HyperAttentionParams:
        """The paper's speed figure: b = m = 256, 7 projections, leaves of 4,096, uniform samples, rank pairing."""
        return cls(block_size=256, sample_size=256, num_projections=7, min_seq_len=4096, sampling="iid", pairing="rank")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HyperAttentionParams:
        """Parameters from plain data; a missing key takes its default.

        Raises:
            ValueError: an unknown key (the nearest known one is named) or a value out of its range.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown parameter {key!r}; allowed: {', '.join(known)}{_nearest(key, known)}")
        return cls(**values)


def check_int(name: str, value: object, *, low: int | None = None, high: int | None = None) -> int:
    """The value as an int, NumPy's integers among others.

    Raises:
        ValueError: it is no integer, or out of range; the message names the key, the value and what is allowed.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if (low is None or number >= low) and (high is None or number <= high):
            return number
    least = "" if low is None else f" of at least {low}"
    raise ValueError(f"{name} must be an integer{least if high is None else f' from {low} to {high}'}, got {value!r}")


def check_share(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        ValueError: it is no number above 0 and up to 1; the message names the key, the value and what is allowed.
    """
    if isinstance(value, Real) and not isinstance(value, bool) and 0.0 < float(value) <= 1.0:
        return float(value)
    raise ValueError(f"{name} must be a number above 0 and up to 1, got {value!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ValueError, naming the key, the value, what is allowed and the nearest of it, unless value is allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{_nearest(value, allowed)}")


def _nearest(value: object, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
