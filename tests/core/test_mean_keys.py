"""Mean keys of truncated sampling: their gradients, what they are worth, and which rows meet them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hyperattn_core import HyperAttentionParams, hyper_attention, make_plan, oracle_attention
from hyperattn_core.functional import attention_stages
from hyperattn_core.oracle import weight_matrix
from tests.helpers.core_inputs import (
    assert_close,
    normal,
    plain_attention,
    qkv,
    relative_error,
    small_params,
    with_gradients,
)

PARAMS = small_params("truncated", "bucket", min_seq_len=16)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pairing", ["bucket", "routed"])
def test_gradients_at_a_plan_are_those_of_the_oracle(pairing: str, is_causal: bool) -> None:
    q, k, v = qkv(queries=101, heads=4, kv_heads=2, batch=2, value_dim=5)
    # A key that draws all queries is certain.
    q[..., 0], k[:, :, 2, 0] = 9.0, 9.0
    plan = make_plan(q, k, small_params("truncated", pairing, min_seq_len=16), is_causal=is_causal)
    assert any(bool((level.sample_weight == 1.0).any()) for level in plan.levels)
    found = with_gradients(lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal, enable_gqa=True), (q, k, v))
    wanted = with_gradients(lambda *x: oracle_attention(*x, plan)[0], (q, k, v))
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, 1e-9)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_gradient_is_that_of_the_function(is_causal: bool) -> None:
    q, k, v = (x.requires_grad_() for x in qkv(queries=40, dim=3))
    plan = make_plan(q, k, PARAMS, is_causal=is_causal)
    assert torch.autograd.gradcheck(
        lambda *x: hyper_attention(*x, plan=plan, is_causal=is_causal, return_lse=True), (q, k, v)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_causal", [False, True])
def test_half_precision_is_rounded_at_the_end(dtype: torch.dtype, is_causal: bool) -> None:
    q, k, v = qkv(queries=203, dim=16, heads=2, dtype=dtype)
    plan = make_plan(q, k, PARAMS, is_causal=is_causal)
    out = hyper_attention(q, k, v, plan=plan, is_causal=is_causal)
    assert out.dtype == dtype
    assert relative_error(out, oracle_attention(q, k, v, plan)[0]) < 2 * torch.finfo(dtype).eps


def test_the_mean_key_stands_for_what_samples_lack_of_the_number_of_keys() -> None:
    """Without logits the sum of a row's weights is the number of keys, up to a sample in its own block."""
    q, k, v = torch.zeros(1, 1, 400, 8, dtype=torch.float64), *qkv(queries=400)[1:]
    plan = make_plan(q, k, replace(PARAMS, block_size=1))
    _, lse = hyper_attention(q, k, v, plan=plan, return_lse=True)
    assert float(weight_matrix(plan).sum(3).max()) <= 1 + 4.0 * PARAMS.sample_size  # of 400, without the mean key
    assert float((lse.exp() - 400).abs().max()) <= 4.0


@pytest.mark.parametrize("is_causal", [False, True])
def test_where_there_is_nothing_to_find_the_error_is_lower_than_with_unbiased_samples(is_causal: bool) -> None:
    q, k, v = qkv(queries=1024, heads=4, dim=32, dtype=torch.float32)
    exact, _ = plain_attention(*(x.double() for x in (q, k, v)), is_causal=is_causal)
    params = HyperAttentionParams(32, 32, min_seq_len=128)
    probed, truncated = (
        relative_error(hyper_attention(q, k, v, params=replace(params, sampling=sampling), is_causal=is_causal), exact)
        for sampling in ("probed", "truncated")
    )
    assert truncated < 0.7 * probed


def test_a_call_without_a_sample_that_lacks_anything_is_as_with_probed_samples() -> None:
    """All keys in one block, or sampled."""
    q, k, v = qkv(queries=60)
    for changes in ({"block_size": 60}, {"sample_size": 60}):
        one, other = (
            hyper_attention(q, k, v, params=small_params(sampling, "bucket", min_seq_len=30, **changes), is_causal=True)
            for sampling in ("truncated", "probed")
        )
        assert torch.equal(one, other)


@pytest.mark.parametrize("where", ["key", "value"])
def test_a_nan_reaches_the_queries_of_its_nodes_and_no_earlier_row(where: str) -> None:
    q, k, v = qkv(queries=96)
    (k if where == "key" else v)[0, 0, 20] = torch.nan
    out = hyper_attention(q, k, v, params=PARAMS, is_causal=True)[0, 0]
    # Nodes of 16 keys from 16 on are met by the leaf's own rows alone, of 32 from 0 on by rows 32 to 63, and so on.
    is_nan = out.isnan().any(1)
    assert not bool(is_nan[:20].any())
    assert bool(is_nan[20:32].all())
    assert bool(is_nan[32:].all())


def test_the_stages_end_with_the_mean_keys() -> None:
    q, k, v = qkv(queries=96)
    for is_causal, names in ((False, ["attend"]), (True, ["attend", "leaves", "merge"])):
        stages = attention_stages(q, k, v, params=PARAMS, is_causal=is_causal)
        assert list(stages) == ["hash", "probe", "sort", "sample", *names, "mean_keys"]


def test_parts_of_a_batch_do_not_depend_on_one_another() -> None:
    q, k, v = qkv(queries=70, batch=2, heads=2)
    changed = normal(1, 2, 70, 8, seed=9)
    other = (torch.cat([x[:1], changed]) for x in (q, k, v))
    one, two = (hyper_attention(*x, params=PARAMS, is_causal=True) for x in ((q, k, v), other))
    assert torch.equal(one[0], two[0])
