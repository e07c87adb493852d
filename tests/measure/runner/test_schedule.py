"""Rounds: the order of methods is balanced and the seed's own."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperbench.measure import work_items
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.schedule import items_of, order
from hyperbench.store.schema import Record
from tests.helpers.made_runs import everything, tiny

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


def items(run: Prepared, which: int, round_: int, *done: Record) -> tuple[work_items.WorkItem, ...]:
    """The rest of a group in a round when some records are there."""
    group = work_items.groups_of(run.points)[which]
    return items_of(group, round_, run.config, work_items.Progress(run.config.protocol, done))


def test_every_round_has_every_point_and_errors_are_measured_in_the_first(run: Prepared) -> None:
    for which, group in enumerate(work_items.groups_of(run.points)):
        for round_ in range(3):
            found = items(run, which, round_)
            assert {item.point.point_id for item in found} == {point.point_id for point in group.points}
            assert all(bool(item.seeds) == (round_ == 0) for item in found)


def test_methods_are_handed_over_in_the_order_of_the_round_also_when_some_are_finished(run: Prepared) -> None:
    assert len({items(run, 0, round_)[0].point.method for round_ in range(3)}) == 3
    whole = items(run, 0, 1)
    done = [record for record in everything(run, [1]) if record.point == whole[1].point]
    assert items(run, 0, 1, *done) == (whole[0], whole[2])
    assert items(run, 1, 1, *done) == items(run, 1, 1)
