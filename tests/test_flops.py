"""The work ratio: counted numbers, limits and monotony."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hyperbench.flops import exact_pairs, hyper_pairs, work_ratio

lengths = st.integers(1, 200_000)
sizes = st.integers(1, 2048)


@pytest.mark.parametrize(
    ("seq_len", "is_causal", "leaf", "counted"),
    [
        (4096, False, 256, 7.9),
        (16_384, False, 4096, 31.5),
        (65_536, False, 4096, 126),
        (131_072, False, 4096, 252),
        (131_072, True, 4096, 19.6),
        (131_072, True, 2048, 25.4),
        (131_072, True, 1024, 28.2),
    ],
)
def test_ratio_agrees_with_counted_work(seq_len: int, is_causal: bool, leaf: int, counted: float) -> None:
    assert work_ratio(seq_len, 256, 256, leaf, is_causal=is_causal) == pytest.approx(counted, rel=0.03)


@given(lengths, sizes, sizes, sizes, st.booleans())
def test_hyper_never_works_more_than_exact_attention(n: int, b: int, m: int, leaf: int, is_causal: bool) -> None:
    assume(b + m <= leaf)
    assert work_ratio(n, b, m, leaf, is_causal=is_causal) >= 1 - 1e-12


@given(st.integers(1, 5000), sizes, sizes, st.booleans())
def test_up_to_the_leaf_it_is_exact(n: int, b: int, m: int, is_causal: bool) -> None:
    assert work_ratio(n, b, m, max(n, 1), is_causal=is_causal) == 1


@given(lengths, st.booleans())
def test_a_block_of_everything_is_exact(n: int, is_causal: bool) -> None:
    assert hyper_pairs(n, n, 0, 1, is_causal=is_causal) == pytest.approx(exact_pairs(n, is_causal=is_causal), rel=1e-9)


@given(lengths, sizes, sizes, sizes, st.booleans())
def test_more_samples_cost_no_less(n: int, b: int, m: int, leaf: int, is_causal: bool) -> None:
    assert hyper_pairs(n, b, m + 1, leaf, is_causal=is_causal) >= hyper_pairs(n, b, m, leaf, is_causal=is_causal)


@pytest.mark.parametrize("bad", [(0, 1, 1, 1), (8, 0, 1, 1), (8, 1, -1, 1), (8, 1, 1, 0)])
def test_impossible_sizes_are_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        hyper_pairs(*bad, is_causal=False)
