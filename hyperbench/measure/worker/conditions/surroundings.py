"""What a worker knows of the machine around its samples: the GPU's sensors and peak rate, cores, threads, load."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from hyperbench.flops import peak_flops_per_s
from hyperbench.measure.cpu_load import CpuTimes, read_cpu_times
from hyperbench.measure.worker.conditions.conditions import Conditions, Gpu, fixed_conditions, new_history


@dataclass(frozen=True)
class Surroundings:
    """`fixed` holds for the whole process; `gpu` can be asked between samples, `gpu_name` tells the peak rate.

    `history` is what its conditions have read of the cores' times, one after the other.
    """

    gpu: Gpu | None = None
    gpu_name: str | None = None
    cpus: int = 1
    fixed: dict[str, Any] = field(default_factory=dict)
    history: deque[CpuTimes] = field(default_factory=new_history)

    def conditions(self) -> Conditions:
        """New conditions to follow one pass of one point."""
        self.history.append(read_cpu_times())
        return Conditions(self.gpu, cpus=self.cpus, history=self.history)

    def peak_flops_per_s(self, dtype: str) -> float | None:
        """The most operations per second of the GPU; None where it is not known, as for CPUs."""
        return peak_flops_per_s(self.gpu_name, dtype)


def surroundings_for(device: str, threads: int) -> Surroundings:
    """What is around this process on a device."""
    from hyperbench.store.provenance import available_cpus

    fixed = fixed_conditions(threads)
    # So that the first pass has a moment to look back to.
    history = new_history()
    history.append(read_cpu_times())
    if device != "cuda":
        return Surroundings(cpus=available_cpus(), fixed=fixed, history=history)
    import torch

    from hyperbench.measure.worker.conditions.nvml import find_gpu

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    uuid = getattr(properties, "uuid", None)
    gpu = find_gpu(None if uuid is None else str(uuid))
    return Surroundings(gpu, properties.name, available_cpus(), {**fixed, "nvml": gpu is not None}, history)
