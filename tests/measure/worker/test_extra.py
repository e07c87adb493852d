"""What error.extra adds to a point: by head, over seeds, of the denominator; and that nothing is missed or repeated."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.config.types import EXTRA_ERRORS
from hyperbench.measure import work_items
from hyperbench.measure.worker.errors.extra import bias_errors, denominator_errors, head_errors
from hyperbench.measure.worker.errors.reference import Reference, make_reference
from tests.helpers.brute_force import attention, drawn, probabilities
from tests.helpers.measured_group import HYPER, Measured, item, odd

SHAPE = (2, 4, 2, 40, 8)
Q, K, V, G = drawn(*SHAPE)
EXACT = attention(Q, K, V, False)
RECALL = {"mass_blocks", "mass_sample", "mass_random_blocks", "mass_best"}
DENOMINATOR = {"den_rel_p50", "den_rel_p90", "den_rel_p99"}
#: Rows that only methods with a plan or a log-sum-exp have.
SOME = {*RECALL, "mass_leaf", *DENOMINATOR, "lse_mean_abs", work_items.CAUSAL_IN_Q}
TARGET = "hyperbench.measure.methods.hyper.hyper"


def reference(num_rows: int = 1000) -> Reference:
    """The reference of the inputs, without a mask."""
    return make_reference(
        (Q, K, V), None, is_causal=False, num_rows=num_rows, dtype=torch.float64, operator_norm=False, seed=0
    )


def noise(seed: int) -> Tensor:
    """Gaussian noise in the shape of the output."""
    return torch.randn(EXACT.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_errors_of_heads_are_those_of_each_head_alone() -> None:
    factors = torch.tensor([0.9, 1.0, 1.5, 0.6], dtype=torch.float64).reshape(1, 4, 1, 1)
    found = head_errors(factors * EXACT, reference())
    assert [float(found[work_items.head_metric(h)]) for h in range(4)] == pytest.approx([0.1, 0.0, 0.5, 0.4])
    assert found["out_rel_fro_head_median"] == pytest.approx(0.25)
    assert found["out_rel_fro_head_max"] == pytest.approx(0.5)
    part = head_errors(factors * EXACT + 0.1 * noise(0), reference(9))
    for error in part.values():
        assert error.low is not None
        assert error.high is not None
        assert error.low <= error <= error.high


def test_errors_of_the_denominator_are_relative_errors_of_row_sums() -> None:
    lse = probabilities(Q, K, False)[1]
    assert {float(x) for x in denominator_errors(lse, reference()).values()} == {0.0}
    found = denominator_errors(lse + torch.log(torch.tensor(1.5)), reference())
    assert list(found.values()) == pytest.approx([0.5] * 3)
    factors = 1.0 + torch.linspace(-0.5, 0.5, lse.numel()).reshape(lse.shape)
    p50, p90, p99 = denominator_errors(lse + factors.log(), reference()).values()
    assert (p50, p90, p99) == pytest.approx((0.25, 0.45, 0.495), abs=0.01)


def test_bias_is_what_draws_have_in_common_and_the_rest_is_spread() -> None:
    whole = float(EXACT.norm())
    shifted = EXACT + 0.3 * noise(9)
    found = bias_errors([shifted] * 3, reference())
    assert found["out_bias_rel_fro"] == pytest.approx(float((shifted - EXACT).norm()) / whole)
    assert found["out_std_rel_fro"] == pytest.approx(0.0, abs=1e-12)
    # Unbiased draws: their mean is off by noise alone, which is no bias.
    found = bias_errors([EXACT + noise(seed) for seed in range(4)], reference())
    assert found["out_std_rel_fro"] == pytest.approx(float(noise(0).norm()) / whole, rel=0.05)
    assert found["out_bias_rel_fro"] < 0.1 * found["out_std_rel_fro"]
    squares = [found["out_bias_rel_fro"] ** 2 for found in (
        bias_errors([shifted + noise(10 * i + j) for j in range(2)], reference()) for i in range(1, 30)
    )]  # fmt: skip
    assert sum(squares) / len(squares) == pytest.approx((float((shifted - EXACT).norm()) / whole) ** 2, rel=0.3)


def test_one_answer_is_all_bias() -> None:
    found = bias_errors([1.2 * EXACT], reference())
    assert found["out_bias_rel_fro"] == pytest.approx(0.2)
    assert found["out_std_rel_fro"] == 0.0


def measured(*extra: str, finished: set[work_items.Key] | None = None, **options: Any) -> Measured:
    """hyper and an exact method, forward pass only, with these further measures."""
    items = [item(TARGET, hyper=HYPER, **options), odd("exact", exact=True, **options)]
    return Measured(*items, passes=("forward",), error={"extra": extra}, finished=finished or set())


@pytest.mark.parametrize("is_causal", [False, True])
def test_every_measure_is_there_for_every_method_that_has_it(is_causal: bool) -> None:
    found = measured(*EXTRA_ERRORS, is_causal=is_causal)
    assert found.expected <= set(found.keys)
    hyper, exact = (found.errors(name) for name in ("hyper", "exact"))
    assert all(row.status == "ok" for row in (*hyper.values(), *exact.values()))
    leaf = {"mass_leaf"} if is_causal else set()
    assert set(hyper) >= RECALL | DENOMINATOR | leaf
    assert not set(exact) & SOME - {work_items.CAUSAL_IN_Q}
    for name in ("alpha", "kappa", "stable_rank"):
        assert hyper[name].value == exact[name].value
    assert hyper["out_rel_fro_head_max"].value == max(hyper[f"out_rel_fro_head{h}"].value or 0.0 for h in range(2))
    assert hyper["out_bias_rel_fro"].value == found.errors("hyper", 1)["out_bias_rel_fro"].value
    assert (hyper["out_std_rel_fro"].value or 0.0) > 0.0
    assert (exact["out_std_rel_fro"].value, exact["out_bias_rel_fro"].value) == (0.0, pytest.approx(0.0, abs=1e-5))


def test_without_being_asked_nothing_more_is_measured() -> None:
    found = measured()
    assert {metric for name in ("hyper", "exact") for metric in found.errors(name)} <= {
        "out_rel_fro", "out_max_abs", "out_row_rel_p50", "out_row_rel_p90", "out_row_rel_p99", "out_rel_op",
        "lse_mean_abs", "mean_v_rel_fro", "zero_rel_fro",
    }  # fmt: skip


def test_a_measure_that_is_missing_is_made_for_its_seed_alone_and_is_the_same_as_before() -> None:
    whole = measured(*EXTRA_ERRORS)
    lost = {key for key in whole.keys if key[1:] in ((1, "out_bias_rel_fro"), (1, "alpha"))}
    assert len(lost) == 2
    again = measured(*EXTRA_ERRORS, finished=set(whole.keys) - lost)
    assert {key[1] for key in again.keys} == {1}
    for metric, row in again.errors("hyper", 1).items():
        assert row.value == whole.errors("hyper", 1)[metric].value
    assert measured(*EXTRA_ERRORS, finished=set(whole.keys)).records == []


def test_a_point_that_failed_owes_none_of_them() -> None:
    error = dataclasses.replace(measured().task.error, extra=EXTRA_ERRORS)
    one = odd("exact", heads=3, kv_heads=1)
    metrics = work_items.expected_metrics(one.point, ("forward",), error)
    assert len(set(metrics)) == len(metrics)
    assert {"alpha", "kappa", "stable_rank", "out_bias_rel_fro", "out_std_rel_fro", "out_rel_fro_head2"} <= set(metrics)
    assert not set(metrics) & SOME
    failure = work_items.Failure(work_items.Status.ERROR, "why")
    records = work_items.failed_records(one.only(seeds=(0,)), ("forward",), error, "quick", 0, failure)
    assert [record.metric for record in records] == list(metrics)  # type: ignore[union-attr]
