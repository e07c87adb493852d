"""The machine around the samples, as a worker knows it: the GPU's sensors and peak rate, cores, threads, load."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from hyperbench.flops import peak_flops_per_s
from hyperbench.measure.cpu_load import CpuTimes, read_cpu_times
from hyperbench.measure.worker.conditions.conditions import Conditions, new_history
from hyperbench.measure.worker.conditions.gpu_sensors import Gpu, find_gpu
from hyperbench.store.provenance import available_cpus, cpu_label, own_cpu_model, ranges


@dataclass(frozen=True)
class Machine:
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


def machine_for(device: str, threads: int) -> Machine:
    """This machine, for a process that measures on a device with so many threads."""
    fixed: dict[str, Any] = {"threads": threads, "affinity": "", "load_average": None}
    if hasattr(os, "sched_getaffinity"):
        fixed["affinity"] = ranges(os.sched_getaffinity(0))
    with suppress(OSError):  # the system does not tell
        fixed["load_average"] = round(os.getloadavg()[0], 2)
    gpu, gpu_name = None, None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        uuid = getattr(properties, "uuid", None)
        gpu, gpu_name = find_gpu(None if uuid is None else str(uuid)), properties.name
        fixed["nvml"] = gpu is not None
    fixed |= {"machine": gpu_name or cpu_label(own_cpu_model(), available_cpus()), "torch": torch.__version__}
    machine = Machine(gpu, gpu_name, available_cpus(), fixed)
    # So that the first pass has a moment to look back to.
    machine.history.append(read_cpu_times())
    return machine
