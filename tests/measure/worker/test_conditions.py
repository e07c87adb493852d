"""What is read between samples: load of others, a GPU that is only pretended, rates above a peak."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hyperbench.flops import above_peak_note, peak_flops_per_s
from hyperbench.measure.cpu_load import CpuTimes, busy_seconds, busy_warning, cpu_mhz, read_cpu_times
from hyperbench.measure.worker.conditions.conditions import Conditions, new_history
from hyperbench.measure.worker.conditions.gpu_sensors import GpuReading, NvmlGpu, find_gpu, throttle_reasons
from hyperbench.measure.worker.conditions.machine import Machine, machine_for
from hyperbench.store.schema import Flag

STAT = """cpu  999 0 999 9999 0 0 0 0 0 0
cpu0 100 10 50 5000 30 1 2 7 60 0
cpu1 200 0 100 4000 0 0 0 0 0 0
intr 12345
"""


def followed(
    *turns: tuple[CpuTimes, CpuTimes], gpu: Any = None, cpus: int = 2, mhz: float | None = 2500.0
) -> Conditions:
    """Conditions after turns that began and ended at these times."""
    times = iter([moment for turn in turns for moment in turn])
    found = Conditions(gpu, cpus=cpus, cpu_times=lambda: next(times), cpu_mhz=lambda: mhz)
    for _ in turns:
        found.begin_turn()
        found.end_turn(samples=len(found.summary().get("gpu_readings", [])) * 10 + 10)
    return found


def turn(start_s: float, seconds: float, others_s: float, own_s: float = 1.0) -> tuple[CpuTimes, CpuTimes]:
    """A turn in which this process and others used so many seconds of the cores."""
    return CpuTimes(start_s, 50.0, 5.0), CpuTimes(start_s + seconds, 50.0 + own_s + others_s, 5.0 + own_s)


def test_what_others_used_of_the_cores_is_told_and_flagged() -> None:
    quiet = followed(turn(0, 1.0, 0.02), turn(9, 1.0, 0.06))
    assert quiet.others_share == pytest.approx(0.02)
    assert quiet.flags() == []
    busy = followed(turn(0, 1.0, 0.02), turn(9, 1.0, 1.0))
    assert busy.others_share == pytest.approx(1.02 / 4)
    assert busy.flags() == [Flag.BUSY_MACHINE]
    assert busy.summary() == {"others_share": 0.255, "cpu_mhz": 2500.0}


def test_between_turns_others_may_do_what_they_like() -> None:
    first = (CpuTimes(0.0, 0.0, 0.0), CpuTimes(1.0, 1.0, 1.0))
    second = (CpuTimes(9.0, 17.0, 1.0), CpuTimes(10.0, 18.0, 2.0))
    assert followed(first, second).others_share == 0.0


def test_a_moment_too_short_or_a_system_that_does_not_tell_says_nothing() -> None:
    assert followed(turn(0, 0.1, 0.2)).flags() == []
    untold = followed((CpuTimes(0, None, 0), CpuTimes(9, None, 1)), mhz=None)
    assert untold.others_share is None
    assert (untold.flags(), untold.summary()) == ([], {})


def test_a_pass_of_a_moment_is_judged_with_the_time_just_before_it() -> None:
    # Others take a whole core of two all the time; turns of 20 ms lie 100 ms apart, and each pass has two of them.
    moments = iter(CpuTimes(at_s, 1.5 * at_s, 0.5 * at_s) for i in range(20) for at_s in (0.1 * i, 0.1 * i + 0.02))
    history = new_history()
    passes = []
    for _ in range(4):
        passes.append(Conditions(cpus=2, cpu_times=lambda: next(moments), cpu_mhz=lambda: None, history=history))
        for _ in range(2):
            passes[-1].begin_turn()
            passes[-1].end_turn()
    # Of the first nothing is known yet.
    assert [one.others_share for one in passes] == [None, *[pytest.approx(0.5)] * 3]
    assert passes[1].flags() == [Flag.BUSY_MACHINE]


def test_passes_of_one_process_know_what_was_read_for_those_before() -> None:
    around = Machine()
    assert around.conditions() is not around.conditions()
    assert len(around.history) == 2
    around.conditions().begin_turn()
    assert len(around.history) == 4
    assert not Machine().history
    # The first pass of a group can look back to the group's begin.
    assert len(machine_for("cpu", 1).history) == 1


class FakeGpu:
    """Gives one reading after the other."""

    def __init__(self, *readings: GpuReading) -> None:
        self._left = iter(readings)

    def read(self) -> GpuReading:
        """The next one."""
        return next(self._left)


def test_a_gpu_is_read_after_every_turn_and_any_reason_throttles() -> None:
    gpu = FakeGpu(
        GpuReading(1980.0, 300.0, 50.0),
        GpuReading(1200.0, 700.25, 85.0, ("hw_thermal_slowdown", "sw_power_cap")),
        GpuReading(1900.0, None, 80.0, ("sw_power_cap",)),
    )
    found = followed(*(turn(t, 1.0, 0.0) for t in (0, 2, 4)), gpu=gpu)
    assert found.throttle_reasons == ("hw_thermal_slowdown", "sw_power_cap")
    assert found.flags() == [Flag.THROTTLED]
    told = found.summary()
    assert (told["sm_clock_mhz_first"], told["sm_clock_mhz_last"], told["sm_clock_mhz_min"]) == (1980.0, 1900.0, 1200.0)
    assert (told["power_w_max"], told["temperature_c_max"]) == (700.2, 85.0)
    assert told["throttle_reasons"] == ["hw_thermal_slowdown", "sw_power_cap"]
    # Which samples they go with: the first ten came before anything was held down.
    readings = [(r["samples"], r["sm_clock_mhz"], r["power_w"], r["throttle_reasons"]) for r in told["gpu_readings"]]
    assert readings[0] == (10, 1980.0, 300.0, [])
    assert readings[1:] == [
        (20, 1200.0, 700.25, ["hw_thermal_slowdown", "sw_power_cap"]), (30, 1900.0, None, ["sw_power_cap"])
    ]  # fmt: skip


def nvml(**answers: Any) -> Any:
    """An NVML module that answers so; an exception is raised, and all else it lacks."""

    def function(value: Any) -> Any:
        def answer(*args: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

        return answer

    return SimpleNamespace(**{name: function(value) for name, value in answers.items()})


def test_a_gpu_is_asked_through_nvml() -> None:
    gpu = NvmlGpu(
        nvml(nvmlDeviceGetPowerUsage=350_500, nvmlDeviceGetClockInfo=1410, nvmlDeviceGetTemperature=61,
             nvmlDeviceGetCurrentClocksEventReasons=0x44), "handle",
    )  # fmt: skip
    assert gpu.read() == GpuReading(1410.0, 350.5, 61.0, ("sw_power_cap", "hw_thermal_slowdown"))


def test_what_a_driver_does_not_answer_is_left_out() -> None:
    gpu = NvmlGpu(
        nvml(nvmlDeviceGetPowerUsage=RuntimeError("not supported"), nvmlDeviceGetCurrentClocksThrottleReasons=0x8), 0
    )
    assert gpu.read() == GpuReading(throttle_reasons=("hw_slowdown",))


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x2, 0x10, 0x100])
def test_idleness_and_settings_are_no_throttling(bits: int) -> None:
    assert throttle_reasons(bits) == ()


def test_a_gpu_is_found_by_its_id_and_its_absence_is_no_error() -> None:
    asked: list[Any] = []

    def new(name: str) -> str:
        asked.append(name)
        return "handle"

    def old(name: Any) -> str:
        if isinstance(name, str):
            raise TypeError("bytes wanted")
        asked.append(name)
        return "handle"

    for handle in (new, old):
        module = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=handle)
        assert find_gpu("1234-5", module) is not None
    assert asked == ["GPU-1234-5", b"GPU-1234-5"]
    assert find_gpu("1234-5", nvml(nvmlInit=RuntimeError("no driver"))) is None
    assert find_gpu(None, nvml(nvmlInit=None)) is None


def test_busy_time_counts_neither_idleness_nor_other_cores() -> None:
    # user + nice + system + irq + softirq + steal; guests are part of user.
    assert busy_seconds(STAT, [0], 100.0) == pytest.approx(1.70)
    assert busy_seconds(STAT, [1], 100.0) == pytest.approx(3.00)
    assert busy_seconds(STAT, None, 100.0) == pytest.approx(4.70)
    assert busy_seconds(STAT, [7], 100.0) is None
    assert busy_seconds("", [0], 100.0) is None


def test_the_clock_of_the_cores_is_the_middle_one() -> None:
    assert cpu_mhz("cpu MHz\t\t: 800.5\nmodel name: x\ncpu MHz: 3000\ncpu MHz: 2000\ncpu MHz: ?\n") == 2000.0
    assert cpu_mhz("model name: x\n") is None


def test_this_machine_is_read() -> None:
    before = read_cpu_times()
    after = read_cpu_times()
    assert after.now_s >= before.now_s
    assert after.own_s >= before.own_s
    told = machine_for("cpu", threads=3).fixed
    assert told["threads"] == 3
    assert set(told) == {"threads", "affinity", "load_average", "machine", "torch"}


@pytest.mark.parametrize(
    ("others_s", "seconds", "busy"), [(0.1, 3.0, False), (3.0, 3.0, True), (9.0, 3.0, True), (0.2, 0.1, False)]
)
def test_a_machine_that_others_use_is_told_before_a_run(others_s: float, seconds: float, busy: bool) -> None:
    warning = busy_warning(*turn(0, seconds, others_s), cpus=2)
    assert bool(warning) == busy
    assert "\n" not in warning
    assert not busy or "of its 2 cores" in warning
    assert busy_warning(CpuTimes(0, None, 0), CpuTimes(9, None, 1), cpus=2) == ""


def test_the_peak_of_a_gpu_is_found_by_its_name() -> None:
    h100 = peak_flops_per_s("NVIDIA H100 80GB HBM3", "bfloat16")
    pcie = peak_flops_per_s("NVIDIA H100 PCIe", "bfloat16")
    assert h100 is not None
    assert pcie is not None
    assert pcie < h100
    for name, dtype in (("NVIDIA A100-SXM4-40GB", "float16"), ("Tesla T4", "float32"), ("NVIDIA L4", "bfloat16")):
        assert peak_flops_per_s(name, dtype) is not None
    assert peak_flops_per_s("NVIDIA A100-SXM4-40GB", "float64") is None
    for unknown in (None, "", "NVIDIA H1000", "AMD EPYC 7B12", "NVIDIA A10X"):
        assert peak_flops_per_s(unknown, "bfloat16") is None


def test_a_rate_above_the_peak_is_noticed() -> None:
    assert above_peak_note(2e12, 1.0, 1e15)
    assert not above_peak_note(0.5e12, 1.0, 1e15)
    assert not above_peak_note(2e12, 1.0, None)
    assert not above_peak_note(None, 1.0, 1e15)
