"""Conditions of the samples of one pass: load from others, clocks, power, temperature, reasons for throttling.

Everything is read between the samples, through objects that are passed in, and nothing read here is required: what a
system does not tell is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any

from hyperbench.measure.cpu_load import BUSY_SHARE, SHORTEST_S, CpuTimes, others_used_s, read_cpu_mhz, read_cpu_times
from hyperbench.measure.worker.conditions.gpu_sensors import Gpu, GpuReading
from hyperbench.store.schema import Flag

#: So many of the latest readings are kept: the one that is looked for lies a quarter of a second back.
_HISTORY = 200


def new_history() -> deque[CpuTimes]:
    """An empty list of the latest readings of the cores' times."""
    return deque(maxlen=_HISTORY)


@dataclass
class Conditions:
    """Follow one pass of one point: `begin_turn` and `end_turn` around each of its turns, then `summary` and `flags`.

    `cpu_times` and `cpu_mhz` read this machine, `gpu` the GPU that is measured, if one is; `cpus` is how many cores
    there are for us. `history` holds what `cpu_times` gave before, also for other passes: where the turns are too short
    to tell what others used, it is told of the time from a moment before them to the end of the last one.
    """

    gpu: Gpu | None = None
    _: KW_ONLY
    cpus: int = 1
    cpu_times: Callable[[], CpuTimes] = field(default_factory=lambda: read_cpu_times)
    cpu_mhz: Callable[[], float | None] = read_cpu_mhz
    history: deque[CpuTimes] = field(default_factory=new_history)

    def __post_init__(self) -> None:
        self._begun: CpuTimes | None = None
        self._around_s = self._around_others_s = 0.0
        self._elapsed_s = self._others_s = 0.0
        # Each with the number of samples that were taken before it.
        self._readings: list[tuple[int, GpuReading]] = []
        self._mhz: float | None = None

    def begin_turn(self) -> None:
        """Read what is needed before samples are taken."""
        self._begun = self._now()

    def end_turn(self, samples: int = 0) -> None:
        """Read everything after samples were taken, `samples` with all turns before, while it is still to be seen."""
        if self.gpu is not None:
            self._readings.append((samples, self.gpu.read()))
        times, begun = self._now(), self._begun
        self._begun = None
        if begun is not None and (others_s := others_used_s(begun, times)) is not None:
            self._elapsed_s += times.now_s - begun.now_s
            self._others_s += others_s
            if self._elapsed_s < SHORTEST_S:
                self._look_around(times)
        # On a machine of many cores this reading takes a while.
        if self._mhz is None:
            self._mhz = self.cpu_mhz()

    @property
    def others_share(self) -> float | None:
        """The part of the cores' time that others used during the samples; None where it is not known."""
        elapsed_s, others_s = self._elapsed_s, self._others_s
        if elapsed_s < SHORTEST_S:
            elapsed_s, others_s = self._around_s, self._around_others_s
        if elapsed_s < SHORTEST_S:
            return None
        return min(1.0, max(0.0, others_s / (elapsed_s * self.cpus)))

    def _now(self) -> CpuTimes:
        times = self.cpu_times()
        self.history.append(times)
        return times

    def _look_around(self, times: CpuTimes) -> None:
        """Note the use by others since the latest known moment that lies long enough before this one."""
        for before in reversed(self.history):
            if times.now_s - before.now_s >= SHORTEST_S and (others_s := others_used_s(before, times)) is not None:
                self._around_s, self._around_others_s = times.now_s - before.now_s, others_s
                return

    @property
    def throttle_reasons(self) -> tuple[str, ...]:
        """Reasons for which the clocks of the GPU were held down at any moment, each once."""
        return tuple(dict.fromkeys(name for _, reading in self._readings for name in reading.throttle_reasons))

    def flags(self) -> list[Flag]:
        """Flags for which the conditions alone are the reason."""
        share = self.others_share
        busy = [Flag.BUSY_MACHINE] if share is not None and share > BUSY_SHARE else []
        return busy + ([Flag.THROTTLED] if self.throttle_reasons else [])

    def summary(self) -> dict[str, Any]:
        """Plain data for the record; what is not known is left out."""
        found: dict[str, Any] = {"others_share": _rounded(self.others_share, 3), "cpu_mhz": _rounded(self._mhz, 0)}
        if self._readings:
            clocks = [r.sm_clock_mhz for _, r in self._readings if r.sm_clock_mhz is not None]
            powers = [r.power_w for _, r in self._readings if r.power_w is not None]
            degrees = [r.temperature_c for _, r in self._readings if r.temperature_c is not None]
            found |= {
                "sm_clock_mhz_first": clocks[0] if clocks else None,
                "sm_clock_mhz_last": clocks[-1] if clocks else None,
                "sm_clock_mhz_min": min(clocks, default=None),
                "power_w_max": _rounded(max(powers, default=None), 1),
                "temperature_c_max": max(degrees, default=None),
                "throttle_reasons": list(self.throttle_reasons),
                "gpu_readings": [
                    {"samples": samples, **asdict(reading), "throttle_reasons": list(reading.throttle_reasons)}
                    for samples, reading in self._readings
                ],
            }
        return {name: value for name, value in found.items() if value is not None}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
