"""Edges of the kernels that no list of calls reaches: memory, layouts, limits, NaNs, and calls at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperattn_core import AttentionPlan, exact_attention, hyper_attention, make_plan, oracle_attention
from hyperattn_core.oracle import weight_matrix
from hyperattn_core.planning.plan import plan_shape
from hyperattn_core.triton_backend.geometry import geometry
from hyperattn_core.triton_backend.packing import pack
from tests.helpers.slow import slow
from tests.helpers.triton_inputs import Call, normal

TOLERANCE = 2e-5
both_masks = pytest.mark.parametrize("is_causal", [False, True])
SHORT = {"block_size": 8, "sample_size": 6, "num_projections": 3, "min_seq_len": 20}


def attend(call: Call, plan: AttentionPlan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the kernels at a plan."""
    return hyper_attention(
        *tensors, plan=plan, is_causal=call.is_causal, scale=call.scale, enable_gqa=True, return_lse=True,
        backend="triton",
    )  # fmt: skip


def assert_near(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Within the rounding of float32."""
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result.double(), right, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.fixture
def full_memory() -> Iterator[None]:
    """New tensors begin full of NaN, or of the largest integer, so that what nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@both_masks
@pytest.mark.usefixtures("full_memory")
class TestMemory:
    """Every number of every buffer is written before it is read."""

    def test_of_a_plan(self, is_causal: bool) -> None:
        for pairing in ("rank", "bucket"):
            call = Call(queries=70, heads=2, kv_heads=1, is_causal=is_causal, params=SHORT | {"pairing": pairing})
            packed = pack(call.plan("triton"))
            first = geometry(plan_shape(*call.inputs()[:2]), packed.settings).levels[0].query_order
            assert int(packed.data[first:].min()) >= 0
            assert int(packed.data[first:].max()) <= 70
            assert not packed.data[:first].view(torch.float32).isnan().any()
            assert packed.weights.isfinite().all()

    def test_of_a_call_and_its_gradients(self, is_causal: bool) -> None:
        call = Call(queries=50, heads=2, kv_heads=1, is_causal=is_causal, params=SHORT)
        inputs = [x.requires_grad_() for x in call.inputs()]
        results = attend(call, call.plan(), *inputs)
        grads = torch.autograd.grad(results, inputs, [torch.ones_like(x) for x in results])
        assert all(x.isfinite().all() for x in (*results, *grads))


def columns_first(x: Tensor) -> Tensor:
    """Columns further apart than rows."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def every_second_column(x: Tensor) -> Tensor:
    """Columns with a gap between them."""
    return x.repeat_interleave(2, dim=3)[..., ::2]


def first_head_for_all(x: Tensor) -> Tensor:
    """Every batch and head at the same memory."""
    return x[:1, :1].expand_as(x)


@both_masks
@pytest.mark.parametrize("layout", [*slow(columns_first), every_second_column, *slow(first_head_for_all)])
def test_layouts(layout: Callable[[Tensor], Tensor], is_causal: bool) -> None:
    call = Call(queries=33, batch=2, heads=2, is_causal=is_causal, params=SHORT)
    inputs = [layout(x).requires_grad_() for x in call.inputs()]
    copies = [x.detach().double().contiguous().requires_grad_() for x in inputs]
    plan = make_plan(*inputs[:2], call.parameters(), is_causal=is_causal, tile_size=16, backend="triton")
    results, expected = attend(call, plan, *inputs), oracle_attention(*copies, plan)
    assert_near(results, expected)
    weight = layout(normal(*results[0].shape, seed=5))
    assert_near(
        torch.autograd.grad(results[0], inputs, weight), torch.autograd.grad(expected[0], copies, weight.double())
    )


@pytest.mark.parametrize("changes", [{"block_size": 64}, {"sample_size": 64}], ids=str)
def test_levels_whose_every_key_is_met_once_are_exact(changes: dict[str, int]) -> None:
    call = Call(queries=70, is_causal=True, params=SHORT | changes)
    q, k, v = call.inputs()
    out, lse = exact_attention(q.double(), k.double(), v.double(), is_causal=True, return_lse=True)
    assert_near(attend(call, call.plan("triton"), q, k, v), (out, lse))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_of_zeros_of_nans_and_all_alike_hash_as_in_pytorch(dtype: torch.dtype) -> None:
    call = Call(queries=70, is_causal=True, dtype=dtype, params=SHORT)
    q, k, _ = (x.clone() for x in call.inputs())
    q[..., ::7, :], k[..., ::5, :] = 0.0, -0.0
    q[..., 3, 2], k[..., 31, 15] = math.nan, math.nan
    q[..., 50:, :] = k[..., 50:, :] = q[..., 1:2, :]
    plans = (
        make_plan(q, k, call.parameters(), 3, is_causal=True, tile_size=16, backend=b) for b in ("triton", "torch")
    )
    assert torch.equal(*(weight_matrix(plan) for plan in plans))


@both_masks
@pytest.mark.parametrize("dtype", [*slow(torch.float16), torch.bfloat16])
def test_an_infinite_value_reaches_its_column_of_the_rows_that_meet_it(dtype: torch.dtype, is_causal: bool) -> None:
    call = Call(queries=70, heads=4, kv_heads=2, dim=7, is_causal=is_causal, dtype=dtype, params=SHORT)
    q, k, v = (x.clone() for x in call.inputs())
    v[0, 0, 45, 3] = math.inf
    plan = call.plan()
    out, lse = attend(call, plan, q, k, v)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[0, :2, :, 3] = weight_matrix(plan)[0, :2, :, 45] > 0
    assert expected.any()
    assert torch.equal(~out.isfinite(), expected)
    assert lse.isfinite().all()


@pytest.mark.parametrize("pairing", ["rank", "bucket"])
def test_the_gradient_of_a_nan_query_stays_with_what_it_meets(pairing: str) -> None:
    call = Call(queries=70, dim=7, params=SHORT | {"block_size": 5, "pairing": pairing})
    q, k, v = (x.clone() for x in call.inputs())
    q[0, 0, 23, 3] = math.nan
    inputs = [x.requires_grad_() for x in (q, k, v)]
    plan = make_plan(q, k, call.parameters(), 3, tile_size=16, backend="triton")
    out, _ = attend(call, plan, *inputs)
    dq, dk, dv = torch.autograd.grad(out, inputs, torch.ones_like(out))
    met = weight_matrix(plan)[0, 0, 23] > 0
    assert torch.equal(dq[0, 0].isnan().any(1), torch.arange(70) == 23)
    assert torch.equal(dk[0, 0].isnan().any(1), met)
    assert torch.equal(dv[0, 0].isnan().any(1), met)


@both_masks
def test_a_second_derivative_is_refused_rather_than_wrong(is_causal: bool) -> None:
    call = Call(queries=30, is_causal=is_causal, params=SHORT)
    inputs = [x.requires_grad_() for x in call.inputs()]
    out, _ = attend(call, call.plan(), *inputs)
    (gradient,) = torch.autograd.grad(out.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="derivative"):
        gradient.sum().backward()


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Any small call in float32, of shapes and parameters that divide nothing in particular."""
    keys = draw(st.integers(2, 80))
    is_causal = draw(st.booleans())
    kv_heads = draw(st.integers(1, 2))
    return Call(
        queries=keys if is_causal else draw(st.integers(1, 80)),
        keys=keys,
        is_causal=is_causal,
        heads=kv_heads * draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=draw(st.integers(1, 33)),
        value_dim=draw(st.integers(1, 33)),
        scale=draw(st.sampled_from((None, -0.4, 0.7))),
        tile_size=draw(st.sampled_from((3, 16, 40))),
        transposed=draw(st.booleans()),
        params={
            "block_size": draw(st.integers(1, 40)),
            "sample_size": draw(st.integers(1, 40)),
            "num_projections": draw(st.integers(1, 9)),
            # Leaves of a few positions make many levels, which the interpreter is slow at.
            "min_seq_len": draw(st.integers(-(-keys // 8), 40)),
            "sampling": draw(st.sampled_from(("iid", "stratified", "probed", "truncated"))),
            "num_probes": 1,
            "pairing": draw(st.sampled_from(("rank", "bucket"))),
        },
    )


@settings(max_examples=8)
@given(calls())
def test_any_call_agrees_with_the_oracle(call: Call) -> None:
    tensors = call.inputs()
    plan = call.plan("triton")
    assert_near(attend(call, plan, *tensors), oracle_attention(*tensors, plan, call.scale))
