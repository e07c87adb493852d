"""Shared cases of the tests on a GPU. Importing it skips a module as a whole where kernels cannot run on a CUDA GPU."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor


def why_not() -> str:
    """Reason why nothing here can run, in one line; empty if it can."""
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU here"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set: kernels run on the GPU with TRITON_INTERPRET=0 alone, as `make gpu` sets it"
    return ""


if why_not():
    pytest.skip(why_not(), allow_module_level=True)

from hyperattn_core import HyperAttentionParams  # noqa: E402

DEVICE = "cuda"
HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32)
CHOICES = (
    ("iid", "rank"), ("iid", "bucket"), ("stratified", "rank"), ("stratified", "bucket"), ("probed", "bucket"),
    ("probed", "routed"), ("truncated", "bucket"), ("truncated", "routed"),
)  # fmt: skip
#: How many times the error of plain PyTorch in the same precision is allowed; float32 has few bits to hide behind.
ALLOWED = {torch.float16: 3.0, torch.bfloat16: 3.0, torch.float32: 5.0}

Tensors = tuple[Tensor, Tensor, Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers on the GPU, the same for a seed in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device=DEVICE, dtype=dtype)


def qkv(
    queries: int,
    *,
    keys: int | None = None,
    batch: int = 1,
    heads: int = 2,
    kv_heads: int | None = None,
    dim: int = 64,
    value_dim: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Tensors:
    """Normal q, k and v; what is not given follows what is."""
    keys = queries if keys is None else keys
    kv_heads = heads if kv_heads is None else kv_heads
    value_dim = dim if value_dim is None else value_dim
    return (
        normal(batch, heads, queries, dim, seed=3 * seed, dtype=dtype),
        normal(batch, kv_heads, keys, dim, seed=3 * seed + 1, dtype=dtype),
        normal(batch, kv_heads, keys, value_dim, seed=3 * seed + 2, dtype=dtype),
    )


def small_params(sampling: str = "stratified", pairing: str = "bucket", **changes: int) -> HyperAttentionParams:
    """Parameters that leave a few hundred keys approximate."""
    sizes = {"block_size": 32, "sample_size": 32, "num_projections": 5, "min_seq_len": 60} | changes
    return HyperAttentionParams(sampling=sampling, pairing=pairing, **sizes)  # type: ignore[arg-type]


def heads_inside(x: Tensor) -> Tensor:
    """The same values stored as (B, N, H, D)."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def every_second_column(x: Tensor) -> Tensor:
    """The same values in every second column of a wider tensor."""
    return x.repeat_interleave(2, dim=3)[..., ::2]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention as a textbook has it, in the dtype of its inputs: out and log-sum-exp."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    logits = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])
    if is_causal:
        hidden = torch.ones(logits.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(hidden, -math.inf)
    return logits.softmax(dim=-1) @ v, logits.logsumexp(dim=-1)


def doubled(*tensors: Tensor) -> list[Tensor]:
    """The same numbers in float64, as leaves that want a gradient."""
    return [x.detach().double().requires_grad_() for x in tensors]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| in the Frobenius norm."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def assert_as_good_as_plain(
    ours: tuple[Tensor, ...], expected: tuple[Tensor, ...], inputs: Tensors, *, is_causal: bool
) -> None:
    """Outputs (out, lse) err by a small multiple of what plain attention in their precision loses on these inputs."""
    with torch.no_grad():
        plain = plain_attention(*inputs, is_causal=is_causal)
        exact = plain_attention(*(x.double() for x in inputs), is_causal=is_causal)
    for name, mine, wanted, low, high in zip(("out", "lse"), ours, expected, plain, exact, strict=True):
        assert mine.isfinite().all(), name
        error, allowed = relative_error(mine, wanted), ALLOWED[inputs[0].dtype] * relative_error(low, high)
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


def bits(x: Tensor) -> Tensor:
    """The bit patterns of x as integers, so that equality is equality to the last bit."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
