"""A GPU asked through NVML (the package nvidia-ml-py), where that is installed; measuring never depends on it."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any, Protocol

#: Bits of NVML's clock event reasons that mean clocks below what was asked for; idleness and settings do not count.
THROTTLE_BITS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


@dataclass(frozen=True)
class GpuReading:
    """Answers of a GPU at one moment; None where it does not tell."""

    sm_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle_reasons: tuple[str, ...] = ()


class Gpu(Protocol):
    """A GPU that can be asked."""

    def read(self) -> GpuReading:
        """The readings of its sensors now."""
        ...


class NvmlGpu:
    """One GPU behind an NVML module and a handle of it; what the driver does not answer is null."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def read(self) -> GpuReading:
        """Clock of the SMs in MHz, power in W, temperature in degrees Celsius, reasons for throttling."""
        nvml = self._nvml
        power_mw = self._asked("nvmlDeviceGetPowerUsage")
        bits = self._asked("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._asked("nvmlDeviceGetCurrentClocksThrottleReasons")
        return GpuReading(
            sm_clock_mhz=self._asked("nvmlDeviceGetClockInfo", getattr(nvml, "NVML_CLOCK_SM", 1)),
            power_w=None if power_mw is None else power_mw / 1e3,
            temperature_c=self._asked("nvmlDeviceGetTemperature", getattr(nvml, "NVML_TEMPERATURE_GPU", 0)),
            throttle_reasons=throttle_reasons(int(bits or 0)),
        )

    def _asked(self, name: str, *args: Any) -> float | None:
        try:
            return float(getattr(self._nvml, name)(self._handle, *args))
        except Exception:  # an older library lacks a function, a driver refuses an answer
            return None


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """The names of the reasons among the bits that NVML gives."""
    return tuple(name for bit, name in THROTTLE_BITS.items() if bits & bit)


def find_gpu(uuid: str | None, nvml: Any = None) -> NvmlGpu | None:
    """The GPU of this process (by `uuid` where PyTorch tells it, else the first visible); None without NVML."""
    try:
        module = nvml or importlib.import_module("pynvml")
        module.nvmlInit()
        if uuid:
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            # Older versions of the package want bytes.
            try:
                return NvmlGpu(module, module.nvmlDeviceGetHandleByUUID(name))
            except TypeError:
                return NvmlGpu(module, module.nvmlDeviceGetHandleByUUID(name.encode()))
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
        return NvmlGpu(module, module.nvmlDeviceGetHandleByIndex(int(first)))
    except Exception:  # no package, no driver, a GPU that NVML does not know
        return None
