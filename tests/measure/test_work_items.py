"""The grid: groups that share a reference, what is still to do, what fails, what it costs, what is not tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.config.types import ErrorConfig
from hyperbench.measure import work_items
from hyperbench.measure.runner.estimate import estimate_s
from hyperbench.store.schema import ErrorRow, Pass, Point, Record, Status, Timing
from tests.helpers.made_records import a_point
from tests.helpers.made_runs import HYPER_DEFAULTS, prepared, tiny

PASSES = ("forward", "backward", "forward_backward")
ERROR = ErrorConfig(seeds=(0, 1), rows=8, grad_max_seq_len=None, operator_norm_max_seq_len=512, float64_max_seq_len=0)
RANDOMISED = a_point(hyper={"seed": 0, "block_size": 16}, seq_len=64)
EXACT = a_point(method="math", hyper={}, seq_len=64)


def remaining(
    point: Point, round_: int = 0, done: Iterable[Record] = (), passes: tuple[str, ...] = PASSES, **changes: Any
) -> work_items.WorkItem:
    """The rest of a point when some records are there."""
    config = dataclasses.replace(tiny().config, passes=passes, error=ERROR, **changes)
    return work_items.remaining(point, config, round_, work_items.Progress(config.protocol, done))


def all_records(item: work_items.WorkItem, passes: tuple[str, ...] = PASSES, round_: int = 0) -> list[Any]:
    """A failed record for everything that is left to do of a point."""
    return list(
        work_items.failed_records(item, passes, ERROR, "strict", round_, work_items.Failure(Status.ERROR, "why"))
    )


def test_parameters_are_filled_in_from_the_method() -> None:
    run = prepared("method=hyper,flash2", "method.hyper.block_size=64,null")
    assert [point.hyper for point in run.points] == [{**HYPER_DEFAULTS, "block_size": 64}, HYPER_DEFAULTS, {}]
    progress = work_items.Progress(run.config.protocol)
    items = [work_items.remaining(point, run.config, 0, progress) for point in run.points]
    assert [item.exact for item in items] == [False, False, True]
    assert {point.device for point in run.points} == {"cpu"}


def test_parameters_that_are_not_given_are_filled_in_too() -> None:
    points = prepared(
        "method=flash2", "+method.mine._target_=hyperbench.measure.methods.hyper.hyper", "+method.mine.block_size=64"
    ).points
    assert points[1].hyper == {**HYPER_DEFAULTS, "block_size": 64}


def test_a_parameter_no_method_knows_stays_null() -> None:
    points = prepared("method=uniform", "method.uniform.sample_size=null").points
    assert points[0].hyper["sample_size"] is None


def test_configurations_that_resolve_alike_are_one_point() -> None:
    assert len(prepared("method=hyper", "method.hyper.block_size=256,null").points) == 1


def test_a_group_shares_input_shape_and_masking_and_holds_every_method() -> None:
    points = prepared(
        "shape.seq_len=128,64", "is_causal=true,false", "seed=0,1", "input=gaussian,clustered", "shape.heads=1,2"
    ).points
    groups = work_items.groups_of(points)
    for group in work_items.groups_of(points, {points[0].method}):
        assert {point.method == points[0].method for point in group.points} == {group.isolated == points[0].method}
    assert sorted(p.point_id for g in groups for p in g.points) == sorted(p.point_id for p in points)
    assert len(groups) == len(points) // 2
    assert len({g.key for g in groups}) == len(groups)
    for one in groups:
        first = one.points[0]
        for point in one.points:
            same = dataclasses.replace(point, method=first.method, target=first.target, hyper=first.hyper)
            assert same == first
        assert {point.method for point in one.points} == {"flash2", "hyper"}
        assert f"n={first.seq_len}" in one.label
    work = [g.points[0].heads * g.points[0].seq_len ** 2 for g in groups]
    assert work == sorted(work)


@given(st.sets(st.integers(0, 30)))
def test_left_to_do_is_what_is_not_finished(indices: set[int]) -> None:
    whole = remaining(RANDOMISED)
    assert whole.passes == tuple(Pass)
    assert whole.seeds == (0, 1)
    records = all_records(whole)
    rest = remaining(RANDOMISED, done=[record for i, record in enumerate(records) if i in indices])
    missing = [record for i, record in enumerate(records) if i not in indices]
    assert set(rest.passes) == {record.pass_ for record in missing if isinstance(record, Timing)}
    assert set(rest.seeds) == {record.seed for record in missing if isinstance(record, ErrorRow)}


@pytest.mark.parametrize("point", [RANDOMISED, EXACT])
@pytest.mark.parametrize("passes", [PASSES, ("forward",), ("backward", "forward")])
@pytest.mark.parametrize("round_", [0, 1])
def test_failed_records_leave_nothing_to_do(point: Point, passes: tuple[str, ...], round_: int) -> None:
    records = all_records(remaining(point, round_, passes=passes), passes, round_)
    assert {record.status for record in records} == {Status.ERROR}
    assert {record.message for record in records} == {"why"}
    assert remaining(point, round_, records, passes).is_empty


def test_errors_belong_to_the_first_round_and_times_to_every_round() -> None:
    again = remaining(RANDOMISED, 1, all_records(remaining(RANDOMISED)))
    assert (again.passes, again.seeds) == (tuple(Pass), ())


def test_a_method_without_a_draw_has_one_answer() -> None:
    assert work_items.draw_seeds(EXACT, ERROR) == (EXACT.seed,)
    assert work_items.draw_seeds(a_point(hyper={}, seed=7), ERROR) == (7,)
    assert work_items.draw_seeds(RANDOMISED, ERROR) == (0, 1)


@pytest.mark.parametrize(
    ("seq_len", "passes", "limit", "grads", "operator"),
    [
        (64, PASSES, None, True, True),
        (64, ("forward",), None, False, True),
        (64, ("backward",), None, True, True),
        (512, PASSES, 512, True, True),
        (513, PASSES, 512, False, False),
        (513, PASSES, None, True, False),
    ],
)
def test_metrics_follow_passes_and_lengths(
    seq_len: int, passes: tuple[str, ...], limit: int | None, grads: bool, operator: bool
) -> None:
    error = dataclasses.replace(ERROR, grad_max_seq_len=limit)
    metrics = work_items.expected_metrics(a_point(seq_len=seq_len), passes, error)
    assert len(set(metrics)) == len(metrics)
    assert {"out_rel_fro", "out_max_abs", "out_row_rel_p50", "mean_v_rel_fro", "zero_rel_fro"} <= set(metrics)
    assert ({"dq_rel_fro", "dk_rel_fro", "dv_rel_fro"} <= set(metrics)) == grads
    assert ("out_rel_op" in metrics) == operator


@pytest.mark.parametrize("words", ["sweep=fig4", "sweep=heads", "method=mean_v,uniform,zero,math", "device=cuda"])
def test_estimates_are_positive_and_nothing_costs_nothing(words: str) -> None:
    run = prepared(words, cuda_available=True, gpu_name="Some GPU", cuda_bfloat16=True, flops_per_s={"cuda": 1e13})
    for point in run.points:
        item = work_items.remaining(point, run.config, 0, work_items.Progress(run.config.protocol))
        parts = estimate_s(item, run.config, run.speed.flops_per_s)
        assert set(parts) == {"check", *run.config.passes}
        assert all(cost > 0 for cost in parts.values())
        assert estimate_s(item.only(), run.config, run.speed.flops_per_s) == {}
        assert set(estimate_s(item.only(passes=(Pass.FORWARD,)), run.config, 1e11)) == {"check", "forward"}
    assert all(seconds > 0 for seconds in run.estimates_s())


def test_a_longer_sequence_and_a_slower_machine_cost_more() -> None:
    run = prepared("sweep=fig4", "protocol.max_samples=10", "protocol.budget_s.forward=1000")
    for method in ("flash2", "hyper"):
        for causal in (False, True):
            items = [
                work_items.WorkItem(p, method == "flash2", (Pass.FORWARD,))
                for p in run.points
                if (p.method, p.is_causal) == (method, causal)
            ]
            for rate in (1e11, 1e10):
                costs = [estimate_s(item, run.config, rate)["forward"] for item in items]
                assert costs == sorted(costs)
                assert costs[0] < costs[-1]
            slow, fast = (estimate_s(items[-1], run.config, rate)["forward"] for rate in (1e10, 1e11))
            assert slow > fast


def test_rounds_cost_the_same_again_but_for_the_errors() -> None:
    once, twice = tiny("method=hyper"), tiny("method=hyper", "protocol.rounds=2")
    assert once.estimates_s()[0] < twice.estimates_s()[0] <= 2 * once.estimates_s()[0]


def test_only_longer_points_of_the_same_configuration_are_not_tried() -> None:
    oom = a_point(seq_len=1024)
    assert work_items.expects_skip(a_point(seq_len=2048), [oom]) == oom
    assert work_items.expects_skip(a_point(seq_len=1024), [oom]) is None
    assert work_items.expects_skip(a_point(seq_len=512), [oom]) is None
    assert work_items.expects_skip(a_point(seq_len=2048), []) is None


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Point) if f.name != "seq_len"])
def test_another_configuration_is_tried(name: str) -> None:
    other: dict[str, Any] = {"is_causal": True, "hyper": {}, "input_params": {}, "kv_heads": 4, "batch": 2, "heads": 8,
                             "head_dim": 32, "seed": 1}  # fmt: skip
    changed = a_point(seq_len=2048, **{name: other.get(name, "other")})
    assert work_items.expects_skip(changed, [a_point(seq_len=1024)]) is None


def timed(round_: int, ms: float, pass_: Pass = Pass.FORWARD) -> Timing:
    """A timing of the exact point."""
    return Timing(EXACT, pass_, "strict", round_, Status.OK, samples_ms=(ms,))


class TestSlowPasses:
    """A call that takes longer than its budget is not measured again in every round."""

    protocol = dataclasses.replace(
        tiny().config.protocol, rounds=5, slow_rounds=2, budget_s={"forward": 1.0, "backward": 9.0}
    )

    def rounds(self, *records: Any) -> dict[str, list[int]]:
        """Pass -> the rounds in which it is measured, given these records."""
        progress = work_items.Progress(self.protocol, records)
        progress.finished.clear()  # what is to be measured, finished or not
        config = dataclasses.replace(tiny().config, passes=("forward", "backward"))
        items = [work_items.remaining(EXACT, config, round_, progress) for round_ in range(5)]
        return {name: [r for r in range(5) if Pass(name) in items[r].passes] for name in config.passes}

    def test_a_call_within_its_budget_is_measured_in_every_round(self) -> None:
        every = list(range(5))
        assert self.rounds() == {"forward": every, "backward": every}
        assert self.rounds(timed(0, 999.0), timed(0, 8999.0, Pass.BACKWARD)) == {"forward": every, "backward": every}

    def test_a_slower_one_in_fewer(self) -> None:
        found = self.rounds(timed(0, 1001.0), timed(0, 1001.0, Pass.BACKWARD))
        assert found == {"forward": [0, 1], "backward": list(range(5))}

    def test_the_first_round_decides_whatever_the_others_say_and_in_whatever_order_they_are_read(self) -> None:
        slow_later = [timed(0, 999.0), timed(1, 5000.0)]
        fast_later = [timed(0, 1001.0), timed(1, 10.0)]
        for order in (1, -1):
            assert self.rounds(*slow_later[::order])["forward"] == list(range(5))
            assert self.rounds(*fast_later[::order])["forward"] == [0, 1]

    def test_a_failure_decides_nothing(self) -> None:
        failed = Timing(EXACT, Pass.FORWARD, "strict", 0, Status.TIMEOUT)
        assert self.rounds(failed)["forward"] == list(range(5))

    def test_with_a_slow_forward_pass_its_stages_are_left_out_too(self) -> None:
        found = [
            remaining(EXACT, r, [timed(0, 1001.0)], ("forward",), stages=True, protocol=self.protocol).stages
            for r in range(5)
        ]
        assert found == [True, True, False, False, False]
