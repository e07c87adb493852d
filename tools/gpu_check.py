"""Check of a method's kernels against the torch backend in seconds: `python -m tools.gpu_check hyper`.

Plans, outputs and gradients are compared at two lengths, with and without a mask, and the launch that made what is
wrong is named. Both backends attend at the plan of the torch backend, so that a wrong plan hides nothing behind it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperattn_core import AttentionPlan, HyperAttentionParams, hyper_attention, make_plan
from hyperattn_core.operators.implementations import implementation
from hyperattn_core.planning import draws

METHODS = {"hyper": HyperAttentionParams(), "hyper_paper": HyperAttentionParams.paper()}
SEQ_LENS = (5001, 16384)
#: In the interpreter, to try the check itself: lengths, and parameters that leave them approximate.
_SMALL_SEQ_LENS = (61, 90)
_SMALL: dict[str, Any] = {"block_size": 16, "sample_size": 24, "num_projections": 4, "min_seq_len": 40}
_HEADS, _HEAD_DIM = 2, 64
_DTYPE = torch.bfloat16
_SEED = 1
#: Relative errors in bfloat16, whose last bit is 0.004; a wrong launch is far off.
_TOLERANCE = 0.02
#: Samples may differ where rounding decides between a key and its neighbour.
_OTHER_SAMPLES = 0.01


def main(words: Sequence[str] | None = None) -> int:
    """Exit code: 0 right, 1 wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: small, in the interpreter")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write there as well what is said")
    args = parser.parse_args(words)
    params, lengths = METHODS[args.method], SEQ_LENS
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        params, lengths = replace(params, **_SMALL), _SMALL_SEQ_LENS
    lines, begun_s = [], time.monotonic()
    for seq_len in lengths:
        for is_causal in (False, True):
            where = f"{args.method}, n = {seq_len:,}, {'causal' if is_causal else 'not causal'}"
            lines += [f"{where}: {line}" for line in wrong_launches(params, seq_len, args.device, is_causal=is_causal)]
    lines.append(f"{args.method}: {'wrong' if lines else 'right'}, in {time.monotonic() - begun_s:.0f} s")
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(len(lines) > 1)


def wrong_launches(params: HyperAttentionParams, seq_len: int, device: str, *, is_causal: bool) -> list[str]:
    """A line for each part of the kernels' results that is not that of the torch backend; none if all is right."""
    q, k, v, grad_out = (_normal(seq_len, seed, device) for seed in range(4))
    q, k = _decided(q, params), _decided(k, params)
    tile_size = implementation("triton").default_tile_size(q.device, q.dtype, _HEAD_DIM)
    plan, ours = (
        make_plan(q, k, params, _SEED, is_causal=is_causal, tile_size=tile_size, backend=backend)
        for backend in ("torch", "triton")
    )
    found = list(_wrong_plan(ours, plan))
    expected = _passes(q.float(), k.float(), v.float(), grad_out.float(), plan, "torch")
    actual = _passes(q, k, v, grad_out, plan, "triton")
    is_sampled = _sampled(plan, device)
    everywhere = torch.ones_like(is_sampled)
    in_first_leaf = torch.arange(seq_len, device=device) < (plan.leaf_len or 0)
    rows = {"out": (in_first_leaf, ~in_first_leaf), "dq": (everywhere,), "dk": (is_sampled, ~is_sampled)}
    rows |= {"lse": rows["out"], "dv": rows["dk"]}
    forward = ("leaves or merge", "attend or merge" if is_causal else "attend")
    of_keys = ("samples, reduce or keys", "keys or leaves" if is_causal else "keys")
    launches = {"out": forward, "lse": forward, "dq": ("delta, queries or leaves",), "dk": of_keys, "dv": of_keys}
    for (name, mine), theirs in zip(actual.items(), expected.values(), strict=True):
        for part, launch in zip(rows[name], launches[name], strict=True):
            error = _relative_error(mine[:, :, part], theirs[:, :, part])
            if not error <= _TOLERANCE:
                found.append(f"{name} is off by {error:.3g} in {int(part.sum()):,} rows: look at {launch}")
    return found


def _wrong_plan(ours: AttentionPlan, theirs: AttentionPlan) -> list[str]:
    """Parts of our plan that differ."""
    found: dict[str, None] = {}
    for mine, other in zip(ours.levels, theirs.levels, strict=True):
        count = other.tile_count.sum(3, keepdim=True)
        covered = torch.arange(other.query_order.shape[3], device=count.device) < count
        orders = {
            "keys": (mine.key_order, other.key_order),
            "queries": (mine.query_order * covered, other.query_order * covered),
        }
        for side, (order, expected) in orders.items():
            if not torch.equal(order.sort(3).values, expected.sort(3).values):
                found[f"the order of {side} is no permutation: look at scan and scatter"] = None
            elif not torch.equal(order, expected):
                found[f"the order of {side} is another: look at hash, then scan and scatter"] = None
        if any(
            not torch.equal(getattr(mine, x), getattr(other, x)) for x in ("tile_first", "tile_count", "tile_block")
        ):
            found["tiles are others: look at pair"] = None
        if mine.sample_index.numel():
            differ = mine.sample_index != other.sample_index
            share = float(differ.double().mean())
            if not share <= _OTHER_SAMPLES:
                found[f"{100 * share:.3g} % of the samples are others: look at probe, draw and pair"] = None
            weights = (x.sample_weight.masked_fill(differ, 1.0) for x in (mine, other))
            if not (error := _relative_error(*weights)) <= _TOLERANCE:
                found[f"weights of samples are off by {error:.3g}: look at draw and pair"] = None
    return list(found)


def _passes(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, plan: AttentionPlan, backend: str) -> dict[str, Tensor]:
    """Output, log-sum-exp and gradients at a plan; each has the positions as its third dimension."""
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out, lse = hyper_attention(*inputs, plan=plan, is_causal=plan.is_causal, return_lse=True, backend=backend)
    grads = torch.autograd.grad(out, inputs, grad_out)
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(("dq", "dk", "dv"), grads, strict=True))}


def _normal(seq_len: int, seed: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, _HEADS, seq_len, _HEAD_DIM, generator=generator).to(device=device, dtype=_DTYPE)


def _decided(x: Tensor, params: HyperAttentionParams) -> Tensor:
    """x with each row whose hash hangs on rounding replaced by one whose does not."""
    directions = draws.projections(_SEED, x.shape[3], params.num_projections, str(x.device)).double()
    hangs = ((x.double() @ directions).abs().amin(3) < 1e-3 * x.double().norm(dim=3)).flatten()
    rows = x.flatten(0, 2)
    return torch.where(hangs.unsqueeze(1), rows[~hangs][0], rows).view(x.shape)


def _sampled(plan: AttentionPlan, device: str) -> Tensor:
    """Positions (Nk,) that some head's sample of some level holds."""
    found = torch.zeros(plan.shape[4], dtype=torch.bool, device=device)
    for level in plan.levels:
        found[level.key_order.gather(3, level.sample_index.long()).flatten().long()] = True
    return found


def _relative_error(mine: Tensor, theirs: Tensor) -> float:
    """|mine - theirs| / |theirs| in the Frobenius norm; zero where there is nothing to compare."""
    if not theirs.numel():
        return 0.0
    mine, theirs = mine.double(), theirs.double()
    return float((mine - theirs).norm() / theirs.norm().clamp(min=1e-30))


if __name__ == "__main__":
    sys.exit(main())
