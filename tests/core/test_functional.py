"""The public call: what it returns, and one clear line for what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hyperattn_core import HyperAttentionParams, exact_attention, hyper_attention, make_plan
from tests.helpers.core_inputs import CHOICES, assert_close, qkv, small_params

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHORT = HyperAttentionParams(8, 6, 3, 10_000, "iid", "bucket")
LONG = replace(SHORT, min_seq_len=5)


def refusal(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """The message of the ValueError, known to be one line."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("backend", ["auto", "torch", "oracle"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("params", [SHORT, LONG], ids=["exact", "estimate"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_has_the_dtype_of_q_and_lse_that_of_accumulation(
    dtype: torch.dtype, params: HyperAttentionParams, is_causal: bool, backend: str
) -> None:
    q, k, v = qkv(queries=40, batch=2, heads=4, kv_heads=2, dim=8, value_dim=5, dtype=dtype)
    call = {"params": params, "is_causal": is_causal, "enable_gqa": True, "backend": backend}
    out, lse = hyper_attention(q, k, v, return_lse=True, **call)  # type: ignore[call-overload]
    assert out.dtype == dtype
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert out.shape == (2, 4, 40, 5)
    assert lse.shape == (2, 4, 40)
    assert torch.equal(out, hyper_attention(q, k, v, **call))  # type: ignore[call-overload]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_every_backend_gives_the_same(sampling: str, pairing: str, is_causal: bool) -> None:
    q, k, v = qkv(queries=50, dim=4)
    results = [
        hyper_attention(
            q,
            k,
            v,
            params=small_params(sampling, pairing),
            is_causal=is_causal,
            seed=3,
            backend=backend,
            return_lse=True,
        )
        for backend in ("auto", "torch", "oracle")
    ]
    for out, lse in results[1:]:
        assert_close(out, results[0][0])
        assert_close(lse, results[0][1])


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_plan_stands_for_its_params_and_seed(is_causal: bool) -> None:
    q, k, v = qkv(queries=50)
    plan = make_plan(q, k, LONG, 7, is_causal=is_causal)
    direct = hyper_attention(q, k, v, params=LONG, seed=7, is_causal=is_causal)
    assert torch.equal(direct, hyper_attention(q, k, v, plan=plan, is_causal=is_causal))
    assert torch.equal(direct, hyper_attention(q, k, v, plan=plan, params=LONG, is_causal=is_causal))


def test_the_defaults_are_those_of_the_parameters_and_seed_zero() -> None:
    q, k, v = qkv(queries=2100, dim=4)
    assert torch.equal(hyper_attention(q, k, v), hyper_attention(q, k, v, params=HyperAttentionParams(), seed=0))
    assert not torch.equal(hyper_attention(q, k, v), hyper_attention(q, k, v, seed=1))


def test_the_default_scale_is_the_inverse_root_of_head_dim() -> None:
    q, k, v = qkv(queries=50, dim=16, value_dim=3)
    assert_close(hyper_attention(q, k, v, params=LONG), hyper_attention(q, k, v, params=LONG, scale=0.25))


def attend(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> object:
    """The estimator with parameters that leave short inputs approximate."""
    return hyper_attention(q, k, v, params=LONG, **kwargs)


@pytest.mark.parametrize("call", [attend, exact_attention], ids=["hyper_attention", "exact_attention"])
class TestBadTensors:
    """Shapes, dtypes and devices that do not fit."""

    @pytest.mark.parametrize("name", ["q", "k", "v"])
    @pytest.mark.parametrize("shape", [(40, 8), (1, 40, 8), (1, 1, 1, 40, 8), ()])
    def test_another_rank(self, call: Callable[..., object], name: str, shape: tuple[int, ...]) -> None:
        tensors = dict(zip("qkv", qkv(queries=40), strict=True)) | {name: torch.zeros(shape).double()}
        message = refusal(call, **tensors)
        assert message.startswith(f"{name} must be (batch, heads, seq_len, head_dim)")
        assert str(shape) in message

    @pytest.mark.parametrize("name", ["q", "k", "v"])
    @pytest.mark.parametrize("value", [None, [[1.0]], 3])
    def test_no_tensor(self, call: Callable[..., object], name: str, value: object) -> None:
        tensors: dict[str, object] = dict(zip("qkv", qkv(queries=40), strict=True)) | {name: value}
        assert f"{name} must be a tensor, got {type(value).__name__}" in refusal(call, **tensors)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
    def test_a_dtype_that_is_not_supported(self, call: Callable[..., object], dtype: torch.dtype) -> None:
        message = refusal(call, *(x.to(dtype) for x in qkv(queries=40, dtype=torch.float32)))
        assert message == f"q must be float16, bfloat16, float32 or float64, got {str(dtype).removeprefix('torch.')}"

    @pytest.mark.parametrize("name", ["k", "v"])
    def test_dtypes_that_differ(self, call: Callable[..., object], name: str) -> None:
        tensors = dict(zip("qkv", qkv(queries=40), strict=True))
        tensors[name] = tensors[name].float()
        assert refusal(call, **tensors) == f"q, k and v must share a dtype, got float64 for q and float32 for {name}"

    @pytest.mark.parametrize("name", ["k", "v"])
    def test_devices_that_differ(self, call: Callable[..., object], name: str) -> None:
        tensors = dict(zip("qkv", qkv(queries=40), strict=True))
        tensors[name] = tensors[name].to("meta")
        assert refusal(call, **tensors) == f"q, k and v must be on one device, got cpu for q and meta for {name}"

    @pytest.mark.parametrize(
        ("shapes", "words"),
        [
            ([(2, 1, 40, 8), (1, 1, 40, 8), (1, 1, 40, 8)], "share the batch size, got 2 for q and 1 for k"),
            ([(1, 1, 40, 8), (1, 1, 40, 8), (3, 1, 40, 8)], "share the batch size, got 1 for q and 3 for v"),
            ([(0, 1, 40, 8), (0, 1, 40, 8), (0, 1, 40, 8)], "batch must be at least 1, got 0"),
            ([(1, 0, 40, 8), (1, 0, 40, 8), (1, 0, 40, 8)], "heads must be at least 1, got 0 for q and 0 for k"),
            ([(1, 2, 40, 8), (1, 0, 40, 8), (1, 0, 40, 8)], "heads must be at least 1, got 2 for q and 0 for k"),
            ([(1, 1, 40, 8), (1, 1, 40, 9), (1, 1, 40, 8)], "q and k must share head_dim, got 8 and 9"),
            ([(1, 1, 40, 0), (1, 1, 40, 0), (1, 1, 40, 8)], "head_dim must be at least 1"),
            ([(1, 1, 40, 8), (1, 1, 40, 8), (1, 1, 40, 0)], "head_dim must be at least 1"),
            ([(1, 1, 40, 8), (1, 1, 40, 8), (1, 1, 39, 8)], "k and v must share heads and seq_len"),
            ([(1, 4, 40, 8), (1, 4, 40, 8), (1, 2, 40, 8)], "k and v must share heads and seq_len"),
            ([(1, 1, 40, 8), (1, 1, 0, 8), (1, 1, 0, 8)], "k has no rows"),
        ],
    )
    def test_shapes_that_do_not_fit(
        self, call: Callable[..., object], shapes: list[tuple[int, ...]], words: str
    ) -> None:
        assert words in refusal(call, *(torch.zeros(shape) for shape in shapes), enable_gqa=True)

    @pytest.mark.parametrize(("heads", "kv_heads"), [(3, 2), (2, 4), (5, 3)])
    def test_heads_that_kv_heads_do_not_divide(self, call: Callable[..., object], heads: int, kv_heads: int) -> None:
        tensors = qkv(queries=40, heads=heads, kv_heads=kv_heads)
        for enable_gqa in (False, True):
            message = refusal(call, *tensors, enable_gqa=enable_gqa)
            assert message == f"heads of q must be a multiple of kv_heads, got {heads} and {kv_heads}"

    def test_grouped_heads_must_be_asked_for(self, call: Callable[..., object]) -> None:
        message = refusal(call, *qkv(queries=40, heads=4, kv_heads=2))
        assert "q has 4 heads and k has 2" in message
        assert "enable_gqa=True" in message

    def test_a_causal_mask_needs_as_many_queries_as_keys(self, call: Callable[..., object]) -> None:
        message = refusal(call, *qkv(queries=40, keys=41), is_causal=True)
        assert message == "is_causal needs as many queries as keys, got 40 and 41"

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", True, [1.0]])
    def test_a_scale_that_is_no_finite_number(self, call: Callable[..., object], scale: object) -> None:
        message = refusal(call, *qkv(queries=40), scale=scale)
        assert message == f"scale must be a finite number or None, got {scale!r}"


class TestBadCalls:
    """Backends, seeds, parameters and plans that do not fit."""

    @pytest.mark.parametrize(("backend", "near"), [("troch", "torch"), ("orcale", "oracle"), ("Auto", "auto")])
    def test_an_unknown_backend_with_the_nearest_one(self, backend: str, near: str) -> None:
        message = refusal(attend, *qkv(queries=40), backend=backend)
        assert message.startswith("backend must be one of auto, torch, triton, oracle")
        assert repr(backend) in message
        assert f"did you mean {near!r}?" in message

    @pytest.mark.parametrize("backend", ["zzz", "", None, 3])
    def test_a_backend_like_none(self, backend: object) -> None:
        message = refusal(attend, *qkv(queries=40), backend=backend)
        assert message == f"backend must be one of auto, torch, triton, oracle, got {backend!r}"

    @pytest.mark.parametrize("seed", ["3", 1.5, None, True])
    @pytest.mark.parametrize("params", [SHORT, LONG], ids=["exact", "estimate"])
    def test_a_seed_that_is_no_integer(self, params: HyperAttentionParams, seed: object) -> None:
        message = refusal(hyper_attention, *qkv(queries=40), params=params, seed=seed)
        assert message == f"seed must be an integer, got {seed!r}"

    @pytest.mark.parametrize("params", [{"block_size": 8}, "paper", HyperAttentionParams])
    def test_params_of_another_kind(self, params: object) -> None:
        assert "params must be HyperAttentionParams" in refusal(hyper_attention, *qkv(queries=40), params=params)

    @pytest.mark.parametrize(
        "other",
        [
            {"queries": 41, "keys": 40},
            {"queries": 40, "keys": 41},
            {"queries": 40, "batch": 2},
            {"queries": 40, "heads": 4, "kv_heads": 2},
            {"queries": 40, "heads": 2, "kv_heads": 1},
        ],
    )
    def test_a_plan_for_other_shapes(self, other: dict[str, int]) -> None:
        q, k, _ = qkv(queries=40, heads=2)
        plan = make_plan(q, k, LONG)
        message = refusal(hyper_attention, *qkv(**{"heads": 2} | other), plan=plan, enable_gqa=True)  # type: ignore[arg-type]
        assert "plan was made for (batch, heads, kv_heads, queries, keys) = (1, 2, 2, 40, 40), got " in message

    @pytest.mark.parametrize("is_causal", [False, True])
    def test_a_plan_for_the_other_mask(self, is_causal: bool) -> None:
        q, k, v = qkv(queries=40)
        plan = make_plan(q, k, LONG, is_causal=is_causal)
        message = refusal(hyper_attention, q, k, v, plan=plan, is_causal=not is_causal)
        assert message == f"plan was made for is_causal={is_causal}, got is_causal={not is_causal}"

    def test_a_plan_with_other_params(self) -> None:
        q, k, v = qkv(queries=40)
        message = refusal(hyper_attention, q, k, v, plan=make_plan(q, k, LONG), params=SHORT)
        assert message.startswith("plan was made with HyperAttentionParams(")
        assert message.endswith("pass one of the two")

    def test_a_plan_on_another_device(self) -> None:
        tensors = qkv(queries=40)
        plan = make_plan(tensors[0], tensors[1], LONG)
        message = refusal(hyper_attention, *(x.to("meta") for x in tensors), plan=plan)
        assert message == "plan is on cpu, the inputs are on meta"

    @pytest.mark.parametrize("plan", [LONG, "plan", 3])
    def test_a_plan_of_another_kind(self, plan: object) -> None:
        message = refusal(hyper_attention, *qkv(queries=40), plan=plan)
        assert message == f"plan must be an AttentionPlan or None, got {type(plan).__name__}"


@pytest.mark.parametrize("is_causal", [False, True])
class TestPlansThatAreEqual:
    """plan == plan is a bool: the same choices, to the last number."""

    def test_made_twice(self, is_causal: bool) -> None:
        q, k, _ = qkv(queries=50)
        plans = [make_plan(q, k, LONG, 7, is_causal=is_causal) for _ in range(2)]
        assert (plans[0] == plans[1]) is True
        assert plans[0].levels == plans[1].levels
        assert len(set(plans)) == len({plan.levels[0] for plan in plans}) == 1

    def test_others(self, is_causal: bool) -> None:
        q, k, _ = qkv(queries=50)
        plan = make_plan(q, k, LONG, 7, is_causal=is_causal)
        *levels, last = plan.levels
        others: list[object] = [
            make_plan(q, k, LONG, 8, is_causal=is_causal),
            make_plan(q, k, replace(LONG, block_size=9), 7, is_causal=is_causal),
            make_plan(q, q, LONG, 7, is_causal=is_causal),
            make_plan(q, k, SHORT, 7, is_causal=is_causal),
            make_plan(q, k, LONG, 7, is_causal=is_causal, tile_size=3),
            make_plan(*(x[:, :, :49] for x in (q, k)), LONG, 7, is_causal=is_causal),
            replace(plan, levels=(*levels, replace(last, sample_weight=2 * last.sample_weight))),
            "plan",
            None,
        ]
        assert [plan == other for other in others] == [False] * len(others)
        assert plan.levels[0] != "level"

    def test_replaced_levels_count(self, is_causal: bool) -> None:
        q, k, v = qkv(queries=50)
        plan, other = (make_plan(q, k, LONG, seed, is_causal=is_causal) for seed in (7, 8))
        changed = replace(plan, levels=other.levels)
        out = hyper_attention(q, k, v, plan=changed, is_causal=is_causal)
        assert torch.equal(out, hyper_attention(q, k, v, plan=other, is_causal=is_causal))


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_integers_of_numpy(integer: Callable[[int], int]) -> None:
    q, k, v = qkv(queries=50)
    sizes = {"block_size": 8, "sample_size": 6, "num_projections": 3, "min_seq_len": 5}
    params = HyperAttentionParams(**{name: integer(value) for name, value in sizes.items()})
    assert params == HyperAttentionParams(**sizes)
    assert {type(getattr(params, name)) for name in sizes} == {int}
    plan = make_plan(q, k, params, integer(3), is_causal=np.bool_(True), tile_size=integer(16))  # type: ignore[arg-type]
    assert plan == make_plan(q, k, params, 3, is_causal=True, tile_size=16)
    assert type(plan.seed) is int
    scale = np.float32(0.5)
    out = hyper_attention(q, k, v, params=params, seed=integer(3), is_causal=np.bool_(True), scale=scale)  # type: ignore[call-overload]
    assert torch.equal(out, hyper_attention(q, k, v, params=params, seed=3, is_causal=True, scale=0.5))
    with pytest.raises(ValueError, match=r"block_size must be an integer of at least 1, got np.False_"):
        HyperAttentionParams(block_size=np.bool_(False))  # type: ignore[arg-type]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("sampling", "pairing"), CHOICES)
def test_draws_follow_the_place_in_the_batch_and_nothing_else_does(
    sampling: str, pairing: str, is_causal: bool
) -> None:
    """An entry draws its own samples: the same in a longer batch, others in another place."""
    q, k, v = qkv(queries=300, batch=3, heads=2, kv_heads=1)
    params = small_params(sampling, pairing)
    options: dict[str, Any] = {"params": params, "is_causal": is_causal, "enable_gqa": True}
    whole = hyper_attention(q, k, v, **options)
    for count in (1, 2):
        shorter = hyper_attention(*(x[:count] for x in (q, k, v)), **options)
        assert_close(shorter, whole[:count])
    moved = hyper_attention(*(x.flip(0) for x in (q, k, v)), **options).flip(0)
    assert_close(moved[1], whole[1])
    assert not torch.allclose(moved[0], whole[0])
    plans = [make_plan(*(x.roll(shift, 0) for x in (q, k)), params, is_causal=is_causal) for shift in (0, 1)]
    for one, other in zip(*(plan.levels for plan in plans), strict=True):
        assert torch.equal(one.key_order, other.key_order.roll(-1, 0))
        assert sampling == "probed" or torch.equal(one.sample_index, other.sample_index)
