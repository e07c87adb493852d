"""What an exception means for its rows, and what a call takes by the clock."""

from __future__ import annotations

import pytest
import torch

from hyperbench.measure.probe.diagnose import clock_resolution_ns, noise_floor
from hyperbench.measure.worker.clock import CpuClock, clock_for
from hyperbench.measure.worker.errors.accuracy import IncorrectError
from hyperbench.measure.worker.failures import classify, poisons_device
from hyperbench.store.schema import Status


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            IncorrectError("the output has shape (1,), not (2,)"),
            Status.INCORRECT,
            "the output has shape (1,), not (2,)",
        ),
        (NotImplementedError("head_dim 7"), Status.UNSUPPORTED, "head_dim 7"),
        (MemoryError(), Status.OOM, "MemoryError: no message"),
        (torch.OutOfMemoryError("CUDA out of memory."), Status.OOM, "OutOfMemoryError: CUDA out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Status.OOM, "RuntimeError: DefaultCPU"),
        (OSError("Cannot allocate memory"), Status.OOM, "OSError: Cannot"),
        (RuntimeError("CUDA error: an illegal memory access"), Status.ERROR, "RuntimeError: CUDA error"),
        (ValueError("two\n  lines"), Status.ERROR, "ValueError: two lines"),
        (KeyError(), Status.ERROR, "KeyError: no message"),
    ],
)
def test_an_exception_has_a_status_and_one_line(error: Exception, status: Status, message: str) -> None:
    found, text = classify(error)
    assert found is status
    assert text.startswith(message)
    assert "\n" not in text


def test_a_message_is_short_and_can_be_written() -> None:
    _, text = classify(RuntimeError("x" * 10_000))
    assert len(text) <= 300
    _, text = classify(OSError("no such file: \udcff"))
    assert text.encode("utf-8")


def test_only_an_unexplained_error_on_cuda_makes_a_process_unfit() -> None:
    for status in Status:
        assert poisons_device(status, "cuda") == (status is Status.ERROR)
        assert not poisons_device(status, "cpu")


def test_the_clock_of_the_cpu_times_the_call_once() -> None:
    clock, calls = clock_for("cpu"), list[float]()
    assert isinstance(clock, CpuClock)
    before = clock.now_s()
    elapsed_ms = clock.time_ms(lambda: calls.append(clock.now_s()))
    after = clock.now_s()
    assert len(calls) == 1
    assert before <= calls[0] <= after
    assert 0 <= elapsed_ms <= (after - before) * 1e3


def test_an_exception_passes_through_the_clock() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        CpuClock().time_ms(fails)


def test_the_resolution_of_a_clock_is_its_smallest_step() -> None:
    readings = iter([0, 0, 10, 10, 15, 100, 100])
    assert clock_resolution_ns(lambda: next(readings), readings=6) == 5
    assert clock_resolution_ns(lambda: 7, readings=6) == 0


def test_the_noise_floor_is_the_difference_of_equal_calls() -> None:
    class Alternating(CpuClock):
        def __init__(self) -> None:
            self.calls = 0

        def time_ms(self, call: object, *, is_load: bool = False) -> float:
            self.calls += 1
            return 1.1 if self.calls % 2 else 1.0

    assert noise_floor(Alternating(), lambda: None) == pytest.approx(0.1)
    steady = Alternating()
    steady.time_ms = lambda call: 1.0  # type: ignore[method-assign]
    assert noise_floor(steady, lambda: None) == 0
