"""Merging partial attentions: any split of the keys gives attention over all of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperattn_core import merge_attention
from hyperattn_core.merge import merge_into
from tests.helpers.core_inputs import assert_close, normal, plain_attention, qkv


@given(st.integers(2, 40), st.data(), st.integers(0, 99))
def test_parts_merge_to_the_whole(length: int, data: st.DataObject, seed: int) -> None:
    q, k, v = qkv(queries=5, keys=length, seed=seed)
    cut = data.draw(st.integers(1, length - 1))
    left = plain_attention(q, k[:, :, :cut], v[:, :, :cut])
    right = plain_attention(q, k[:, :, cut:], v[:, :, cut:])
    whole, whole_lse = plain_attention(q, k, v)
    for a, b in ((left, right), (right, left)):
        out, lse = merge_attention(*a, *b)
        assert_close(out, whole)
        assert_close(lse, whole_lse)
    out, lse = left[0].clone(), left[1].clone()
    merge_into(out, lse, right[0].clone(), right[1].clone())
    assert_close(out, whole)
    assert_close(lse, whole_lse)


@pytest.mark.parametrize("shift", [-5000.0, 5000.0])
def test_huge_log_sum_exps_do_not_overflow(shift: float) -> None:
    out_a, out_b = normal(3, 4, seed=1), normal(3, 4, seed=2)
    lse_a, lse_b = normal(3, seed=3), normal(3, seed=4)
    expected, expected_lse = merge_attention(out_a, lse_a, out_b, lse_b)
    out, lse = merge_attention(out_a, lse_a + shift, out_b, lse_b + shift)
    assert_close(out, expected)
    assert_close(lse, expected_lse + shift)


def test_an_empty_part_changes_nothing() -> None:
    out_a, lse_a = normal(3, 4, seed=1), normal(3, seed=3)
    empty = torch.zeros(3, 4).double(), torch.full((3,), -math.inf).double()
    for pair in ((out_a, lse_a, *empty), (*empty, out_a, lse_a)):
        out, lse = merge_attention(*pair)
        assert torch.equal(out, out_a)
        assert torch.equal(lse, lse_a)
