"""The Pareto front dominates the rest and is dominated by nothing; the outline holds just what it dominates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperbench.stats.pareto import Choice, dominated_outline, pareto_front

# Few values, so that ties are common.
choices_of = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), max_size=12)


def dominates(one: Choice, other: Choice) -> bool:
    return one[0] >= other[0] and one[1] <= other[1] and one != other


@given(choices_of)
def test_on_the_front_is_what_nothing_dominates(choices: list[Choice]) -> None:
    front = [choices[i] for i in pareto_front(choices)]
    assert set(front) == {c for c in choices if not any(dominates(other, c) for other in choices)}
    assert front == sorted(set(front))
    assert [loss for _, loss in front] == sorted(loss for _, loss in front)


@given(st.lists(st.just((2.0, 0.5)), min_size=1, max_size=4))
def test_the_first_of_equal_choices_stands_for_all(choices: list[Choice]) -> None:
    assert pareto_front(choices) == [0]


def is_inside(outline: list[Choice], gain: float, loss: float) -> bool:
    """Whether a point lies in a polygon, by the number of its sides to the right."""
    crossed = 0
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], *outline[:1]], strict=True):
        crossed += (y0 > loss) != (y1 > loss) and gain < x0 + (loss - y0) / (y1 - y0) * (x1 - x0)
    return crossed % 2 == 1


@given(choices_of, st.integers(0, 8), st.integers(0, 8))
def test_inside_the_outline_is_what_a_choice_dominates(choices: list[Choice], gain: int, loss: int) -> None:
    # Halves lie on no side of the polygon.
    place = (gain + 0.5, loss + 0.5)
    outline = dominated_outline(choices, 0.0, 9.0)
    assert is_inside(outline, *place) == any(dominates(choice, place) for choice in choices)


def test_nothing_dominates_nothing() -> None:
    assert (pareto_front([]), dominated_outline([], 0.0, 1.0)) == ([], [])
