"""Exact attention and its gradients in chunks, never an n x n matrix: on all rows, or on drawn ones.

With p_ij = exp(s q_i.k_j - lse_i) and delta_i = dO_i.O_i: out_i = sum_j p_ij v_j, dq_i = s sum_j p_ij (dO_i.v_j -
delta_i) k_j, dk_j = s sum_i p_ij (dO_i.v_j - delta_i) q_i, dv_j = sum_i p_ij dO_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperattn_core import exact_attention
from hyperbench.measure.inputs import Inputs
from hyperbench.measure.worker.errors.rows import Rows, all_rows, draw_rows

_CHUNK_ELEMENTS = 2**22
#: Rows on which exact attention in float32 is checked, and the relative error it may have there.
_CHECKED_ROWS = 64
_CHECKED_TOLERANCE = 1e-4
_POWER_ITERATIONS = 40
_POWER_BLOCK = 4
_Answer = tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]


@dataclass(frozen=True)
class Reference:
    """The exact answer that a method's is compared with; tensors in the reference's own dtype.

    Attributes:
        rows: the compared positions of queries: all N, or R drawn ones with their weights.
        out: (B, H, R, Dv) exact output at those rows.
        lse: (B, H, R) exact log-sum-exp at those rows.
        grads: dq (B, H, N, D), dk and dv (B, Hkv, N, D) under the fixed grad_output, or None where not wanted.
        operator_scale: (B, H) the norm |D^-1 A|_op |V|_op, where wanted, else None.
    """

    rows: Rows
    out: Tensor
    lse: Tensor
    grads: tuple[Tensor, Tensor, Tensor] | None
    operator_scale: Tensor | None


def make_reference(
    inputs: Inputs,
    grad_output: Tensor | None,
    *,
    is_causal: bool,
    num_rows: int,
    dtype: torch.dtype,
    operator_norm: bool,
    seed: int,
) -> Reference:
    """The reference of q (B, H, N, D), k and v (B, Hkv, N, D), in `dtype`; no gradients without grad_output.

    Rows are num_rows drawn with the seed where there are more, and all N where gradients or the operator norm need the
    whole output anyway. The whole in float64 and drawn rows are plain matrix products; the whole in float32 is the
    library's exact attention, whose output and dq are held against plain products in float64 on some rows.

    Raises ValueError if shapes do not fit, and RuntimeError if that exact attention is not exact.
    """
    q, k, v = (x.to(dtype) for x in inputs)
    seq_len = k.shape[2]
    cotangent = None if grad_output is None else grad_output.to(dtype)
    whole = seq_len <= num_rows or cotangent is not None or operator_norm
    rows = (all_rows(seq_len) if whole else draw_rows(seq_len, num_rows, is_causal, seed)).to(q.device)
    attend = _by_kernel if whole and dtype != torch.float64 else _by_products
    out, lse, grads = attend((q, k, v), cotangent, rows, is_causal)
    return Reference(rows, out, lse, grads, _operator_scale(q, k, v, is_causal, seed) if operator_norm else None)


def _by_kernel(inputs: Inputs, cotangent: Tensor | None, rows: Rows, is_causal: bool) -> _Answer:
    """Output, lse and gradients by the library's exact attention, checked on some of the rows."""
    q, k, v = leaves = tuple(x.detach().requires_grad_(cotangent is not None) for x in inputs)
    with torch.enable_grad():
        out, lse = exact_attention(q, k, v, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1], return_lse=True)
        found = None if cotangent is None else torch.autograd.grad(out, leaves, cotangent)
    out, lse = out.detach(), lse.detach()
    some = draw_rows(len(rows), _CHECKED_ROWS, is_causal, seed=0).to(q.device) if len(rows) > _CHECKED_ROWS else rows
    wide = None if cotangent is None else cotangent.double()
    q, k, v = (x.detach().double() for x in leaves)
    exact, _, grads = _by_products((q, k, v), wide, some, is_causal)
    pairs = [(out, exact)] if found is None or grads is None else [(out, exact), (found[0], grads[0])]
    for one, other in pairs:
        off = float((one[:, :, some.positions].double() - other).norm())
        if not off <= _CHECKED_TOLERANCE * float(other.norm()):
            raise RuntimeError("exact attention in float32 differs from plain products in float64")
    return out, lse, None if found is None else (found[0], found[1], found[2])


def _by_products(inputs: Inputs, cotangent: Tensor | None, rows: Rows, is_causal: bool) -> _Answer:
    """Output, lse and dq at the rows, and what these add to dk and dv (all of it where they are all rows)."""
    q, k, v = inputs
    seq_len, scale = k.shape[2], 1.0 / math.sqrt(q.shape[3])
    out = q.new_empty(*q.shape[:2], len(rows), v.shape[3])
    lse = q.new_empty(*q.shape[:2], len(rows))
    dq, dk, dv = q.new_empty(*q.shape[:2], len(rows), q.shape[3]), torch.zeros_like(k), torch.zeros_like(v)
    for batch, head, kv_head in each_head(q, k):
        for part in chunks(len(rows), seq_len):
            picked = rows.positions[part]
            visible = slice(int(picked[-1]) + 1 if is_causal else seq_len)
            keys, values, queries = k[batch, kv_head, visible], v[batch, kv_head, visible], q[batch, head, picked]
            probs, lse[batch, head, part] = softmax_rows(queries, keys, picked, is_causal)
            out[batch, head, part] = probs @ values
            if cotangent is not None:
                g = cotangent[batch, head, picked]
                delta = (g * out[batch, head, part]).sum(1, keepdim=True)
                dv[batch, kv_head, visible] += probs.T @ g
                ds = probs.mul_(g @ values.T - delta).mul_(scale)
                dq[batch, head, part] = ds @ keys
                dk[batch, kv_head, visible] += ds.T @ queries
    return out, lse, None if cotangent is None else (dq, dk, dv)


def operator_norms(x: Tensor) -> Tensor:
    """The largest singular value of every (N, D) matrix of x (B, H, N, D): (B, H)."""
    wide = x.double()
    return torch.linalg.eigvalsh(wide.transpose(2, 3) @ wide)[..., -1].clamp(min=0.0).sqrt()


def _operator_scale(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, seed: int) -> Tensor:
    """|D^-1 A|_op |V|_op of every head, the first by block power iteration on one dense matrix at a time."""
    norms = operator_norms(v).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    positions = torch.arange(q.shape[2], device=q.device)
    for batch, head, kv_head in each_head(q, k):
        probs, _ = softmax_rows(q[batch, head], k[batch, kv_head], positions, is_causal)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        drawn = torch.randn(k.shape[2], _POWER_BLOCK, generator=generator, device="cpu", dtype=torch.float32)
        x = drawn.to(device=q.device, dtype=q.dtype)
        # The largest singular vector of a non-negative matrix is non-negative: ones are never orthogonal to it.
        x[:, 0] = 1.0
        for _ in range(_POWER_ITERATIONS):
            x = probs.T @ (probs @ torch.linalg.qr(x).Q)
        norms[batch, head] *= torch.linalg.matrix_norm(probs @ torch.linalg.qr(x).Q, ord=2).double()
    return norms


def softmax_rows(q: Tensor, k: Tensor, positions: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Rows of D^-1 A (R, N) and their log-sum-exp (R,), of queries (R, D) at these positions over keys (N, D)."""
    logits = q @ k.T / math.sqrt(q.shape[1])
    if is_causal:
        hidden = torch.arange(k.shape[0], device=k.device) > positions.unsqueeze(1)
        logits.masked_fill_(hidden, -math.inf)
    lse = logits.logsumexp(dim=1)
    return logits.sub_(lse.unsqueeze(1)).exp_(), lse


def each_head(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, int]]:
    """Entry of the batch, head and kv head of every head of q."""
    group = q.shape[1] // k.shape[1]
    return ((batch, head, head // group) for batch in range(q.shape[0]) for head in range(q.shape[1]))


def chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of the rows of a matrix with so many columns, each small enough to be held."""
    step = max(1, _CHUNK_ELEMENTS // num_columns)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
