"""The load of this machine's cores: time used by all processes and by our own, and their clock. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hyperbench.stats.samples import median

#: Other processes that use more than this part of the cores' time disturb.
BUSY_SHARE = 0.1
#: Shorter than this, the kernel's counts of used time (in hundredths of a second) say nothing.
SHORTEST_S = 0.25
_STAT = Path("/proc/stat")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of one moment: on the clock, and used since the start by all processes on our cores and by our own."""

    now_s: float
    all_s: float | None
    own_s: float


def busy_warning(begun: CpuTimes, ended: CpuTimes, cpus: int) -> str:
    """One line where others used the cores between two moments before a run begins; empty where all is quiet."""
    if begun.all_s is None or ended.all_s is None or ended.now_s - begun.now_s < SHORTEST_S:
        return ""
    share = (others_used_s(begun, ended) or 0.0) / ((ended.now_s - begun.now_s) * cpus)
    if share <= BUSY_SHARE:
        return ""
    return (
        f"this machine is busy: others use {min(share, 1.0):.0%} of its {cpus} core{'' if cpus == 1 else 's'}; "
        "times will scatter, and rows are flagged busy_machine where this goes on during the samples"
    )


def others_used_s(begun: CpuTimes, ended: CpuTimes) -> float | None:
    """Seconds of the cores that others used between two moments; None where the system does not tell."""
    if begun.all_s is None or ended.all_s is None:
        return None
    return (ended.all_s - begun.all_s) - (ended.own_s - begun.own_s)


def read_cpu_times() -> CpuTimes:
    """The times of now: of all processes on the cores we may run on, and our own, with those of children that ended."""
    own = os.times()
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        used = busy_seconds(_STAT.read_text(), cpus)
    except OSError:
        used = None
    return CpuTimes(time.perf_counter(), used, sum(own[:4]))


def busy_seconds(stat: str, cpus: Iterable[int] | None = None, ticks_per_s: float | None = None) -> float | None:
    """Seconds that cores were not idle since the start of the system, from the text of /proc/stat; time stolen by
    other machines on the same hardware counts. None if the text tells nothing of these cores.
    """
    ticks = ticks_per_s or float(os.sysconf("SC_CLK_TCK"))
    wanted = None if cpus is None else {f"cpu{number}" for number in cpus}
    total, seen = 0.0, False
    for line in stat.splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name != "cpu" and (wanted is None or name in wanted):
            # user nice system idle iowait irq softirq steal; guests are part of user.
            numbers = [float(field) for field in fields[:8] if field.isdigit()]
            total += sum(numbers) - sum(numbers[3:5])
            seen = True
    return total / ticks if seen else None


def read_cpu_mhz() -> float | None:
    """The median clock of the cores in MHz; None where the system does not tell."""
    try:
        return cpu_mhz(_CPUINFO.read_text())
    except OSError:
        return None


def cpu_mhz(cpuinfo: str) -> float | None:
    """The median clock in the text of /proc/cpuinfo in MHz, if it tells."""
    values = []
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "cpu MHz":
            with suppress(ValueError):
                values.append(float(value))
    return median(values) if values else None
