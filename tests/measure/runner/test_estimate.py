"""The estimate of a run's time: what it is made of, for fixed inputs. How near it comes to the truth, runs show."""

from __future__ import annotations

from typing import Any

import pytest

from hyperbench.measure import work_items
from hyperbench.measure.runner.estimate import Speed, common_s, group_s, plan_s
from hyperbench.measure.runner.schedule import Plan
from hyperbench.measure.runner.session import Prepared
from hyperbench.store.schema import Status
from tests.helpers.made_runs import prepared

SPEED = Speed(1e11, 4.0)


def by_point(run: Prepared, speed: Speed = SPEED, finished: set[Any] | None = None) -> dict[str, float]:
    """What all points of a run are likely to take."""
    groups, done = work_items.group(run.cells), finished or set()
    return plan_s(groups, Plan(run.config, groups, 0, done, work_items.FinishedStages()), done, run.config, speed)


def test_the_parts_of_a_run_add_up_to_it() -> None:
    run = prepared("sweep=smoke", "protocol.rounds=3", "protocol.slow_rounds=3")
    groups = work_items.group(run.cells)
    plan = Plan(run.config, groups, 0, set(), work_items.FinishedStages())
    parts = [group_s(plan.todos(g, r, set()), run.config, SPEED) for r in plan.rounds for g in groups]
    assert sum(by_point(run).values()) == pytest.approx(sum(sum(p.values()) for p in parts) + 3 * SPEED.start_s)
    assert set(by_point(run)) == {cell.point.point_id for cell in run.cells}


def test_every_round_starts_a_worker() -> None:
    once, thrice = prepared("sweep=smoke", "protocol.rounds=1"), prepared("sweep=smoke", "protocol.rounds=3")
    for run, rounds in ((once, 1), (thrice, 3)):
        slow = sum(by_point(run, Speed(1e11, 104.0)).values())
        assert slow - sum(by_point(run).values()) == pytest.approx(100.0 * rounds)
    assert sum(by_point(once).values()) < sum(by_point(thrice).values()) < 3 * sum(by_point(once).values())


def test_the_reference_is_made_once_for_a_group_and_only_where_errors_are_measured() -> None:
    run = prepared("shape.seq_len=4096", "method=[flash2,hyper]")
    (group,) = work_items.group(run.cells)
    plan = Plan(run.config, [group], 0, set(), work_items.FinishedStages())
    todos = plan.todos(group, 0, set())
    with_errors, without = (
        common_s(part, run.config, 1e11) for part in (todos, [work_items.Todo(w.cell, w.passes, ()) for w in todos])
    )
    assert 0 < without < with_errors
    assert common_s(todos[:1], run.config, 1e11) == with_errors
    # Beyond the length up to which operator norms are compared it costs less for the work.
    assert common_s(todos, prepared("error.operator_norm_max_seq_len=0").config, 1e11) < with_errors


def test_an_estimate_follows_lengths_and_budgets() -> None:
    def total(*words: str) -> float:
        return sum(by_point(prepared("shape.seq_len=8192", "method=[flash2,hyper]", *words)).values())

    plain = total("protocol.rounds=1")
    assert total("protocol.rounds=1", "shape.seq_len=32768") > plain
    assert total("protocol.rounds=1", "protocol.budget_s.forward=0.001") < plain
    assert total("protocol.rounds=1", "error.seeds=[0]") < plain
    assert total("protocol.rounds=2") > plain


def test_passes_slower_than_their_budget_are_expected_in_fewer_rounds() -> None:
    def total(*words: str) -> float:
        return sum(by_point(prepared("method=[flash2]", "protocol.rounds=4", *words)).values())

    slow = ("shape.seq_len=65536", "protocol.budget_s.forward=1", "protocol.budget_s.backward=1")
    assert (
        total(*slow, "protocol.slow_rounds=1")
        < total(*slow, "protocol.slow_rounds=2")
        < total(*slow, "protocol.slow_rounds=4")
    )
    quick = ("shape.seq_len=256",)
    assert total(*quick, "protocol.slow_rounds=1") == total(*quick, "protocol.slow_rounds=4")


def test_what_is_finished_costs_nothing() -> None:
    run = prepared("sweep=smoke", "protocol.rounds=2")
    config = run.config
    done = {
        record.key
        for cell in run.cells
        for round_ in range(2)
        for record in work_items.failed_records(
            work_items.todo(cell, config.passes, config.error, round_, set()), config.passes, config.error, "", round_,
            Status.ERROR, "",
        )
    }  # fmt: skip
    assert by_point(run, finished=done) == {}
    assert run.estimates_s() == [by_point(run, run.speed)[cell.point.point_id] for cell in run.cells]
