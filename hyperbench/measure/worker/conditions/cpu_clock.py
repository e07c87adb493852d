"""The clock of the cores, as the system tells it."""

from __future__ import annotations

from pathlib import Path

from hyperbench.stats.samples import median

_CPUINFO = Path("/proc/cpuinfo")


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
            try:
                values.append(float(value))
            except ValueError:
                continue
    return median(values) if values else None
