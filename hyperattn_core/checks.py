"""Checks of inputs that need no look at the data, so that they never synchronise a device."""

from __future__ import annotations

from torch import Tensor


def check_inputs(q: Tensor, k: Tensor, *values: Tensor, is_causal: bool, enable_gqa: bool) -> None:
    """Check that q (B, H, Nq, D), k (B, Hkv, Nk, D) and, where given, v (B, Hkv, Nk, Dv) fit together.

    Raises:
        ValueError: a rank, shape, dtype or device does not fit; the message names the tensor and what is allowed.
    """
    for name, x in zip("qkv", (q, k, *values), strict=False):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(f"{name} must be (batch, heads, seq_len, head_dim), got shape {tuple(x.shape)}")
        if not x.dtype.is_floating_point or x.dtype.itemsize == 1:
            raise ValueError(f"{name} must be float16, bfloat16, float32 or float64, got {_name(x.dtype)}")
        if x.dtype != q.dtype:
            raise ValueError(
                f"q, k and v must share a dtype, got {_name(q.dtype)} for q and {_name(x.dtype)} for {name}"
            )
        if x.device != q.device:
            raise ValueError(f"q, k and v must be on one device, got {q.device} for q and {x.device} for {name}")
        if x.shape[0] != q.shape[0]:
            raise ValueError(
                f"q, k and v must share the batch size, got {q.shape[0]} for q and {x.shape[0]} for {name}"
            )
    if q.shape[0] == 0:
        raise ValueError("batch must be at least 1, got 0")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"q and k must share head_dim, got {q.shape[3]} and {k.shape[3]}")
    if any(x.shape[3] == 0 for x in (q, *values)):
        raise ValueError("head_dim must be at least 1")
    for v in values:
        if v.shape[1:3] != k.shape[1:3]:
            raise ValueError(f"k and v must share heads and seq_len, got {tuple(k.shape)} and {tuple(v.shape)}")
    if k.shape[2] == 0:
        raise ValueError("k has no rows: attention over zero keys is not defined")
    heads, kv_heads = q.shape[1], k.shape[1]
    if heads == 0 or kv_heads == 0:
        raise ValueError(f"heads must be at least 1, got {heads} for q and {kv_heads} for k")
    if heads % kv_heads:
        raise ValueError(f"heads of q must be a multiple of kv_heads, got {heads} and {kv_heads}")
    if heads != kv_heads and not enable_gqa:
        raise ValueError(f"q has {heads} heads and k has {kv_heads}: pass enable_gqa=True for grouped-query attention")
    if is_causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"is_causal needs as many queries as keys, got {q.shape[2]} and {k.shape[2]}")


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
