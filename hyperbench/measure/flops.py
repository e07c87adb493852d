"""Floating-point operations of attention, counted from the configuration: two matrix products, a multiply-add is two.

Softmax, hashing and sorting are not counted, as is usual for attention. A backward pass counts 2.5 forward passes (five
matrix products for two), both passes 3.5.
"""

from __future__ import annotations

from hyperbench.flops import exact_pairs, hyper_pairs
from hyperbench.store.schema import Pass

PASS_FACTORS = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.5, Pass.FORWARD_BACKWARD: 3.5}
_FLOPS_PER_PAIR = 4.0


def exact_flops(batch: int, heads: int, seq_len: int, head_dim: int, is_causal: bool, pass_: Pass) -> float:
    """4 B H N^2 D for a forward pass, half of it under a causal mask."""
    return _FLOPS_PER_PAIR * batch * heads * head_dim * exact_pairs(seq_len, is_causal=is_causal) * PASS_FACTORS[pass_]


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
    """What HyperAttention executes: 4 B H D for each query-key pair that meets, exact leaves included."""
    pairs = hyper_pairs(seq_len, block_size, sample_size, min_seq_len, is_causal=is_causal, sampling=sampling)
    return _FLOPS_PER_PAIR * batch * heads * head_dim * pairs * PASS_FACTORS[pass_]
