"""Collected provenance of a run: machine, driver, libraries, code and settings. No torch; its facts are passed in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hyperbench import __version__
from hyperbench.store.environment import KEYS, checked

_COMMAND_LIMIT_S = 10.0
_PACKAGE = Path(__file__).resolve().parents[1]
#: The packages of this project.
OWN_PACKAGES = ("hyperbench", "hyperattn_core")
#: Parts of hyperbench that make no numbers: what reads them, and the command line.
_NOT_MEASURING = ("analyze", "commands", "cli.py", "options.py", "__main__.py")
#: Environment variables that change what is measured.
_ENV_PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "DNNL_", "ONEDNN_", "ATEN_", "MALLOC_", "PYTORCH_", "CUDA_",
    "CUBLAS_", "CUDNN_", "NVIDIA_TF32_OVERRIDE", "TORCH_", "LD_PRELOAD", "TRITON_INTERPRET", "HYPERATTN_AUTOTUNE",
)  # fmt: skip


def collect(
    torch_facts: Mapping[str, Any], settings: Mapping[str, Any], env: Mapping[str, str], targets: Iterable[str] = ()
) -> dict[str, Any]:
    """All keys: what this machine tells, what torch told (`torch_facts`), and the run's own (`settings`).

    `env` is what the workers' environment adds to this one, `targets` the functions that are measured. Raises
    ValueError on a value that its key does not allow.
    """
    known: dict[str, Any] = {**_machine(), **_repository(_PACKAGE), "code": code_fingerprint(targets)}
    known["hyperbench"] = __version__
    known.update({name.replace("-", "_"): version_of(name) for name in ("torch", "triton", "flash-attn")})
    known.update({name: value for name, value in torch_facts.items() if name in KEYS})
    known.update(settings)
    known["driver"] = _driver() if known.get("gpu_name") else None
    known["env_vars"] = relevant_env({**os.environ, **env})
    on_gpu = known.get("device") == "cuda" and known.get("gpu_name")
    known["machine"] = known["gpu_name"] if on_gpu else cpu_label(known["cpu_model"], known["cpu_count"])
    return checked({name: known.get(name) for name in KEYS})


def relevant_env(env: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that change what is measured, in alphabetical order."""
    return {name: env[name] for name in sorted(env) if name.startswith(_ENV_PREFIXES)}


def cpu_label(model: str | None, count: int | None) -> str:
    """A short name of a CPU for figures: vendor marks and clock rates left out, the cores counted."""
    name = model or platform.machine()
    for noise in ("(R)", "(TM)", "(r)", "(tm)", " CPU", " Processor"):
        name = name.replace(noise, "")
    name = " ".join(name.partition("@")[0].split()) or "unknown CPU"
    return f"{name}, {count} core{'' if count == 1 else 's'}" if count else name


def cpu_model(cpuinfo: str) -> str | None:
    """The model name in the text of /proc/cpuinfo, if it says one.

    Virtual machines give a name such as "AMD EPYC" to processors of very different speed: to one without a number the
    family and model are added, which tell the generation.
    """
    told: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if value:
            told.setdefault(name, value)
    model = told.get("model name") or told.get("Model")
    if model is None or any(char.isdigit() for char in model) or not {"cpu family", "model"} <= told.keys():
        return model
    return f"{model} (family {told['cpu family']}, model {told['model']})"


def code_fingerprint(targets: Iterable[str] = ()) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the code that is measured and that measures, committed or not.

    All of hyperattn_core, and of hyperbench every package but analyze and commands, and the data files of config; of
    `targets`, functions by their full names, that lie elsewhere the module that each is in (not what that module
    imports). Nothing is imported.
    """
    core = importlib.util.find_spec("hyperattn_core")
    digest = hashlib.sha256()
    for folder in (_PACKAGE, *map(Path, (core and core.submodule_search_locations) or [])):
        for path in sorted([*folder.rglob("*.py"), *(folder / "config").glob("*.yaml")]):
            inside = path.relative_to(folder)
            if not (folder == _PACKAGE and inside.parts[0] in _NOT_MEASURING):
                digest.update(f"{folder.name}/{inside}\0".encode() + path.read_bytes())
    for target in sorted(set(targets)):
        file = _module_file(target)
        if file is not None:
            digest.update(f"{target}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _module_file(target: str) -> Path | None:
    """The source of the module that a function is in, by its full name; None for our own.

    None too where no file of that name lies on the path: a module that an import hook finds is not seen.
    """
    parts = target.split(".")
    if parts[0] in OWN_PACKAGES:
        return None
    for length in range(len(parts) - 1, 0, -1):
        for folder in dict.fromkeys([*sys.path, os.getcwd()]):
            place = Path(folder or ".", *parts[:length])
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    return file
    return None


def available_cpus() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as people write them, in order: 0-3,8."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def own_cpu_model() -> str | None:
    """The model name of this machine's CPU, if the system says one."""
    cpuinfo = Path("/proc/cpuinfo")
    return (cpu_model(cpuinfo.read_text()) if cpuinfo.exists() else None) or platform.processor() or None


def _machine() -> dict[str, Any]:
    return {
        "cpu_model": own_cpu_model(),
        "cpu_count": available_cpus(),
        "affinity": ranges(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_total_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
        "os": platform.platform(),
    }


def _repository(folder: Path) -> dict[str, Any]:
    # Only a checkout of this project itself counts, not a repository that an installed copy happens to lie in.
    root = folder.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    status = _output(["git", "-C", str(root), "status", "--porcelain"])
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _driver() -> str | None:
    text = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return text.splitlines()[0].strip() if text else None


def _output(command: list[str]) -> str | None:
    # Variables such as GIT_DIR, which git sets for its hooks, would have git tell of another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=True, env=env)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
