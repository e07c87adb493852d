"""Floating-point operations of attention, counted from the configuration: two matrix products, a multiply-add is two.

Softmax, hashing and sorting are not counted, as is usual for attention. A backward pass counts 2.5 forward passes (five
matrix products for two), both passes 3.5.
"""

from __future__ import annotations

from hyperbench.schema import Pass

PASS_FACTORS = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.5, Pass.FORWARD_BACKWARD: 3.5}


def exact_flops(batch: int, heads: int, seq_len: int, head_dim: int, is_causal: bool, pass_: Pass) -> float:
    """4 B H N^2 D for a forward pass, half of it under a causal mask."""
    forward = 4.0 * batch * heads * seq_len**2 * head_dim
    return forward * (0.5 if is_causal else 1.0) * PASS_FACTORS[pass_]


def hyper_flops(
    batch: int,
    heads: int,
    seq_len: int,
    head_dim: int,
    is_causal: bool,
    pass_: Pass,
    *,
    block_size: int,
    sample_size: int,
    min_seq_len: int,
    sampling: str = "stratified",
) -> float:
    """What HyperAttention executes: 4 B H N (b + m) D, or exact attention up to min_seq_len.

    Under a causal mask: exact causal leaves of min_seq_len, and for each length S = min_seq_len 2^j the queries that
    meet a node of S keys. Where b + m exceeds the keys there are, more is executed than exact attention would be.
    """
    every_key_once = block_size >= seq_len or (sampling == "stratified" and sample_size >= seq_len)
    if seq_len <= min_seq_len or (not is_causal and every_key_once):
        return exact_flops(batch, heads, seq_len, head_dim, is_causal, pass_)
    per_head = 0.0
    if not is_causal:
        per_head = 4.0 * seq_len * _keys_met(seq_len, block_size, sample_size, sampling) * head_dim
    else:
        for start in range(0, seq_len, min_seq_len):
            per_head += 2.0 * min(min_seq_len, seq_len - start) ** 2 * head_dim
        node_len = min_seq_len
        while node_len < seq_len:
            queries = sum(min(node_len, seq_len - s) for s in range(node_len, seq_len, 2 * node_len))
            per_head += 4.0 * queries * _keys_met(node_len, block_size, sample_size, sampling) * head_dim
            node_len *= 2
    return batch * heads * per_head * PASS_FACTORS[pass_]


def _keys_met(num_keys: int, block_size: int, sample_size: int, sampling: str) -> int:
    """Keys per query: those of one block and the samples; no sample where one block holds every key."""
    if block_size >= num_keys:
        return num_keys
    return block_size + (min(sample_size, num_keys) if sampling == "stratified" else sample_size)
