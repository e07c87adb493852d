"""From a call to a timing: inputs used in turn, and what samples and conditions say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperbench.measure.cpu_load import CpuTimes
from hyperbench.measure.worker.calls import in_turn, number_of_copies, rotated, timed_call
from hyperbench.measure.worker.conditions.conditions import Conditions
from hyperbench.measure.worker.conditions.gpu_sensors import GpuReading
from hyperbench.measure.worker.gate.result_check import ResultCheck
from hyperbench.measure.worker.timing.passes import TimedCall, prepare_pass
from hyperbench.store.schema import Flag, Pass, Status
from tests.helpers.fake_clock import FakeClock
from tests.helpers.made_records import a_point
from tests.helpers.made_runs import tiny

ALL = tuple(Pass)


def qkv(seq_len: int = 12, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Small inputs without structure."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, seq_len, 4, generator=generator) for _ in range(3))
    return q, k, v


class Remembers:
    """Attention without softmax that notes which inputs it met."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.seen.append(q.detach())
        return q @ k.mT @ v


def conditions(*reasons: str) -> Conditions:
    """Conditions of a quiet machine with a GPU whose clocks are held down for these reasons."""

    class Gpu:
        def read(self) -> GpuReading:
            return GpuReading(throttle_reasons=reasons)

    found = Conditions(Gpu(), cpu_times=lambda: CpuTimes(0, None, 0), cpu_mhz=lambda: None)
    found.begin_turn()
    found.end_turn()
    return found


def a_subject(method: Any, forward_ms: float = 0.0) -> Any:
    """A subject as far as its preparation goes."""
    return SimpleNamespace(
        ready=lambda inputs: method, seeded=nullcontext, point=a_point(), first_ms={Pass.FORWARD: forward_ms},
        peak_bytes=lambda p: 0,
    )  # fmt: skip


def unwatched(clock: FakeClock, call: Callable[[], object], period: int) -> ResultCheck:
    """A check of results that has nothing to compare with."""
    return ResultCheck(call, clock, qkv(), None, None, period)


def prepared(
    pass_: Pass, clock: FakeClock, method: Any = None, *, forward_ms: float = 0.0, reasons: tuple[str, ...] = (),
    **protocol: Any,
) -> TimedCall:  # fmt: skip
    """A pass ready to be sampled."""
    changes = {"input_copies": 4, "input_copies_bytes": 1 << 20, "min_samples": 10, "max_samples": 40, **protocol}
    config = dataclasses.replace(tiny().config.protocol, **changes)
    return prepare_pass(
        a_subject(method or Remembers(), forward_ms), pass_, [qkv()], torch.ones(1, 2, 12, 4), clock, config,
        conditions(*reasons), partial(unwatched, clock),
    )  # fmt: skip


def sampled(timed: TimedCall) -> TimedCall:
    """The same, sampled to the end."""
    timed.sampler.take(1e9)
    return timed


def test_the_clock_is_told_which_calls_are_only_load() -> None:
    clock = FakeClock()
    timed = sampled(prepared(Pass.FORWARD, clock, fixed_time=True, max_samples=10, budget_s={"forward": 0.1}))
    assert clock.loads.count(False) == len(timed.sampler.samples_ms) == 10
    assert clock.loads.count(True) == 90
    steady = FakeClock()
    sampled(prepared(Pass.FORWARD, steady))
    assert not any(steady.loads)


@pytest.mark.parametrize("count", [1, 2, 4, 12, 50])
def test_copies_hold_other_values_of_the_same_kind(count: int) -> None:
    inputs = qkv()
    copies = rotated(inputs, count)
    assert len(copies) == min(count, 12)
    assert copies[0] is inputs
    for i, one in enumerate(copies):
        for x, original in zip(one, inputs, strict=True):
            assert x.shape == original.shape
            assert torch.equal(x.sort(2).values, original.sort(2).values)
        for other in copies[:i]:
            assert not any(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    out = inputs[0] @ inputs[1].mT @ inputs[2]
    assert all(torch.allclose((q @ k.mT @ v).sum(2), out.sum(2), atol=1e-4) for q, k, v in copies)


def test_copies_lie_in_memory_as_the_inputs_do() -> None:
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv())
    for copy in rotated((q, k, v), 3):
        assert all(x.stride() == q.stride() and not x.is_contiguous() for x in copy)


def test_copies_are_bounded_by_bytes_and_by_what_they_cost_to_make() -> None:
    inputs = qkv()
    size = sum(x.numel() * 4 for x in inputs)
    assert number_of_copies(inputs, 4, 100 * size, 0.0) == 4
    assert number_of_copies(inputs, 4, 2 * size, 0.0) == 2
    assert number_of_copies(inputs, 4, 0, 0.0) == 1
    assert number_of_copies(inputs, 4, 100 * size, 100.0, 0) == 4
    assert number_of_copies(inputs, 4, 100 * size, 1.5, 0) == 2
    assert number_of_copies(inputs, 4, 100 * size, 0.1, 0) == 1
    assert number_of_copies(inputs, 4, 6 * size, 100.0, 0) == 2
    assert number_of_copies(inputs, 4, 100 * size, 100.0, 49 * size) == 2


def test_calls_are_made_in_turn() -> None:
    made: list[int] = []
    call = in_turn([lambda i=i: made.append(i) for i in range(3)])  # type: ignore[misc]
    for _ in range(7):
        call()
    assert made == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("pass_", [Pass.FORWARD, Pass.FORWARD_BACKWARD])
def test_neighbouring_samples_never_meet_the_same_inputs(pass_: Pass) -> None:
    method = Remembers()
    sampled(prepared(pass_, FakeClock(), method))
    assert len(method.seen) == 10
    assert not any(torch.equal(a, b) for a, b in zip(method.seen, method.seen[1:], strict=False))


def test_a_backward_pass_keeps_a_graph_for_each_of_its_inputs_unless_that_takes_long() -> None:
    method = Remembers()
    timed = prepared(Pass.BACKWARD, FakeClock(), method)
    assert (len(method.seen), timed.facts) == (4, {"input_copies": 4})
    slow = Remembers()
    timed = prepared(Pass.BACKWARD, FakeClock(), slow, forward_ms=1e6)
    assert (len(slow.seen), timed.facts) == (1, {"input_copies": 1})


def test_the_authors_add_gradients_up_and_we_do_not() -> None:
    grad_output = torch.ones(1, 2, 12, 4)
    for pass_ in (Pass.BACKWARD, Pass.FORWARD_BACKWARD):
        leaves: list[Tensor] = []

        def method(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            leaves.append(v)  # noqa: B023
            return q @ k.mT @ v

        for accumulate in (False, True):
            leaves.clear()
            call = timed_call(method, pass_, qkv(), grad_output, accumulate=accumulate)
            call()
            first = None if leaves[0].grad is None else leaves[0].grad.clone()
            call()
            assert (first is not None) == accumulate
            if first is not None:
                assert leaves[0].grad is not None
                assert torch.allclose(leaves[0].grad, 2 * first)


def test_steady_samples_on_a_quiet_machine_have_no_flag() -> None:
    judged = sampled(prepared(Pass.FORWARD, FakeClock())).judge(1e6, None)
    assert (judged.status, judged.flags, judged.notes, judged.host_ms) == (Status.OK, (), (), None)


@pytest.mark.parametrize(
    ("clock", "peak", "flags"),
    [
        (FakeClock(host_ms=0.5), None, ()),
        (FakeClock(host_ms=1.5), None, (Flag.HOST_BOUND,)),
        (FakeClock(), 1e9, ()),
        (FakeClock(), 0.9e9, (Flag.ABOVE_PEAK,)),
        (FakeClock(lambda i: 1.0 + 0.01 * i), None, (Flag.DRIFT,)),
        (FakeClock(lambda i: 1.0 + 0.2 * (i % 2)), None, (Flag.BIMODAL,)),
    ],
)
def test_each_flag_has_its_cause(clock: FakeClock, peak: float | None, flags: tuple[str, ...]) -> None:
    judged = sampled(prepared(Pass.FORWARD, clock, target_half_width=1e-9, budget_s={"forward": 1.0})).judge(1e6, peak)
    assert judged.flags == tuple(map(str, flags))
    assert judged.status is Status.OK
    assert judged.host_ms == clock.host_ms


def test_held_down_clocks_mark_the_timing_and_never_drop_it() -> None:
    timed = sampled(prepared(Pass.FORWARD, FakeClock(), reasons=("sw_power_cap", "hw_slowdown")))
    judged = timed.judge(1e6, None)
    assert judged.status is Status.THROTTLED
    assert judged.status.has_timing
    assert judged.flags == ("throttled",)
    assert judged.notes == ("throttled: sw_power_cap, hw_slowdown",)


def test_a_graph_that_no_longer_gives_the_output_is_the_failure_of_its_pass() -> None:
    class Broken:
        def check(self) -> None:
            raise RuntimeError("another output")

    timed = sampled(prepared(Pass.FORWARD, FakeClock()))
    assert timed.failure() is None
    timed.graphs.append(Broken())  # type: ignore[arg-type]
    assert str(timed.failure()) == "another output"
