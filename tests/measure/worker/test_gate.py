"""Grounds of the gate: fingerprints that see every bit, restored inputs, and lengths that are long enough."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hyperbench.measure.inputs import make_grad_output, make_inputs
from hyperbench.measure.methods import method as registry
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.fingerprints import bits_of, difference, fingerprint_of
from hyperbench.measure.worker.gate import properties
from hyperbench.measure.worker.gate.gate import Gate
from hyperbench.measure.worker.gate.result_check import ResultCheck
from hyperbench.measure.worker.subject import GroupInputs
from tests.helpers.fake_clock import FakeClock
from tests.helpers.made_records import a_point
from tests.helpers.measured_group import MemoryPeak

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SMALL = {"heads": 4, "kv_heads": 2, "seq_len": 24, "head_dim": 8, "input_params": {}, "hyper": {}}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Gaussian entries."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(st.sampled_from(DTYPES), st.integers(0, 1), st.integers(0, 2), st.integers(0, 299), st.integers(0, 4))
def test_one_changed_bit_anywhere_is_seen(dtype: torch.dtype, b: int, h: int, n: int, d: int) -> None:
    x = drawn(2, 3, 300, 5, dtype=dtype)
    before = bits_of(x)
    assert bits_of(x.clone()) == before
    changed = x.clone()
    integers = changed.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    integers[b, h, n, d] ^= 1
    assert bits_of(changed) != before


@given(st.integers(0, 1000), st.sampled_from([1, 2, 3]))
def test_the_same_values_in_another_order_are_seen(seed: int, dim: int) -> None:
    x = drawn(1, 3, 30, 6)
    order = torch.randperm(x.shape[dim], generator=torch.Generator().manual_seed(seed))
    permuted = x.index_select(dim, order)
    assert (bits_of(permuted) == bits_of(x)) == torch.equal(permuted, x)


def test_many_rows_are_hashed_in_parts_that_know_their_place() -> None:
    x = torch.zeros(1, 1, 2**17 + 3, 1)
    x[0, 0, 5] = 1.0
    moved = x.roll(2**16, dims=2)
    assert bits_of(x) != bits_of(moved)


@given(st.floats(1e-4, 10))
def test_a_difference_is_that_of_the_rows_that_were_kept(size: float) -> None:
    x, y = drawn(1, 2, 500, 4), drawn(1, 2, 50, 4, seed=1)
    before = fingerprint_of([x, y])
    assert difference(before, [x.clone(), y.clone()]) is None
    assert difference(before, [x, y * (1 + size)]) == pytest.approx(size, rel=1e-2)
    shown = difference(before, [x, y + 0.0 * y.sum() + torch.eye(50, 4) * 1e-3])
    assert shown is not None
    assert 0.0 < shown < 0.01


@pytest.mark.parametrize("name", ["q", "k", "v", "grad_output"])
def test_changed_inputs_are_named_and_restored(name: str) -> None:
    point = a_point(**SMALL)
    inputs, grad_output = make_inputs(point), make_grad_output(point)
    gate = Gate(GroupInputs(point, inputs, grad_output), MemoryPeak(), FakeClock())
    gate.check_inputs()
    found = dict(zip(("q", "k", "v", "grad_output"), (*inputs, grad_output), strict=True))
    found[name][0, -1, 3] += 1.0
    with pytest.raises(IncorrectError, match=f"the method changed {name} in place"):
        gate.check_inputs()
    gate.check_inputs()
    for x, y in zip((*inputs, grad_output), (*make_inputs(point), make_grad_output(point)), strict=True):
        assert torch.equal(x, y)


@given(
    st.integers(1, 2**20),
    st.dictionaries(st.sampled_from(["block_size", "rank", "min_seq_len", "seed"]), st.integers(1, 2**13)),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_a_method_is_examined_where_it_does_all_it_does(
    seq_len: int, hyper: dict[str, int], kv_heads: int, group: int
) -> None:
    point = a_point(seq_len=seq_len, hyper=hyper, kv_heads=kv_heads, heads=kv_heads * group, batch=3)
    probe = properties.probe_point(point)
    largest = max((n for name, n in hyper.items() if name != "seed"), default=0)
    assert probe.seq_len >= min(seq_len, 1024, 2 * largest or 1024)
    assert probe.seq_len >= min(seq_len, 2 * largest)
    assert seq_len % probe.seq_len == 0
    assert probe.seq_len < 2 * max(1024, 2 * largest) or probe.seq_len % 2 == 1
    assert probe.heads == probe.kv_heads * group
    assert (probe.kv_heads, probe.batch) == (min(kv_heads, 2), 2)
    assert (probe.hyper, probe.dtype, probe.head_dim) == (point.hyper, point.dtype, point.head_dim)


def test_longer_points_of_one_configuration_are_examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    method = registry.find("tests.helpers.odd_methods.exact")

    def counted(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
        calls.append(q.shape[2])
        return method.function(q, k, v, is_causal=is_causal)

    watched = registry.Method("some.counted_method", counted)
    for seq_len in (1024, 2048, 65536):
        point = a_point(**{**SMALL, "seq_len": seq_len, "is_causal": True}, target="some.counted_method")
        assert properties.examine(watched, point, exact=False).in_q is True
    assert set(calls) == {1024}
    once = len(calls)
    properties.examine(watched, a_point(**{**SMALL, "seq_len": 96}, target="some.counted_method"), exact=False)
    assert set(calls[once:]) == {96}


def test_one_position_alone_is_examined_for_what_it_can_show() -> None:
    for is_causal in (False, True):
        point = a_point(**{**SMALL, "seq_len": 1}, target="tests.helpers.odd_methods.exact", is_causal=is_causal)
        assert properties.examine(registry.find("tests.helpers.odd_methods.exact"), point, exact=True).in_q is None


@pytest.mark.parametrize("seq_len", [2, 3, 5])
def test_the_shortest_causal_sequences_have_a_verdict(seq_len: int) -> None:
    point = a_point(**{**SMALL, "seq_len": seq_len}, target="tests.helpers.odd_methods.exact", is_causal=True)
    assert properties.examine(registry.find("tests.helpers.odd_methods.exact"), point, exact=False).in_q is True


def test_of_calls_on_several_inputs_only_those_on_the_groups_own_are_compared() -> None:
    """The first call and every third one after it; what the others give is not kept."""
    own, other = torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)
    inputs = (own, own, own)
    gives = [own]
    result_check = ResultCheck(lambda: gives[0], FakeClock(), inputs, fingerprint_of([own]), None, period=3)
    calls = itertools.cycle([result_check.call, lambda: other, lambda: other])
    for _ in range(5):
        result_check.time_ms(next(calls))
    result_check.check()
    result_check.time_ms(next(calls))
    result_check.check()
    gives[0] = other
    result_check.time_ms(next(calls))
    with pytest.raises(IncorrectError, match="while it was timed, its output became another"):
        result_check.check()
