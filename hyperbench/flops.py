"""Operations of attention, counted from the configuration, and peak rates of devices.

A pair of a query and a key that meet costs 4 D operations: two matrix products, a multiply-add is two. Softmax,
hashing, probing, sorting and moving data are left out, as is usual for attention. A backward pass counts 2.5 forward
passes (five matrix products for two), both passes 3.5.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from hyperbench.store.schema import Pass, Point

PASS_FACTORS = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.5, Pass.FORWARD_BACKWARD: 3.5}
_FLOPS_PER_PAIR = 4.0
_TERA = 1e12
#: Dense matrix products, in TFLOP/s, from the makers' data sheets: part of the GPU's name, bfloat16 and float16,
#: float32 (with TF32 where there is such a unit). The first match counts: special names of a family come first.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250.0, 1125.0), ("GH200", 990.0, 495.0), ("H200", 990.0, 495.0), ("H100 PCIe", 757.0, 379.0),
    ("H100 NVL", 836.0, 418.0), ("H100", 990.0, 495.0), ("A100", 312.0, 156.0), ("A10G", 125.0, 70.0),
    ("A10", 125.0, 62.5), ("L40S", 363.0, 183.0), ("L4", 121.0, 60.0), ("RTX 4090", 331.0, 83.0),
    ("RTX 3090", 143.0, 71.5), ("V100", 125.0, 15.7), ("T4", 65.0, 8.2),
)  # fmt: skip
#: The most that a clock may gain over the data sheet.
_MARGIN = 1.1


def exact_flops(point: Point, pass_: Pass) -> float:
    """Operations of exact attention at a point: 4 B H N^2 D for a forward pass, half of it under a causal mask."""
    return pair_flops(point, exact_pairs(point.seq_len, is_causal=point.is_causal), pass_)


def hyper_flops(point: Point, pass_: Pass) -> float:
    """Operations of HyperAttention at a point with its parameters: 4 B H D for each pair that meets, exact leaves too.

    Raises KeyError if one of the sizes is not among the parameters.
    """
    sizes = (int(point.hyper[name]) for name in ("block_size", "sample_size", "min_seq_len"))
    pairs = hyper_pairs(point.seq_len, *sizes, is_causal=point.is_causal, sampling=str(point.hyper.get("sampling")))
    return pair_flops(point, pairs, pass_)


def pair_flops(point: Point, pairs: float, pass_: Pass) -> float:
    """Operations at a point whose heads each let so many pairs of a query and a key meet."""
    return _FLOPS_PER_PAIR * point.batch * point.heads * point.head_dim * pairs * PASS_FACTORS[pass_]


def exact_pairs(seq_len: int, *, is_causal: bool) -> float:
    """Query-key pairs of exact attention over `seq_len` tokens: n^2, half of that under a causal mask."""
    return seq_len * seq_len / (2 if is_causal else 1)


@lru_cache(maxsize=4096)
def hyper_pairs(
    seq_len: int, block_size: int, sample_size: int, min_seq_len: int, *, is_causal: bool, sampling: str = "stratified"
) -> float:
    """Query-key pairs of HyperAttention: for each query the b keys of a block and m samples, and perhaps a mean key.

    Up to `min_seq_len` tokens, and without a mask where every key is met once, attention is exact. Under a causal mask
    leaves of `min_seq_len` are exact, and for each length S = min_seq_len 2^j the queries after a node meet its S keys
    (Algorithm 4). Where b + m exceeds the keys there are, more is executed than exact attention would be.

    Raises ValueError on a length or size below 1 (m: below 0).
    """
    _check_sizes(seq_len, block_size, sample_size, min_seq_len)
    every_key_once = block_size >= seq_len or (sampling != "iid" and sample_size >= seq_len)
    if seq_len <= min_seq_len or (not is_causal and every_key_once):
        return exact_pairs(seq_len, is_causal=is_causal)
    if not is_causal:
        return float(seq_len * _keys_met(seq_len, block_size, sample_size, sampling))
    full, rest = divmod(seq_len, min_seq_len)
    pairs = (full * min_seq_len**2 + rest**2) / 2
    for node_len, queries in _causal_levels(seq_len, min_seq_len):
        pairs += queries * _keys_met(node_len, block_size, sample_size, sampling)
    return pairs


@lru_cache(maxsize=4096)
def hyper_keys(seq_len: int, block_size: int, sample_size: int, min_seq_len: int, *, is_causal: bool) -> float:
    """Keys that have a weight for a query of HyperAttention, on average over the queries; no key sampled twice.

    Unlike in `hyper_pairs`, which counts what is computed, a sampled key that lies in the query's own block counts
    once, a last block counts the keys it has, and a leaf those up to the query, itself included. Each block is taken to
    meet queries in proportion to its keys.

    Raises ValueError on a length or size below 1 (m: below 0).
    """
    _check_sizes(seq_len, block_size, sample_size, min_seq_len)
    if not is_causal:
        is_exact = seq_len <= min_seq_len
        return float(seq_len) if is_exact else _keys_weighed(seq_len, block_size, sample_size)
    full, rest = divmod(seq_len, min_seq_len)
    pairs = (full * min_seq_len * (min_seq_len + 1) + rest * (rest + 1)) / 2
    for node_len, queries in _causal_levels(seq_len, min_seq_len):
        pairs += queries * _keys_weighed(node_len, block_size, sample_size)
    return pairs / seq_len


def work_ratio(
    seq_len: int, block_size: int, sample_size: int, min_seq_len: int, *, is_causal: bool, sampling: str = "stratified"
) -> float:
    """Exact work over HyperAttention's at one length: the speedup at equal rate; 1 where it is exact itself."""
    pairs = hyper_pairs(seq_len, block_size, sample_size, min_seq_len, is_causal=is_causal, sampling=sampling)
    return exact_pairs(seq_len, is_causal=is_causal) / pairs


def peak_flops_per_s(device_name: str | None, dtype: str) -> float | None:
    """The peak rate of a GPU by its name, a tenth added for higher clocks; None where it is not known, as for CPUs.

    Of float64 nothing is known here.
    """
    words = (device_name or "").replace("-", " ").split()
    for name, half, single in _PEAKS:
        parts = name.split()
        if any(words[i : i + len(parts)] == parts for i in range(len(words))):
            peak = {"bfloat16": half, "float16": half, "float32": single}.get(dtype)
            return None if peak is None else peak * _TERA * _MARGIN
    return None


def above_peak_note(flops: float | None, median_ms: float, peak: float | None) -> str:
    """One line on a rate above the peak of the device; empty where it is not, or where either is not known."""
    if flops is None or peak is None or flops <= peak * median_ms / 1e3:
        return ""
    rate = flops / median_ms * 1e3 if median_ms > 0 else float("inf")
    return f"{rate / _TERA:,.4g} TFLOP/s of executed operations, and the device can do {peak / _TERA:,.4g} at most"


def _check_sizes(seq_len: int, block_size: int, sample_size: int, min_seq_len: int) -> None:
    lows = {"seq_len": 1, "block_size": 1, "sample_size": 0, "min_seq_len": 1}
    for (name, low), value in zip(lows.items(), (seq_len, block_size, sample_size, min_seq_len), strict=True):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


def _causal_levels(seq_len: int, leaf_len: int) -> Iterator[tuple[int, int]]:
    """Keys of a node, and queries of all nodes, of each level above the leaves (Algorithm 4)."""
    node_len = leaf_len
    while node_len < seq_len:
        yield node_len, sum(min(node_len, seq_len - start) for start in range(node_len, seq_len, 2 * node_len))
        node_len *= 2


def _keys_met(num_keys: int, block_size: int, sample_size: int, sampling: str) -> int:
    """Keys per query: those of one block, the samples and their mean key; no sample where a block holds every key."""
    if block_size >= num_keys:
        return num_keys
    if sampling == "iid":
        return block_size + sample_size
    # One more for the mean of the others, where there are any.
    has_mean = sampling == "truncated" and sample_size < num_keys
    return block_size + min(sample_size, num_keys) + has_mean


def _keys_weighed(num_keys: int, block_size: int, sample_size: int) -> float:
    """Keys with a weight per query: those of its block and the samples outside it."""
    full, rest = divmod(num_keys, block_size)
    of_block = (full * block_size**2 + rest**2) / num_keys
    return of_block + min(sample_size, num_keys) * (1 - of_block / num_keys)
