"""The work ratio: what HyperAttention could gain if both methods did their work at an equal rate.

Work is counted in pairs of a query and a key that meet, which is what the matmuls of both methods cost;
hashing, sorting and moving data are left out, so the ratio is an upper limit and no forecast.
"""

from __future__ import annotations

from functools import lru_cache


def exact_pairs(seq_len: int, *, is_causal: bool) -> float:
    """Query-key pairs of exact attention over `seq_len` tokens: n^2, half of that under a causal mask."""
    return seq_len * seq_len / (2 if is_causal else 1)


def hyper_pairs(seq_len: int, block_size: int, sample_size: int, min_seq_len: int, *, is_causal: bool) -> float:
    """Query-key pairs of HyperAttention: b keys of the block and m samples for each query, at most all of them.

    Under a causal mask [0, n) splits at half the smallest L 2^j that holds it, down to leaves of at most
    L = `min_seq_len`, which are exact; the queries after a split meet the keys before it (Algorithm 4).
    Up to `min_seq_len` tokens the answer is exact. Raises ValueError on a length or size below 1 (m: below 0).
    """
    _check(seq_len=seq_len, block_size=block_size, min_seq_len=min_seq_len)
    if sample_size < 0:
        raise ValueError(f"sample_size must be at least 0, got {sample_size}")
    if is_causal:
        return _causal_pairs(seq_len, block_size + sample_size, min_seq_len)
    if seq_len <= min_seq_len:
        return exact_pairs(seq_len, is_causal=False)
    return float(seq_len * min(seq_len, block_size + sample_size))


def work_ratio(seq_len: int, block_size: int, sample_size: int, min_seq_len: int, *, is_causal: bool) -> float:
    """Exact work over HyperAttention's work at one length: the speedup at equal rate; 1 where it is exact itself."""
    return exact_pairs(seq_len, is_causal=is_causal) / hyper_pairs(
        seq_len, block_size, sample_size, min_seq_len, is_causal=is_causal
    )


@lru_cache(maxsize=4096)
def _causal_pairs(length: int, keys_per_query: int, leaf: int) -> float:
    if length <= leaf:
        return length * length / 2
    half = leaf
    while 2 * half < length:
        half *= 2
    later = length - half
    across = later * min(half, keys_per_query)
    return _causal_pairs(half, keys_per_query, leaf) + across + _causal_pairs(later, keys_per_query, leaf)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
