"""Parameters of an input in the paper's theorem: alpha, kappa and the stable rank of D^-1 A, by streaming over rows.

Of one head with A = exp(s Q K^T) and D = diag(A 1):

    alpha = n max_j |D^-1 A e_j|_2^2
    kappa = max_i <1 - M_i, A_i> / min_i <1 - M_i, A_i>        M: the blocks that Algorithm 1 (sortLSH) finds
    stable rank = |D^-1 A|_F^2 / |D^-1 A|_op^2

Under a causal mask the first row of D^-1 A is (1, 0, ..., 0), so that alpha of the whole is at least n, whatever the
input. What Algorithm 4 approximates there is the part below the diagonal: taken is its largest node, the second half of
the queries over the first half of the keys, without a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams, make_plan
from hyperattn_core.planning.membership import membership
from hyperbench.measure.inputs import Inputs
from hyperbench.measure.worker.errors.reference import chunks, each_head
from hyperbench.measure.worker.errors.rows import Estimate

#: Blocks and projections of Algorithm 1, those of the paper's experiments; half of a short input stays unmasked.
BLOCK_SIZE = 256
_NUM_PROJECTIONS = 7
#: Lanczos' method ends where the residual is below this part of the eigenvalue, whose error is then far smaller.
_TOLERANCE = 1e-5
_MAX_STEPS = 60
#: Larger logarithms have no number.
_MAX_LOG = 709.0


def input_properties(inputs: Inputs, *, is_causal: bool, dtype: torch.dtype, seed: int) -> dict[str, Estimate]:
    """alpha, kappa and stable_rank of q (B, H, N, D) and k (B, Hkv, N, D), each the largest over the heads.

    They do not depend on v. The seed is that of Algorithm 1's hash. Under a causal mask they are those of the largest
    node of Algorithm 4.
    """
    q, k, _ = (x.to(dtype) for x in inputs)
    if is_causal:
        half = max(1, k.shape[2] // 2)
        q, k = q[:, :, -half:], k[:, :, :half]
    block_size = min(BLOCK_SIZE, max(1, k.shape[2] // 2))
    params = HyperAttentionParams(
        block_size=block_size, sample_size=1, num_projections=_NUM_PROJECTIONS, min_seq_len=1, sampling="iid",
        pairing="rank",
    )  # fmt: skip
    plan = make_plan(q, k, params, seed, backend="torch")
    found = []
    for batch, head, kv_head in each_head(q, k):
        in_block = None
        if plan.levels:
            in_block = membership(plan, plan.levels[0], batch, head).met
        found.append(_of_head(q[batch, head], k[batch, kv_head], in_block))
    names = ("alpha", "kappa", "stable_rank")
    return {name: Estimate(max(values)) for name, values in zip(names, zip(*found, strict=True), strict=True)}


def _of_head(
    q: Tensor, k: Tensor, met: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] | None
) -> tuple[float, float, float]:
    """alpha, kappa and stable rank of q (Nq, D) over k (Nk, D); without `met` the mask M covers everything."""
    num_keys, scale = k.shape[0], 1.0 / math.sqrt(k.shape[1])
    columns = torch.zeros(num_keys, dtype=torch.float64, device=k.device)
    lse = q.new_empty(q.shape[0])
    rest = torch.full_like(lse, -math.inf)
    for part in chunks(q.shape[0], num_keys):
        logits = q[part] @ k.T * scale
        lse[part] = logits.logsumexp(1)
        columns += (logits - lse[part, None]).exp_().square_().sum(0, dtype=torch.float64)
        if met is not None:
            positions = torch.arange(part.start, part.stop, device=q.device)
            rest[part] = logits.masked_fill_(met(positions)[0], -math.inf).logsumexp(1)

    def gram(x: Tensor) -> Tensor:
        """(D^-1 A)^T D^-1 A x, the rows of D^-1 A made anew."""
        x, total = x.to(q.dtype), torch.zeros_like(x)
        for part in chunks(q.shape[0], num_keys):
            probs = (q[part] @ k.T).mul_(scale).sub_(lse[part, None]).exp_()
            total += (probs.T @ (probs @ x)).double()
        return total

    largest = largest_eigenvalue(gram, torch.ones_like(columns))
    return num_keys * float(columns.max()), _ratio(rest), float(columns.sum()) / largest


def _ratio(logs: Tensor) -> float:
    """Largest over least of numbers (R,) given by their logarithms; of nothing but zeros it is one."""
    high, low = float(logs.max()), float(logs.min())
    if high == -math.inf:
        return 1.0
    return math.inf if high - low > _MAX_LOG else math.exp(high - low)


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The largest eigenvalue of a symmetric matrix x -> apply(x) without negative entries, x and start (N,) in float64.

    By Lanczos' method with full orthogonalisation. The eigenvector of such a matrix has no negative entries either, so
    that a start of ones is never orthogonal to it.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        x = apply(basis[-1])
        diagonal.append(float(basis[-1] @ x))
        known = torch.stack(basis)
        for _ in range(2):
            x = x - known.T @ (known @ x)
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        residual, value = float(x.norm()), float(values[-1])
        if residual * abs(float(vectors[-1, -1])) <= _TOLERANCE * value or len(basis) == min(_MAX_STEPS, len(start)):
            return value
        beside.append(residual)
        basis.append(x / residual)


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu"))
    side = torch.diag(torch.tensor(beside, dtype=torch.float64, device="cpu"), 1) if beside else 0.0
    return matrix + side + (side.T if isinstance(side, Tensor) else 0.0)
