"""The estimate of a run's time: what it is made of, for fixed inputs. How near it comes to the truth, runs show."""

from __future__ import annotations

import pytest

from hyperbench.measure import work_items
from hyperbench.measure.runner.estimate import Speed, common_s, group_s, plan_s
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.schedule import items_of
from hyperbench.store.schema import Record
from tests.helpers.made_runs import everything, prepared

SPEED = Speed(1e11, 4.0)


def by_point(run: Prepared, speed: Speed = SPEED, *done: Record) -> dict[str, float]:
    """Seconds that all points of a run are likely to take when some records are there."""
    return plan_s(work_items.groups_of(run.points), work_items.Progress(run.config.protocol, done), run.config, speed)


def items(run: Prepared, group: work_items.Group, round_: int) -> tuple[work_items.WorkItem, ...]:
    """All of a group in a round."""
    return items_of(group, round_, run.config, work_items.Progress(run.config.protocol))


def test_the_parts_of_a_run_add_up_to_it() -> None:
    run = prepared("sweep=smoke", "protocol.rounds=3", "protocol.slow_rounds=3")
    parts = [group_s(items(run, g, r), run.config, SPEED) for r in range(3) for g in work_items.groups_of(run.points)]
    assert sum(by_point(run).values()) == pytest.approx(sum(sum(p.values()) for p in parts) + 3 * SPEED.start_s)
    assert set(by_point(run)) == {point.point_id for point in run.points}


def test_every_round_starts_a_worker() -> None:
    once, thrice = prepared("sweep=smoke", "protocol.rounds=1"), prepared("sweep=smoke", "protocol.rounds=3")
    for run, rounds in ((once, 1), (thrice, 3)):
        slow = sum(by_point(run, Speed(1e11, 104.0)).values())
        assert slow - sum(by_point(run).values()) == pytest.approx(100.0 * rounds)
    assert sum(by_point(once).values()) < sum(by_point(thrice).values()) < 3 * sum(by_point(once).values())


def test_the_reference_is_made_once_for_a_group_and_only_where_errors_are_measured() -> None:
    run = prepared("shape.seq_len=4096", "method=[flash2,hyper]")
    (group,) = work_items.groups_of(run.points)
    both = items(run, group, 0)
    with_errors, without = (
        common_s(part, run.config, 1e11) for part in (both, [item.only(passes=item.passes) for item in both])
    )
    assert 0 < without < with_errors
    assert common_s(both[:1], run.config, 1e11) == with_errors
    # Beyond the length up to which operator norms are compared it costs less for the work.
    assert common_s(both, prepared("error.operator_norm_max_seq_len=0").config, 1e11) < with_errors


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
    assert by_point(run, SPEED, *everything(run)) == {}
    assert run.estimates_s() == [by_point(run, run.speed)[point.point_id] for point in run.points]
