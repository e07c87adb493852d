"""Adapters for the attention of eight packages, to be named as `+method.NAME._target_=examples.adapters.NAME`.

Each is a method as docs/extending.md describes it: q, k and v are (batch, heads, seq_len, head_dim), with as many heads
for all three. A package is imported when its adapter is called. docs/methods.md tells which of them pass the checks
that come before a timing, and what is wrong with the others.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, cat, nn


def local_attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, window: int = 128) -> Tensor:
    """local-attention 1.11.2: windows that meet themselves and their neighbours."""
    from local_attention import LocalAttention

    return LocalAttention(window, causal=is_causal, autopad=True)(q, k, v)


def memory_efficient(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, chunk: int = 512) -> Tensor:
    """memory-efficient-attention-pytorch 0.1.6: exact attention in chunks."""
    from memory_efficient_attention_pytorch import memory_efficient_attention

    return memory_efficient_attention(q, k, v, causal=is_causal, q_bucket_size=chunk, k_bucket_size=chunk)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, bucket_size: int = 64) -> Tensor:
    """linear-attention-transformer 0.19.1: efficient attention; under a causal mask, by sums over whole buckets."""
    from linear_attention_transformer.linear_attention_transformer import causal_linear_attn, linear_attn

    return causal_linear_attn(q, k, v, bucket_size=bucket_size) if is_causal else linear_attn(q, k, v)


def performer(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, num_features: int = 256) -> Tensor:
    """performer-pytorch 1.1.4: positive random features, whose projection is drawn in the set-up."""
    return prepare_performer(q, k, v, is_causal=is_causal, num_features=num_features)(q, k, v)


def prepare_performer(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, num_features: int = 256
) -> Callable[..., Tensor]:
    """The module, which draws from the global generators when it is made."""
    from performer_pytorch import FastAttention

    return FastAttention(q.shape[3], num_features, causal=is_causal).to(q.device)


performer.prepare = prepare_performer


def nystrom(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, num_landmarks: int = 64) -> Tensor:
    """nystrom-attention 0.0.14: its module without projections and residual, which takes q, k and v side by side."""
    from nystrom_attention import NystromAttention

    if is_causal:
        raise NotImplementedError("nystrom-attention has no causal form")
    module = NystromAttention(1, q.shape[3], q.shape[1], num_landmarks, residual=False)
    module.to_qkv, module.to_out = nn.Identity(), nn.Identity()
    return (
        module(cat([x.transpose(1, 2).flatten(2) for x in (q, k, v)], 2)).unflatten(2, (q.shape[1], -1)).transpose(1, 2)
    )


def reformer(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, bucket_size: int = 64, num_hashes: int = 8) -> Tensor:
    """reformer-pytorch 1.4.4: its keys are its queries, normalised, so that k is not looked at."""
    from reformer_pytorch import LSHAttention

    attend = LSHAttention(bucket_size=bucket_size, n_hashes=num_hashes, causal=is_causal)
    return attend(q.flatten(0, 1), v.flatten(0, 1))[0].unflatten(0, q.shape[:2])


def routing(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, num_clusters: int = 8, window: int = 128) -> Tensor:
    """routing-transformer 1.6.1: attention within clusters, which are found anew for each input."""
    from routing_transformer import KmeansAttention

    attend = KmeansAttention(num_clusters, window, q.shape[1], q.shape[3], causal=is_causal)
    return attend.eval()(q, k, v)[0]


def sinkhorn(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, bucket_size: int = 128) -> Tensor:
    """sinkhorn-transformer 0.11.4: each bucket meets itself and the one that a matching chooses for it."""
    from sinkhorn_transformer import sinkhorn_transformer as package

    kind = package.SinkhornCausalAttention if is_causal else package.SinkhornAttention
    heads, head_dim = q.shape[1], q.shape[3]
    return kind(bucket_size, heads * head_dim, head_dim, heads, q.shape[2])(q, k, v)
