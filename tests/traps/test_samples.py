"""Samples that are no steady crowd, and conditions that were not those meant: marked, named and never dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperbench.measure.cpu_load import CpuTimes
from hyperbench.measure.worker.conditions import conditions
from hyperbench.measure.worker.conditions.nvml import find_gpu
from hyperbench.measure.worker.conditions.surroundings import Surroundings
from hyperbench.store.schema import Status
from tests.helpers.commands import Call
from tests.helpers.fake_clock import FakeClock
from tests.helpers.made_rounds import points, rounds, sweep, write_run
from tests.helpers.measured_group import Measured, item, odd
from tests.helpers.quoted import Quote

#: Twenty samples, however precise the median is.
LONG: dict[str, Any] = {
    "min_samples": 20, "max_samples": 20, "target_half_width": 1e-9,
    "budget_s": dict.fromkeys(("forward", "backward", "forward_backward"), 1e9),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else uses this machine."""
    monkeypatch.setattr(conditions, "read_cpu_times", lambda: CpuTimes(0.0, None, 0.0))


def steady(number: int) -> float:
    """Times that differ by a hundredth, in no order."""
    return 1.0 + 0.01 * (7 * number % 10) / 10


def shown(call: Call, folder: Path, time_of: Callable[[int], float] = steady, **options: Any) -> tuple[Any, str]:
    """The timing of attention whose calls take such times, and what `hyperbench show` says of its run."""
    found = Measured(odd("exact", exact=True), passes=("forward",), clock=FakeClock(time_of), protocol=LONG, **options)
    run = write_run(folder / "run", found.records)
    answer = call("show", "--run", str(run))
    assert (answer.code, answer.err) == (0, "")
    return found.timings("exact")["forward"], answer.out


def test_steady_samples_have_no_mark(call: Call, tmp_path: Path) -> None:
    row, text = shown(call, tmp_path)
    assert (row.status, row.flags, row.message) == ("ok", (), "")
    assert "*" not in text


def test_samples_that_drift_are_marked_and_the_mark_is_explained(call: Call, tmp_path: Path) -> None:
    row, text = shown(call, tmp_path, lambda number: steady(number) + 0.01 * number)
    assert len(row.samples_ms) == 20
    assert "%*" in text
    assert Quote(
        "drift: exact (1 row): the samples get slower or faster with time, and the median is that of the time they "
        "were taken in"
    ).stands_in(text)


def test_samples_of_two_modes_are_marked_and_the_mark_is_explained(call: Call, tmp_path: Path) -> None:
    row, text = shown(call, tmp_path, lambda number: steady(number) + 0.3 * (number % 2))
    assert len(row.samples_ms) == 20
    assert "%*" in text
    assert Quote(
        "bimodal: exact (1 row): the samples fall into two groups apart from each other, and the median is one of them "
        "or between"
    ).stands_in(text)


class Nvml:
    """NVML of a GPU that gets hot: its clock goes down, and it says why."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def __init__(self, reasons: int) -> None:
        self._reasons = reasons
        self._clocks = iter([1980, *[1200] * 99])

    def nvmlInit(self) -> None:
        """Begin."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return "the GPU"

    def nvmlDeviceGetClockInfo(self, handle: str, which: int) -> int:
        return next(self._clocks)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 699_900

    def nvmlDeviceGetTemperature(self, handle: str, which: int) -> int:
        return 88

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self._reasons


def test_clocks_that_are_held_down_mark_a_time_and_never_drop_it(call: Call, tmp_path: Path) -> None:
    row, text = shown(call, tmp_path, surroundings=Surroundings(find_gpu(None, Nvml(0x44)), "NVIDIA H100 PCIe"))
    assert (row.status, row.flags) == ("throttled", ("throttled",))
    assert len(row.samples_ms) == 20
    assert Quote("throttled: sw_power_cap, hw_thermal_slowdown").stands_in(row.message)
    told = row.conditions
    assert (told["sm_clock_mhz_first"], told["sm_clock_mhz_last"]) == (1980, 1200)
    assert (told["power_w_max"], told["temperature_c_max"]) == (699.9, 88)
    assert [reading["sm_clock_mhz"] for reading in told["gpu_readings"][:2]] == [1980, 1200]
    assert told["gpu_readings"][-1]["samples"] == len(row.samples_ms)
    assert "(throttled)" in text
    assert Quote("throttled: exact (1 row): the clocks of the device were held down meanwhile").stands_in(text)


def test_a_cool_gpu_has_no_mark(call: Call, tmp_path: Path) -> None:
    row, text = shown(call, tmp_path, surroundings=Surroundings(find_gpu(None, Nvml(0x1)), "NVIDIA H100 PCIe"))
    assert (row.status, row.flags) == ("ok", ())
    assert row.conditions["sm_clock_mhz_min"] == 1200
    assert "throttled" not in text


def test_throttled_times_are_hollow_in_a_figure_and_no_verdict_rests_on_them(call: Call, tmp_path: Path) -> None:
    cool = write_run(tmp_path / "cool", sweep("one"))
    hot = write_run(tmp_path / "hot", sweep("two", slowed={1024: 1.2}, status=Status.THROTTLED))
    figure = call("plot", "times", "--run", str(hot), "--out", str(tmp_path / "figures"))
    assert figure.code == 0
    (page,) = (tmp_path / "figures").glob("*.html")
    quote = Quote("Hollow points: clocks were throttled while they were timed (n = 1,024, 2,048).")
    assert quote.stands_in(page.read_text(encoding="utf-8"))
    answer = call("compare", str(cool), str(hot))
    assert Quote("throttled_on_one_side: the clocks of one side were throttled").stands_in(answer.out)
    assert "0 slower, 8 ambiguous" in answer.out


def test_more_operations_than_the_device_can_do_are_not_believed(call: Call, tmp_path: Path) -> None:
    surroundings = Surroundings(gpu_name="NVIDIA H100 80GB HBM3")
    row, text = shown(call, tmp_path, lambda number: 1e-7 * steady(number), surroundings=surroundings)
    assert row.flags == ("above_peak",)
    assert Quote("1,020 TFLOP/s of executed operations, and the device can do 544.5 at most").stands_in(row.message)
    assert Quote(
        "above_peak: exact (1 row): more operations per second than the device can do: not all of the work was timed"
    ).stands_in(text)
    slower, text = shown(call, tmp_path, lambda number: 1e-6 * steady(number), surroundings=surroundings)
    assert (slower.flags, slower.message) == ((), "")


def test_others_on_the_machine_are_told(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(1000))

    def times() -> CpuTimes:
        """Between two moments, a second each, others use half of the two cores."""
        moment = next(moments)
        return CpuTimes(float(moment), 1.5 * moment, 0.5 * moment)

    monkeypatch.setattr(conditions, "read_cpu_times", times)
    row, text = shown(call, tmp_path, surroundings=Surroundings(cpus=2))
    assert row.flags == ("busy_machine",)
    assert row.conditions["others_share"] == 0.5
    assert Quote("busy_machine: exact (1 row): other processes used the cores meanwhile").stands_in(text)


def test_a_slow_first_call_is_written_down_apart(call: Call, tmp_path: Path) -> None:
    from tests.helpers.faulty_methods import compiles

    compiles.now_s, compiles.is_compiled = 0.0, False
    clock = FakeClock(reads_s=lambda: compiles.now_s)
    found = Measured(item("tests.helpers.faulty_methods.compiles"), passes=("forward",), clock=clock)
    row = found.timings("compiles")["forward"]
    assert row.first_call_ms == pytest.approx(90_000)
    assert max(row.samples_ms) == pytest.approx(1.0)
    run = write_run(tmp_path / "run", found.records)
    assert '"first_call_ms": 90' in call("show", "--run", str(run), "--json").out
    text = call("show", "--run", str(run)).out
    assert "1.00 ms" in text
    assert "90" not in text.partition("causal masking")[2]


def test_a_single_sample_has_no_interval_that_would_look_perfect(call: Call, tmp_path: Path) -> None:
    point = points()[0]
    texts = []
    for name, samples in (("one", (40.0,)), ("two", (40.0, 42.0))):
        run = write_run(tmp_path / name, rounds(point, count=1, samples_ms=samples))
        texts.append(call("show", "--run", str(run)).out)
    one, two = ([line for line in text.splitlines() if " forward " in line] for text in texts)
    assert "±" not in one[0]
    assert "±" in two[0]


def test_bursts_and_lasting_load_are_never_laid_together(call: Call, tmp_path: Path) -> None:
    burst = write_run(tmp_path / "burst", sweep("one"))
    hot = write_run(tmp_path / "hot", sweep("two", slowed={1024: 1.3}, protocol="sustained"))
    answer = call("compare", str(burst), str(hot))
    assert Quote("different_protocol: times of different protocols are not comparable").stands_in(answer.out)
    assert "0 slower, 8 ambiguous" in answer.out
    both = write_run(tmp_path / "both", [*sweep("one", count=1), *sweep("two", count=1, protocol="sustained", round=1)])
    answer = call("plot", "times", "--run", str(both))
    assert answer.code == 2
    assert Quote("protocol varies (strict, sustained) and this figure does not show it; choose one: protocol=strict"
                 ).stands_in(answer.err)  # fmt: skip
