"""Which GPU is here, under which name its results are kept, and why it cannot be measured where it cannot. No torch."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hyperbench.config.catalog import ConfigError
from hyperbench.measure.runner.prepare import ask_probe

#: Operations per second of exact attention where none could be measured; for estimates of time only.
NOMINAL_FLOPS_PER_S = {"cuda": 2e14, "cpu": 5e10}
#: What measuring imports; figures need plotly and .parquet needs pyarrow, and both can be made later from the tables.
REQUIRED = ("torch", "pandas", "hydra", "omegaconf", "yaml", "typer", "rich", "pytest")
_MIN_PYTHON = (3, 11)
#: Words of a device's name that tell no two devices of one memory size apart.
_NOISE = re.compile(r"nvidia|tesla|geforce|graphics|generation|gpu|hbm\d*e?|sxm\d*")


@dataclass(frozen=True)
class Machine:
    """Where it would be measured.

    Attributes:
        device: cuda or cpu.
        name: the device's own name, None where there is none.
        versions: of Python, torch, CUDA and Triton, as text.
        flops_per_s: rate of exact attention, for estimates of time.
        problem: why nothing can be measured here, in one line; empty where it can.
    """

    device: str
    name: str | None
    versions: dict[str, str]
    flops_per_s: float
    problem: str = ""

    @property
    def folder(self) -> str:
        """The name of its folder under results/reference."""
        return gpu_folder(self.name) if self.name else "<gpu>"

    def line(self) -> str:
        """The machine in one line."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"machine: {self.name or f'no {self.device} device'} ({versions})"


def gpu_folder(name: str) -> str:
    """A short folder name from a device's name: NVIDIA H100 80GB HBM3 is h100-80gb."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    kept = [word for word in words if not _NOISE.fullmatch(word)]
    return "-".join(kept or words) or "gpu"


def examine(
    device: str,
    ask: Callable[[dict[str, Any], Mapping[str, str]], dict[str, Any]] = ask_probe,
    missing: Iterable[str] | None = None,
) -> Machine:
    """Ask the machine; whatever is wrong with it becomes its `problem`.

    `ask` puts a request to the probe; `missing` are the modules that are not installed, looked up if None.
    """
    versions = {"Python": sys.version.split()[0]}
    nominal = NOMINAL_FLOPS_PER_S[device]
    if sys.version_info < _MIN_PYTHON:
        return Machine(device, None, versions, nominal, f"Python 3.11 or newer is needed, this is {versions['Python']}")
    absent = [name for name in REQUIRED if importlib.util.find_spec(name) is None] if missing is None else list(missing)
    if absent:
        return Machine(device, None, versions, nominal, f"{sys.executable} has no {', '.join(absent)}")
    try:
        facts = ask({"methods": [], "inputs": [], "measure_rate": True}, {})
    except ConfigError as error:
        return Machine(device, None, versions, nominal, str(error))
    versions["torch"] = facts["torch"]
    if facts["cuda"]:
        versions["CUDA"] = facts["cuda"]
    triton = _triton_version()
    if triton:
        versions["Triton"] = triton
    if device == "cpu":
        return Machine(device, "cpu", versions, float(facts["flops_per_s"]["cpu"]))
    if not facts["cuda_available"]:
        problem = f"PyTorch {facts['torch']} sees no CUDA GPU here"
        return Machine(device, None, versions, nominal, problem)
    return Machine(device, facts["gpu_name"], versions, float(facts["flops_per_s"]["cuda"]))


def _triton_version() -> str | None:
    from hyperbench.store.provenance import version_of

    return version_of("triton")
