"""Draws: the published generator, the same numbers wherever and in whatever pieces they are made, and their laws."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperattn_core import HyperAttentionParams
from hyperattn_core.planning import draws
from hyperattn_core.planning.draws import kept_on_device, splitmix64, stream_key
from hyperattn_core.planning.levels import level_shapes

COUNT = 200_000
#: More standard errors than chance gives in any of these tests.
BOUND = 5.0


def unsigned(x: torch.Tensor) -> list[int]:
    """The numbers without a sign."""
    return [value % 2**64 for value in x.tolist()]


def one_by_one(key: int, place: int) -> int:
    """SplitMix64 as its authors have it, in Python's integers."""
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


@pytest.mark.parametrize(
    ("key", "published"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (
            1234567,
            [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821],
        ),
    ],
)
def test_numbers_that_were_published(key: int, published: list[int]) -> None:
    assert unsigned(splitmix64(key, 0, len(published), "cpu")) == published


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 12 * draws.LEVEL_PLACES))
def test_every_key_and_place(key: int, place: int) -> None:
    assert unsigned(splitmix64(key, place, 3, "cpu")) == [one_by_one(key, place + i) for i in range(3)]


def test_keys_are_signed_numbers_of_64_bits_and_each_seed_and_purpose_has_its_own() -> None:
    pairs = [(seed, stream) for seed in (0, 1, -1, 2**63, 2**70) for stream in ("samples", "probes", "projections")]
    keys = [stream_key(*pair) for pair in pairs]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)


@given(st.integers(1, 2**31))
def test_the_largest_number_times_a_length_stays_below_it(length: int) -> None:
    assert int((1.0 - 2.0**-53) * length) == length - 1


def test_uniform_numbers_are_even_and_independent() -> None:
    """Of the mean, of a chi-squared test over 64 bins, and of neighbours and streams, none is beyond chance."""
    found = [draws._uniform(seed, stream, 0, (COUNT,), "cpu") for seed in (0, 1) for stream in ("samples", "probes")]
    for x in found:
        assert 0.0 <= float(x.min()) < float(x.max()) < 1.0
        assert abs(float(x.mean()) - 0.5) < BOUND / math.sqrt(12 * COUNT)
        expected = COUNT / 64
        chi_squared = float((torch.histc(x, 64, 0.0, 1.0) - expected).square().sum() / expected)
        assert abs(chi_squared - 63) < BOUND * math.sqrt(2 * 63)
    pairs = [(x[1:], x[:-1]) for x in found] + [(x, y) for i, x in enumerate(found) for y in found[:i]]
    for x, y in pairs:
        assert abs(float(((x - 0.5) * (y - 0.5)).mean())) * 12 < BOUND / math.sqrt(len(x))


def test_logarithm_and_cosine_are_those_of_the_library() -> None:
    x = draws._uniform(3, "samples", 0, (COUNT,), "cpu") + 2.0**-53
    torch.testing.assert_close(draws._log(x), x.log(), rtol=1e-11, atol=4e-15)
    torch.testing.assert_close(draws._cos_of_turn(x), (2 * math.pi * x).cos(), rtol=0.0, atol=4e-15)
    ends = torch.tensor([2.0**-53, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(draws._log(ends), ends.log(), rtol=1e-15, atol=1e-15)


def test_projections_are_gaussian() -> None:
    """By moments, tails, and the share of pairs in each sixteenth of the turn, which no direction is to change."""
    x = draws.projections(5, 400, 500, "cpu").flatten()
    for power, mean in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        spread = math.sqrt(math.prod(range(1, 2 * power, 2)) / len(x))
        assert abs(float(x.pow(power).mean()) - mean) < BOUND * spread
    for bound in (1.0, 2.0, 3.0, 4.0):
        share = math.erfc(bound / math.sqrt(2))
        assert abs(float((x.abs() > bound).double().mean()) - share) < BOUND * math.sqrt(share / len(x))
    turns = torch.atan2(x[::2], x[1::2]) / (2 * math.pi) + 0.5
    shares = torch.histc(turns, 16, 0.0, 1.0) / len(turns)
    assert float((shares - 1 / 16).abs().max()) < BOUND * math.sqrt(1 / 16 / len(turns))


@pytest.mark.parametrize("sampling", ["iid", "stratified"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_samples_and_weights_are_those_of_their_definition(sampling: str, is_causal: bool) -> None:
    params = HyperAttentionParams(block_size=16, sample_size=24, min_seq_len=50, sampling=sampling)  # type: ignore[arg-type]
    shape = (2, 4, 2, 331, 331)
    key = stream_key(7, draws.SAMPLES)
    for level in level_shapes(shape, params, is_causal=is_causal):
        index, weight = draws.level_samples(level, shape, params, 7, "cpu")
        assert torch.equal(weight, draws.level_weights(level, params, "cpu"))
        count, node_len = index.shape[3], level.node_len
        wanted = []
        for place in range(index.numel()):
            slot = place % count
            edges = (0, node_len) if sampling == "iid" else (slot * node_len // count, (slot + 1) * node_len // count)
            number = one_by_one(key, level.index * draws.LEVEL_PLACES + place) >> 11
            wanted.append(edges[0] + int(number * 2.0**-53 * (edges[1] - edges[0])))
            assert weight[slot] == (node_len / count if sampling == "iid" else edges[1] - edges[0])
        assert torch.equal(index, torch.tensor(wanted, dtype=torch.int32).view(index.shape).sort(-1).values)


def test_nothing_is_drawn_elsewhere_and_copied() -> None:
    """On a device without data every operation runs that asks for none."""
    params, shape = HyperAttentionParams(sampling="stratified"), (1, 2, 2, 5000, 5000)
    (level,) = level_shapes(shape, params, is_causal=False)
    found = [
        *draws.level_samples(level, shape, params, 1, "meta"),
        draws.sample_offsets(level, shape, 1, "meta"),
        draws.probe_positions(5000, 32, 1, "meta"),
        draws.projections(1, 64, 7, "meta"),
    ]
    assert {x.device.type for x in found} == {"meta"}


def test_what_is_kept_is_made_anew_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    @kept_on_device(maxsize=2)
    def ones(count: int, device: str) -> torch.Tensor:
        made.append(count)
        return torch.ones(count)

    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    kept = ones(3, "cuda:0")
    assert ones(3, "cuda:0") is kept
    capturing[0] = True
    assert ones(3, "cuda:0") is not kept
    assert ones(3, "cpu") is ones(3, "cpu")
    capturing[0] = False
    # What belongs to the graph is not what later calls read.
    assert ones(3, "cuda:0") is kept
    assert made == [3, 3, 3]
    ones.cache_clear()
    assert ones(3, "cuda:0") is not kept
