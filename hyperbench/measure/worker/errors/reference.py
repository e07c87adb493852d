"""Exact attention and its gradients on a random subset of rows, in chunks: costs n times rows, never an n x n matrix.

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

_CHUNK_ELEMENTS = 2**22
_POWER_ITERATIONS = 40
_POWER_BLOCK = 4


@dataclass(frozen=True)
class Reference:
    """The exact answer that a method's is compared with; tensors in the reference's own dtype.

    Attributes:
        rows: (R,) the compared positions, of queries and of keys, ascending.
        out: (B, H, R, Dv) exact output at those rows.
        lse: (B, H, R) exact log-sum-exp at those rows.
        grads: dq (B, H, R, D), dk and dv (B, Hkv, R, D) under the fixed grad_output, or None where not wanted.
        full_out: (B, H, N, Dv), where the operator norm is wanted, else None.
        operator_scale: (B, H) the norm |D^-1 A|_op |V|_op, where wanted, else None.
    """

    rows: Tensor
    out: Tensor
    lse: Tensor
    grads: tuple[Tensor, Tensor, Tensor] | None
    full_out: Tensor | None
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

    Rows are all N, or num_rows drawn with the seed where there are more. Raises ValueError if shapes do not fit.
    """
    q, k, v = (x.to(dtype) for x in inputs)
    num_keys, group = k.shape[2], q.shape[1] // k.shape[1]
    all_rows = num_keys <= num_rows
    rows = torch.arange(num_keys, device="cpu")
    if not all_rows:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        rows = torch.randperm(num_keys, generator=generator, device="cpu")[:num_rows].sort().values
    rows = rows.to(q.device)
    cotangent = None if grad_output is None else grad_output.to(dtype)
    out = q.new_empty(*q.shape[:2], len(rows), v.shape[3])
    lse = q.new_empty(*q.shape[:2], len(rows))
    dq = q.new_empty(*q.shape[:2], len(rows), q.shape[3])
    for batch, head, kv_head in _each_head(q, k):
        for part in _chunks(len(rows), num_keys):
            picked = rows[part]
            probs, lse[batch, head, part] = _softmax(q[batch, head, picked], k[batch, kv_head], picked, is_causal)
            out[batch, head, part] = probs @ v[batch, kv_head]
            if cotangent is not None:
                g = cotangent[batch, head, picked]
                delta = (g * out[batch, head, part]).sum(1, keepdim=True)
                ds = probs.mul_(g @ v[batch, kv_head].T - delta)
                dq[batch, head, part] = ds @ k[batch, kv_head] / math.sqrt(q.shape[3])
    full_out, full_lse = out, lse
    if not all_rows and (cotangent is not None or operator_norm):
        full_out, full_lse = exact_attention(q, k, v, is_causal=is_causal, enable_gqa=group > 1, return_lse=True)
    grads = None
    if cotangent is not None:
        dk, dv = _key_gradients(q, k, v, cotangent, full_out, full_lse, rows, is_causal)
        grads = (dq, dk, dv)
    scale = _operator_scale(q, k, v, is_causal, seed) if operator_norm else None
    return Reference(rows, out, lse, grads, full_out if operator_norm else None, scale)


def operator_norms(x: Tensor) -> Tensor:
    """The largest singular value of every (N, D) matrix of x (B, H, N, D): (B, H)."""
    wide = x.double()
    return torch.linalg.eigvalsh(wide.transpose(2, 3) @ wide)[..., -1].clamp(min=0.0).sqrt()


def _key_gradients(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, out: Tensor, lse: Tensor, rows: Tensor, is_causal: bool
) -> tuple[Tensor, Tensor]:
    num_queries, scale = q.shape[2], 1.0 / math.sqrt(q.shape[3])
    delta = (g * out).sum(3)
    dk = k.new_zeros(*k.shape[:2], len(rows), k.shape[3])
    dv = v.new_zeros(*v.shape[:2], len(rows), v.shape[3])
    positions = torch.arange(num_queries, device=q.device)
    for batch, head, kv_head in _each_head(q, k):
        for part in _chunks(len(rows), num_queries):
            picked = rows[part]
            logits = k[batch, kv_head, picked] @ q[batch, head].T * scale
            if is_causal:
                logits.masked_fill_(positions < picked.unsqueeze(1), -math.inf)
            probs = logits.sub_(lse[batch, head].to(logits.dtype)).exp_()
            dv[batch, kv_head, part] += probs @ g[batch, head]
            ds = probs.mul_(v[batch, kv_head, picked] @ g[batch, head].T - delta[batch, head])
            dk[batch, kv_head, part] += ds @ q[batch, head] * scale
    return dk, dv


def _operator_scale(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, seed: int) -> Tensor:
    """|D^-1 A|_op |V|_op of every head, the first by block power iteration on one dense matrix at a time."""
    norms = operator_norms(v).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    positions = torch.arange(q.shape[2], device=q.device)
    for batch, head, kv_head in _each_head(q, k):
        probs, _ = _softmax(q[batch, head], k[batch, kv_head], positions, is_causal)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        drawn = torch.randn(k.shape[2], _POWER_BLOCK, generator=generator, device="cpu", dtype=torch.float32)
        x = drawn.to(device=q.device, dtype=q.dtype)
        # The largest singular vector of a non-negative matrix is non-negative: ones are never orthogonal to it.
        x[:, 0] = 1.0
        for _ in range(_POWER_ITERATIONS):
            x = probs.T @ (probs @ torch.linalg.qr(x).Q)
        norms[batch, head] *= torch.linalg.matrix_norm(probs @ torch.linalg.qr(x).Q, ord=2).double()
    return norms


def _softmax(q: Tensor, k: Tensor, positions: Tensor, is_causal: bool) -> tuple[Tensor, Tensor]:
    logits = q @ k.T / math.sqrt(q.shape[1])
    if is_causal:
        hidden = torch.arange(k.shape[0], device=k.device) > positions.unsqueeze(1)
        logits.masked_fill_(hidden, -math.inf)
    lse = logits.logsumexp(dim=1)
    return logits.sub_(lse.unsqueeze(1)).exp_(), lse


def _each_head(q: Tensor, k: Tensor) -> Iterator[tuple[int, int, int]]:
    """Entry of the batch, head and kv head of every head of q."""
    group = q.shape[1] // k.shape[1]
    return ((batch, head, head // group) for batch in range(q.shape[0]) for head in range(q.shape[1]))


def _chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // num_columns)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))
