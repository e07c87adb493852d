"""HyperAttention as its theorem states it: Algorithms 1 to 3 with tau, caps and row-norm sampling, in plain PyTorch.

Written to be read beside the paper, not to be fast. It is no attention in the usual sense: the row sums D' and the
product A V are estimated from two samples that have nothing to do with each other, so that the weights of a row need
not add up to one. Names of constants and conditions are recalled from the paper, not checked against its text.
"""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, make_plan
from hyperattn_core.planning.membership import Membership, membership

#: The logarithm of nothing, finite so that its gradient is zero and not NaN.
_NOTHING = -1e30


class Settings(NamedTuple):
    """Parameters: b and r of the hash, m samples, the accuracy epsilon, the bound kappa on ratios of row sums."""

    block_size: int = 256
    sample_size: int = 256
    num_projections: int = 7
    epsilon: float = 1.0
    kappa_bound: float = 16.0


class HyperTheory:
    """Algorithm 3 of the paper: D' by Algorithm 2, A V by samples of the rows of V; no causal form."""

    causal = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0, **settings: Any) -> Tensor:
        """The estimate D'^-1 A S^T S V (B, H, N, Dv), from q (B, H, N, D), k and v (B, Hkv, N, D).

        The gradient is that of the estimate with its masks and samples held fixed. Raises NotImplementedError under a
        causal mask.
        """
        return _attend(q, k, v, Settings(**settings), seed, is_causal)[0]

    def with_lse(
        self, q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool, seed: int = 0, **settings: Any
    ) -> tuple[Tensor, Tensor]:
        """The same, with log D' (B, H, N)."""
        return _attend(q, k, v, Settings(**settings), seed, is_causal)

    def plan(self, q: Tensor, k: Tensor, *, is_causal: bool, seed: int = 0, **settings: Any) -> AttentionPlan:
        """The blocks of Algorithm 1 and the keys from which Algorithm 2 estimates row sums."""
        return _plan(q, k, Settings(**settings), seed, is_causal)

    def defaults(self) -> dict[str, Any]:
        """The value of every parameter that is not given."""
        return {**Settings()._asdict(), "seed": 0}

    def check(self, hyper: dict[str, Any]) -> None:
        """Raise ValueError on a parameter out of its range."""
        settings = Settings(**{name: value for name, value in hyper.items() if name != "seed"})
        _params(settings)
        for name, is_good, allowed in (
            ("epsilon", lambda x: 0.0 < x < math.inf, "above 0"),
            ("kappa_bound", lambda x: 1.0 <= x < math.inf, "of at least 1"),
        ):
            value = getattr(settings, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not is_good(value):
                raise ValueError(f"{name}={value} must be a finite number {allowed}")


def _plan(q: Tensor, k: Tensor, settings: Settings, seed: int, is_causal: bool) -> AttentionPlan:
    if is_causal:
        raise NotImplementedError("hyper_theory has no causal form: Algorithm 4 is not written out here")
    return make_plan(q.detach(), k.detach(), _params(settings), seed)


def _params(settings: Settings) -> HyperAttentionParams:
    block_size, sample_size, num_projections = settings[:3]
    return HyperAttentionParams(block_size, sample_size, num_projections, 1, sampling="iid", pairing="rank")


def _attend(q: Tensor, k: Tensor, v: Tensor, settings: Settings, seed: int, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Algorithm 3: the output (B, H, N, Dv) in the dtype of q, and log D' (B, H, N)."""
    plan = _plan(q, k, settings, seed, is_causal)
    generator = torch.Generator(device="cpu").manual_seed(random.Random(f"{seed}/theory").getrandbits(63))
    dtype, group = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
    outs, lses = [], []
    for batch in range(q.shape[0]):
        for head in range(q.shape[1]):
            one = q[batch, head].to(dtype) / math.sqrt(q.shape[3])
            keys, values = (x[batch, head // group].to(dtype) for x in (k, v))
            member = membership(plan, plan.levels[0], batch, head) if plan.levels else None
            sampled = plan.levels[0].sample_index[batch, head // group, 0] if plan.levels else None
            if member is None or sampled is None:
                # One block holds every key.
                lse = (one @ keys.T).logsumexp(1)
            else:
                order = plan.levels[0].key_order[batch, head // group, 0].long()
                lse = approx_d(one, keys, member, order[sampled.long()], settings, generator)
            chosen, weights = sample_rows(values, settings.sample_size, generator)
            # S^T S keeps the sampled rows of V, each with the inverse of m times its probability.
            outs.append((one @ keys[chosen].T - lse.unsqueeze(1)).exp() @ (weights.unsqueeze(1) * values[chosen]))
            lses.append(lse)
    out = torch.stack(outs).unflatten(0, q.shape[:2]).to(q.dtype)
    return out, torch.stack(lses).unflatten(0, q.shape[:2])


def approx_d(
    q: Tensor, k: Tensor, member: Membership, sampled: Tensor, settings: Settings, generator: torch.Generator
) -> Tensor:
    """Algorithm 2 (ApproxD) of one head, in logarithms: log D' (N,) from q (N, D), which holds the scale, and k (N, D).

    `member` is the mask M of Algorithm 1, `sampled` (m,) the uniform draws l_1 ... l_m. In the order of the paper:

        tau = max over m random queries j of <1 - M_j, A_j>
        C_i = eps^2 m / (n log n) (<M_i, A_i> + tau / kappa)          (the constant in its Theta taken as one)
        d_i = n / m sum_j (1 - M_i,l_j) min(A_i,l_j, C_i)
        D'_ii = <M_i, A_i> + max(d_i, tau / kappa)
    """
    count, num_samples = k.shape[0], len(sampled)
    picked = torch.randperm(count, generator=generator, device="cpu")[:num_samples].to(q.device)
    rest = (q[picked] @ k.T).masked_fill(member.met(picked)[0], _NOTHING)
    floor = rest.logsumexp(1).max() - math.log(settings.kappa_bound)
    masked = _block_sums(q, k, member)
    share = settings.epsilon**2 * num_samples / (count * max(math.log(count), 1.0))
    cap = math.log(share) + torch.logaddexp(masked, floor)
    logits = torch.minimum(q @ k[sampled].T, cap.unsqueeze(1))
    in_block = member.key_block[sampled] == member.query_blocks
    estimated = math.log(count / num_samples) + logits.masked_fill(in_block, _NOTHING).logsumexp(1)
    return torch.logaddexp(masked, torch.maximum(estimated, floor))


def _block_sums(q: Tensor, k: Tensor, member: Membership) -> Tensor:
    """log <M_i, A_i> (N,): the log-sum-exp of every query over the keys of its block."""
    order, sums = [], []
    for block in range(member.num_blocks):
        queries, keys = ((x == block).nonzero().squeeze(1) for x in (member.query_blocks[:, 0], member.key_block))
        order.append(queries)
        sums.append((q[queries] @ k[keys].T).logsumexp(1))
    return torch.cat(sums)[torch.cat(order).argsort()]


def sample_rows(v: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of v (N, Dv) drawn by their squared norms (Lemma 2): indices (m,) and weights 1 / (m p) (m,).

    p_j = |v_j|^2 / |V|_F^2; with weights w, the sum of w x_j v_j over the draws has the mean sum_j x_j v_j. The
    samples are held fixed: no gradient flows through p. Where all of v is zero they are uniform.
    """
    squares = v.detach().double().square().sum(1).cpu()
    if float(squares.sum()) == 0.0:
        squares = torch.ones_like(squares)
    chances = squares / squares.sum()
    drawn = torch.multinomial(chances, count, replacement=True, generator=generator)
    return drawn.to(v.device), (1.0 / (count * chances[drawn])).to(device=v.device, dtype=v.dtype)


hyper_theory = HyperTheory()
