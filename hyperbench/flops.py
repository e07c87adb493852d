"""Operations of attention, counted from the configuration: query-key pairs, and the floating-point operations of both.

A pair of a query and a key that meet is what the two matrix products cost, a multiply-add counted as two operations.
Softmax, hashing, sorting and moving data are left out, as is usual for attention. A backward pass counts 2.5 forward
passes (five matrix products for two), both passes 3.5.
"""

from __future__ import annotations

from functools import lru_cache

from hyperbench.store.schema import Pass, Point

PASS_FACTORS = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.5, Pass.FORWARD_BACKWARD: 3.5}
_FLOPS_PER_PAIR = 4.0


def exact_flops(point: Point, pass_: Pass) -> float:
    """Operations of exact attention at a point: 4 B H N^2 D for a forward pass, half of it under a causal mask."""
    return _flops(point, pass_, exact_pairs(point.seq_len, is_causal=point.is_causal))


def hyper_flops(point: Point, pass_: Pass) -> float:
    """Operations that HyperAttention executes: 4 B H D for each query-key pair that meets, exact leaves included.

    Raises KeyError unless the point has HyperAttention's sizes.
    """
    sizes = (int(point.hyper[name]) for name in ("block_size", "sample_size", "min_seq_len"))
    sampling = str(point.hyper.get("sampling", "stratified"))
    return _flops(point, pass_, hyper_pairs(point.seq_len, *sizes, is_causal=point.is_causal, sampling=sampling))


def _flops(point: Point, pass_: Pass, pairs: float) -> float:
    return _FLOPS_PER_PAIR * point.batch * point.heads * point.head_dim * pairs * PASS_FACTORS[pass_]


def exact_pairs(seq_len: int, *, is_causal: bool) -> float:
    """Query-key pairs of exact attention over `seq_len` tokens: n^2, half of that under a causal mask."""
    return seq_len * seq_len / (2 if is_causal else 1)


def hyper_pairs(
    seq_len: int, block_size: int, sample_size: int, min_seq_len: int, *, is_causal: bool, sampling: str = "stratified"
) -> float:
    """Query-key pairs of HyperAttention: for each query the b keys of a block and m samples.

    Up to `min_seq_len` tokens, and without a mask where every key is met once, attention is exact. Under a causal mask
    leaves of `min_seq_len` are exact, and for each length S = min_seq_len 2^j the queries after a node meet its S keys
    (Algorithm 4). Where b + m exceeds the keys there are, more is executed than exact attention would be.

    Raises ValueError on a length or size below 1 (m: below 0).
    """
    for name, value, low in (
        ("seq_len", seq_len, 1), ("block_size", block_size, 1), ("sample_size", sample_size, 0),
        ("min_seq_len", min_seq_len, 1),
    ):  # fmt: skip
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    return _hyper_pairs(seq_len, block_size, sample_size, min_seq_len, is_causal, sampling)


def work_ratio(
    seq_len: int, block_size: int, sample_size: int, min_seq_len: int, *, is_causal: bool, sampling: str = "stratified"
) -> float:
    """Exact work over HyperAttention's at one length: the speedup at equal rate; 1 where it is exact itself."""
    pairs = hyper_pairs(seq_len, block_size, sample_size, min_seq_len, is_causal=is_causal, sampling=sampling)
    return exact_pairs(seq_len, is_causal=is_causal) / pairs


@lru_cache(maxsize=4096)
def _hyper_pairs(
    seq_len: int, block_size: int, sample_size: int, min_seq_len: int, is_causal: bool, sampling: str
) -> float:
    every_key_once = block_size >= seq_len or (sampling == "stratified" and sample_size >= seq_len)
    if seq_len <= min_seq_len or (not is_causal and every_key_once):
        return exact_pairs(seq_len, is_causal=is_causal)
    if not is_causal:
        return float(seq_len * _keys_met(seq_len, block_size, sample_size, sampling))
    full, rest = divmod(seq_len, min_seq_len)
    pairs = (full * min_seq_len**2 + rest**2) / 2
    node_len = min_seq_len
    while node_len < seq_len:
        queries = sum(min(node_len, seq_len - start) for start in range(node_len, seq_len, 2 * node_len))
        pairs += queries * _keys_met(node_len, block_size, sample_size, sampling)
        node_len *= 2
    return pairs


def _keys_met(num_keys: int, block_size: int, sample_size: int, sampling: str) -> int:
    """Keys per query: those of one block and the samples; no sample where one block holds every key."""
    if block_size >= num_keys:
        return num_keys
    return block_size + (min(sample_size, num_keys) if sampling == "stratified" else sample_size)
