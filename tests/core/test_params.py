"""HyperAttentionParams: what it holds, and one clear line for what it refuses."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperattn_core import HyperAttentionParams

LOWEST = {"block_size": 1, "sample_size": 1, "num_projections": 1, "min_seq_len": 1, "num_probes": 1}


def refusal(**values: Any) -> str:
    """The message that these values are refused with, known to be one line."""
    with pytest.raises(ValueError) as caught:
        HyperAttentionParams(**values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_papers_parameters_are_those_of_its_speed_figure() -> None:
    paper = HyperAttentionParams.paper()
    assert (paper.block_size, paper.sample_size, paper.num_projections, paper.min_seq_len) == (256, 256, 7, 4096)
    assert (paper.sampling, paper.pairing) == ("iid", "rank")


def test_the_default_sizes_are_those_of_the_paper() -> None:
    assert (HyperAttentionParams().block_size, HyperAttentionParams().sample_size) == (256, 256)


def test_parameters_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        HyperAttentionParams().block_size = 8  # type: ignore[misc]


@pytest.mark.parametrize("name", LOWEST)
@given(below=st.integers(1, 2**40))
def test_a_size_below_its_range_is_refused(name: str, below: int) -> None:
    value = LOWEST[name] - below
    message = refusal(**{name: value})
    assert name in message
    assert repr(value) in message
    assert "integer" in message
    assert f"{LOWEST[name]}" in message


@pytest.mark.parametrize("name", LOWEST)
def test_the_lowest_size_is_taken(name: str) -> None:
    assert getattr(HyperAttentionParams(**{name: LOWEST[name]}), name) == LOWEST[name]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LOWEST)
@pytest.mark.parametrize("value", [True, 8.0, "8", None, [8]])
def test_a_size_that_is_no_integer_is_refused(name: str, value: object) -> None:
    message = refusal(**{name: value})
    assert name in message
    assert repr(value) in message


def test_more_projections_than_codes_can_hold_are_refused() -> None:
    assert HyperAttentionParams(num_projections=15).num_projections == 15
    assert "from 1 to 15, got 16" in refusal(num_projections=16)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("sampling", "stratifed", "stratified"),
        ("sampling", "idd", "iid"),
        ("pairing", "buckets", "bucket"),
        ("pairing", "ranks", "rank"),
        ("hashing", "centered", "centred"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_nearest_one(name: str, value: str, nearest: str) -> None:
    message = refusal(**{name: value})
    assert message.startswith(f"{name} must be one of ")
    assert repr(value) in message
    assert f"did you mean {nearest!r}?" in message


@pytest.mark.parametrize("value", [None, 3, [], "zzz"])
def test_a_choice_far_from_all_is_refused_without_a_guess(value: object) -> None:
    message = refusal(pairing=value)
    assert "rank, bucket" in message
    assert "did you mean" not in message


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "block_size": st.integers(1, 512),
            "sample_size": st.integers(1, 512),
            "num_projections": st.integers(1, 15),
            "min_seq_len": st.integers(1, 9999),
            "sampling": st.sampled_from(["iid", "stratified"]),
            "pairing": st.sampled_from(["rank", "bucket"]),
            "hashing": st.sampled_from(["angular", "centred"]),
            "num_probes": st.just(1),
            "probe_floor": st.floats(1e-6, 1.0),
        },
    )
)
def test_plain_data_makes_parameters_and_what_is_missing_takes_its_default(values: dict[str, Any]) -> None:
    made = HyperAttentionParams.from_dict(values)
    assert dataclasses.asdict(made) == dataclasses.asdict(HyperAttentionParams()) | values
    assert HyperAttentionParams.from_dict(dataclasses.asdict(made)) == made


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"unknown parameter 'blok_size'; allowed: .*; did you mean 'block_size'\?"):
        HyperAttentionParams.from_dict({"blok_size": 8})
    with pytest.raises(ValueError, match="unknown parameter 7; allowed: block_size"):
        HyperAttentionParams.from_dict({7: 8})  # type: ignore[dict-item]


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.01, math.nan, True, "0.1", None])
def test_a_floor_that_is_no_share_is_refused(floor: object) -> None:
    assert f"probe_floor must be a number above 0 and up to 1, got {floor!r}" in refusal(probe_floor=floor)


def test_more_probes_than_a_leaf_holds_are_refused_where_there_are_probes() -> None:
    assert "num_probes must be at most min_seq_len=16, got 17" in refusal(
        sampling="probed", min_seq_len=16, num_probes=17
    )
    assert HyperAttentionParams(min_seq_len=16, num_probes=17, sampling="iid").num_probes == 17
    assert HyperAttentionParams(min_seq_len=16).num_probes == 32  # the default is cut to a shorter node's length
    assert "num_probes must be an integer of at least 1, got 0" in refusal(num_probes=0)
