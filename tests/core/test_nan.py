"""A NaN reaches exactly the rows that meet it: none hides it, and it spreads no further."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core import AttentionPlan, exact_attention, hyper_attention, make_plan
from hyperattn_core.oracle import mean_key_matrices, weight_matrix
from hyperattn_core.planning.membership import membership
from tests.helpers.core_inputs import CHOICES, PAIRINGS, Case, cases, qkv, small_params
from tests.helpers.slow import slow

# Fewer keys than a vector register holds, more, and sizes beside those at which the fused kernel changes its ways.
LENGTHS = (1, 2, 5, 8, 15, 17, 31, 33, 64, 131, 530)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def poisoned(x: Tensor, row: int, column: int, value: float = math.nan, head: int = 0) -> Tensor:
    """x with one value of batch 0 replaced."""
    x = x.clone()
    x[0, head, row, column] = value
    return x


def not_finite(x: Tensor) -> Tensor:
    """True where x is NaN or infinite."""
    return ~x.isfinite()


def check_query(out: Tensor, lse: Tensor, row: int) -> None:
    """The whole of the query's own row of head 0, and nothing else."""
    expected = torch.zeros_like(lse, dtype=torch.bool)
    expected[0, 0, row] = True
    assert torch.equal(out.isnan(), expected.unsqueeze(3).expand_as(out))
    assert torch.equal(lse.isnan(), expected)


def check_key(out: Tensor, lse: Tensor, met: Tensor) -> None:
    """The whole of each row that meets the key (B, H, Nq), and nothing else."""
    assert torch.equal(out.isnan(), met.unsqueeze(3).expand_as(out))
    assert torch.equal(lse.isnan(), met)


def check_value(out: Tensor, lse: Tensor, met: Tensor, column: int, near: Tensor | None = None) -> None:
    """The value's own column of each row that meets it, and nothing else but perhaps of rows `near` those."""
    least, most = torch.zeros_like(out, dtype=torch.bool), torch.zeros_like(out, dtype=torch.bool)
    least[..., column], most[..., column] = met, met if near is None else met | near
    assert (not_finite(out) | ~least).all()
    assert (most | ~not_finite(out)).all()
    assert not not_finite(lse).any()


def met_through_means(plan: AttentionPlan) -> Tensor:
    """Keys (B, H, Nq, Nk) that are in a node of the query, where the node has a mean key."""
    met = torch.zeros(*plan.shape[:2], *plan.shape[3:], dtype=torch.bool)
    if plan.params.sampling != "truncated":
        return met
    has_weight = (mean_key_matrices(plan)[1] > 0).split([level.key_order.shape[2] for level in plan.levels], dim=3)
    for level, of_level in zip(plan.levels, has_weight, strict=True):
        for b, h in itertools.product(range(met.shape[0]), range(met.shape[1])):
            in_node = membership(plan, level, b, h).met(torch.arange(met.shape[2]))[1]
            met[b, h] |= in_node & of_level[b, h].any(1, keepdim=True)
    return met


def rows_that_meet(plan: AttentionPlan, key: int, kv_head: int = 0) -> Tensor:
    """Queries (B, H, Nq) with a weight for a key of batch 0."""
    met = weight_matrix(plan)[..., key] > 0
    group = plan.shape[1] // plan.shape[2]
    mine = torch.zeros_like(met)
    mine[0, kv_head * group : (kv_head + 1) * group] = True
    return met & mine


def rows_routed_with(plan: AttentionPlan, met: Tensor) -> Tensor:
    """Queries (B, H, Nq) that share their blocks with one of those that `met` marks."""
    near = torch.zeros_like(met)
    for level in plan.levels:
        for row in itertools.product(*map(range, level.tile_count.shape[:3])):
            order, found = level.query_order[row].long(), met[row[:2]]
            for first, count in zip(level.tile_first[row].tolist(), level.tile_count[row].tolist(), strict=True):
                queries = order[first : first + count]
                near[row[0], row[1], queries] |= found[queries].any()
    return near


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_exact_attention(length: int, is_causal: bool, dtype: torch.dtype) -> None:
    q, k, v = qkv(queries=length, heads=4, kv_heads=2, dim=7, dtype=dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = exact_attention(q, k, v, is_causal=is_causal, enable_gqa=True, return_lse=True)
        return out, lse

    for row in {0, length // 3, length - 1}:
        met = torch.zeros(1, 4, length, dtype=torch.bool)
        met[0, :2, row if is_causal else 0 :] = True
        check_query(*attend(poisoned(q, row, 3), k, v), row)
        check_key(*attend(q, poisoned(k, row, 3), v), met)
        for value in (math.nan, math.inf, -math.inf):
            check_value(*attend(q, k, poisoned(v, row, 3, value)), met, 3)


@pytest.mark.parametrize("dtype", [DTYPES[1], *slow(DTYPES[0], *DTYPES[2:])])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
@pytest.mark.parametrize(("length", "sizes"), [(40, (7, 5, 9)), *slow((61, (16, 16, 16))), (139, (16, 12, 33))])
def test_the_estimator(
    length: int, sizes: tuple[int, int, int], sampling: str, pairing: str, is_causal: bool, dtype: torch.dtype
) -> None:
    q, k, v = qkv(queries=length, heads=2, kv_heads=1, dim=7, dtype=dtype)
    block_size, sample_size, leaf = sizes
    params = small_params(sampling, pairing, block_size=block_size, sample_size=sample_size, min_seq_len=leaf)

    def attend(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor]:
        return hyper_attention(q, k, v, plan=plan, is_causal=is_causal, enable_gqa=True, return_lse=True)

    clean = make_plan(q, k, params, is_causal=is_causal)
    for row in (0, length // 3, length - 1):
        bad_q, bad_k = poisoned(q, row, 3), poisoned(k, row, 3)
        # A NaN in q or k takes part in the hash too, so the plan is its own.
        check_query(*attend(bad_q, k, v, make_plan(bad_q, k, params, is_causal=is_causal)), row)
        plan = make_plan(q, bad_k, params, is_causal=is_causal)
        check_key(*attend(q, bad_k, v, plan), rows_that_meet(plan, row))
        for value in (math.nan, math.inf, -math.inf):
            met = rows_that_meet(clean, row)
            near = rows_routed_with(clean, met) if pairing == "routed" else None
            check_value(*attend(q, k, poisoned(v, row, 3, value), clean), met, 3, near)


@settings(max_examples=80)
@given(cases(pairings=PAIRINGS), st.data())
def test_any_call_with_any_nans(case: Case, data: st.DataObject) -> None:
    q, k, v = (x.clone() for x in (case.q, case.k, case.v))
    batch, heads, kv_heads, num_queries, num_keys = (*q.shape[:2], k.shape[1], q.shape[2], k.shape[2])

    def rows(num_heads: int, length: int) -> list[tuple[int, int, int]]:
        place = st.tuples(st.integers(0, batch - 1), st.integers(0, num_heads - 1), st.integers(0, length - 1))
        return data.draw(st.lists(place, max_size=3))

    bad_queries, bad_keys, bad_values = rows(heads, num_queries), rows(kv_heads, num_keys), rows(kv_heads, num_keys)
    for x, places in ((q, bad_queries), (k, bad_keys), (v, bad_values)):
        for place in places:
            x[place] = math.nan
    plan = make_plan(q, k, case.params, case.seed, is_causal=case.is_causal, tile_size=case.tile_size)
    out, lse = hyper_attention(q, k, v, plan=plan, is_causal=case.is_causal, enable_gqa=True, return_lse=True)
    met, group = (weight_matrix(plan) > 0) | met_through_means(plan), heads // kv_heads
    lse_expected = torch.zeros_like(lse, dtype=torch.bool)
    for place in bad_queries:
        lse_expected[place] = True
    for b, h, j in bad_keys:
        lse_expected[b, h * group : (h + 1) * group] |= met[b, h * group : (h + 1) * group, :, j]
    out_expected = lse_expected.clone()
    for b, h, j in bad_values:
        out_expected[b, h * group : (h + 1) * group] |= met[b, h * group : (h + 1) * group, :, j]
    assert torch.equal(lse.isnan(), lse_expected)
    assert torch.equal(out.isnan(), out_expected.unsqueeze(3).expand_as(out))


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("length", [40, 139])
def test_the_gradient_of_a_nan_query_stays_with_what_it_meets(length: int, pairing: str) -> None:
    # No samples for keys it does not meet, and no empty tile that repeats it, may carry it further.
    q, k, v = qkv(queries=length, dim=7)
    for row in (0, length // 3, length - 1):
        inputs = [x.requires_grad_() for x in (poisoned(q, row, 3), k.clone(), v.clone())]
        plan = make_plan(inputs[0], inputs[1], small_params("iid", pairing, block_size=5))
        out = hyper_attention(*inputs, plan=plan)
        dq, dk, dv = torch.autograd.grad(out, inputs, torch.ones_like(out))
        met = weight_matrix(plan)[0, 0, row] > 0
        assert torch.equal(dq[0, 0].isnan().any(1), torch.arange(length) == row)
        assert torch.equal(dk[0, 0].isnan().any(1), met)
        assert torch.equal(dv[0, 0].isnan().any(1), met)
