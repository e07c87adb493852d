"""Rounds: the order of methods is balanced and the seed's own, and finished rounds of another origin are not redone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.measure import work_items
from hyperbench.measure.runner.schedule import Plan, order
from hyperbench.measure.runner.session import Prepared
from hyperbench.store.schema import ErrorRow, Pass, Record, Status, Timing
from tests.helpers.made_runs import tiny

counts = st.integers(1, 9)
seeds = st.text(max_size=5)


@given(counts, st.integers(0, 40), seeds)
def test_an_order_holds_everything_once_and_is_the_seeds_own(count: int, round_: int, seed: str) -> None:
    assert sorted(order(count, round_, seed)) == list(range(count))
    assert order(count, round_, seed) == order(count, round_, seed)


@given(counts, st.integers(1, 40), seeds)
def test_over_any_number_of_rounds_all_stand_at_each_place_about_equally_often(
    count: int, rounds: int, seed: str
) -> None:
    orders = [order(count, round_, seed) for round_ in range(rounds)]
    for place in range(count):
        times = Counter(found[place] for found in orders)
        often = [times[one] for one in range(count)]
        assert max(often) - min(often) <= 1


@given(st.integers(2, 9), st.integers(0, 5), seeds)
def test_over_two_squares_each_follows_each_other_one_equally_often(count: int, pair: int, seed: str) -> None:
    rounds = range(2 * pair * count, 2 * (pair + 1) * count)
    followed = Counter(step for round_ in rounds for step in pairwise(order(count, round_, seed)))
    assert len(followed) == count * (count - 1)
    assert set(followed.values()) == {2}


def test_seeds_give_other_orders() -> None:
    assert len({order(4, 0, str(seed)) for seed in range(50)}) > 10
    # Which of two methods is first in the first round is not always the same either.
    assert {order(2, 0, str(seed)) for seed in range(50)} == {(0, 1), (1, 0)}


@pytest.fixture(scope="module")
def run() -> Prepared:
    """Three methods at two lengths, two passes, three rounds."""
    return tiny(
        "shape.seq_len=64,128", "method=[math,hyper,mean_v]", "passes=[forward,backward]", "protocol.rounds=3"
    )  # fmt: skip


def plan_of(run: Prepared, first_round: int, finished: set[work_items.Key]) -> Plan:
    """The plan of a run under the origin that begins with a round."""
    return Plan(run.config, work_items.group(run.cells), first_round, finished, work_items.FinishedStages())


def ids(todos: tuple[work_items.Todo, ...]) -> set[str]:
    """The points that something is to be done at."""
    return {wanted.cell.point.point_id for wanted in todos}


def written(plan: Plan, run: Prepared, round_: int, which: slice = slice(None)) -> list[Record]:
    """Records of everything that some groups need in a round."""
    config = run.config
    return [
        record
        for group in work_items.group(run.cells)[which]
        for wanted in plan.todos(group, round_, set())
        for record in work_items.failed_records(wanted, config.passes, config.error, "p", round_, Status.ERROR, "why")
    ]


def test_a_run_has_its_rounds_and_errors_are_measured_in_the_first(run: Prepared) -> None:
    plan = plan_of(run, 0, set())
    assert list(plan.rounds) == [0, 1, 2]
    for group in work_items.group(run.cells):
        for round_ in plan.rounds:
            todos = plan.todos(group, round_, set())
            assert ids(todos) == {cell.point.point_id for cell in group.cells}
            assert all(bool(w.seeds) == (round_ == 0) for w in todos)
        assert plan.todos(group, 3, set()) == ()


def test_methods_are_handed_over_in_the_order_of_the_round_also_when_some_are_finished(run: Prepared) -> None:
    plan = plan_of(run, 0, set())
    (group, other) = work_items.group(run.cells)
    firsts = {plan.todos(group, round_, set())[0].cell.point.method for round_ in plan.rounds}
    assert len(firsts) == 3
    whole = plan.todos(group, 1, set())
    done = {
        r.key for r in work_items.failed_records(whole[1], run.config.passes, run.config.error, "", 1, Status.ERROR, "")
    }
    assert plan.todos(group, 1, done) == (whole[0], whole[2])
    assert plan.todos(other, 1, done) == plan.todos(other, 1, set())


def test_another_origin_measures_in_new_rounds_what_no_whole_round_holds(run: Prepared) -> None:
    before = plan_of(run, 0, set())
    first, second = work_items.group(run.cells)
    # Round 0 is whole; of round 1 the first group is whole, the second lacks its last record.
    records = [*written(before, run, 0), *written(before, run, 1)][:-1]
    finished = {record.key for record in records}
    plan = plan_of(run, 2, finished)
    assert list(plan.rounds) == [2, 3]
    assert [len(plan.todos(first, r, finished)) for r in (0, 1, 2, 3)] == [0, 0, 3, 0]
    assert [len(plan.todos(second, r, finished)) for r in (0, 1, 2, 3)] == [0, 0, 3, 3]
    # All methods again, every pass, and no error that is there already.
    assert ids(plan.todos(second, 2, finished)) == {cell.point.point_id for cell in second.cells}
    assert all(len(w.passes) == 2 and not w.seeds for w in plan.todos(second, 2, finished))
    # What the new origin has measured leaves less to do, not fewer rounds.
    done = finished | {record.key for record in written(plan, run, 2)}
    again = plan_of(run, 2, done)
    assert list(again.rounds) == [2, 3]
    assert again.todos(second, 2, done) == ()
    assert len(again.todos(second, 3, done)) == 3


def test_errors_that_are_missing_get_a_round_under_the_new_origin(run: Prepared) -> None:
    before = plan_of(run, 0, set())
    records = [record for round_ in range(3) for record in written(before, run, round_)]
    whole = {record.key for record in records}
    assert list(plan_of(run, 3, whole).rounds) == []
    group = work_items.group(run.cells)[0]
    lost = next(record.key for record in records if record.point.seq_len == 64 and isinstance(record.key[1], int))
    plan = plan_of(run, 3, whole - {lost})
    assert list(plan.rounds) == [3]
    assert [bool(w.seeds) for w in plan.todos(group, 3, whole - {lost})].count(True) == 1


def test_nothing_timed_yet_means_that_the_new_origin_has_all_rounds(run: Prepared) -> None:
    assert list(plan_of(run, 0, set()).rounds) == [0, 1, 2]
    assert list(plan_of(run, 1, set()).rounds) == [1, 2, 3]


def test_a_slow_pass_has_its_fewer_rounds_under_every_origin() -> None:
    run = tiny(
        "shape.seq_len=64", "method=[math]", "passes=[forward,backward]", "protocol.rounds=3", "protocol.slow_rounds=1"
    )
    config, (group,) = run.config, work_items.group(run.cells)
    slow_s = 2 * config.protocol.budget_s["forward"]

    def timed(round_: int, pass_: Pass) -> Timing:
        took_ms = 1e3 * slow_s if pass_ is Pass.FORWARD else 1e-3
        return Timing(group.cells[0].point, pass_, "p", round_, Status.OK, samples_ms=(took_ms,))

    def limits_of(*records: Timing) -> work_items.RoundLimits:
        limits = work_items.RoundLimits(config.protocol)
        for record in records:
            limits.add(record)
        return limits

    errors = {r.key for r in written(plan_of(run, 0, set()), run, 0) if isinstance(r, ErrorRow)}
    old = [timed(0, Pass.FORWARD), *(timed(round_, Pass.BACKWARD) for round_ in range(3))]
    finished = errors | {record.key for record in old}
    stages = work_items.FinishedStages()
    # Complete as it is: another origin has nothing to add.
    assert list(Plan(config, [group], 3, finished, stages, limits_of(), limits_of(*old)).rounds) == []
    # One of the quick pass's rounds is lost: the other origin measures both passes in a round of its own.
    finished -= {old[-1].key}
    plan = Plan(config, [group], 3, finished, stages, limits_of(), limits_of(*old[:-1]))
    assert list(plan.rounds) == [3]
    assert [w.passes for w in plan.todos(group, 3, finished)] == [(Pass.FORWARD, Pass.BACKWARD)]
    # Nothing is finished: the slow pass comes in the first of the new rounds alone, wherever that one stands.
    plan = Plan(config, [group], 5, set(), stages, limits_of(timed(5, Pass.FORWARD)), limits_of())
    assert list(plan.rounds) == [5, 6, 7]
    assert [w.passes for w in plan.todos(group, 6, set())] == [(Pass.BACKWARD,)]
