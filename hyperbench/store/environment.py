"""What produced a number: machine, driver, libraries, commit and settings. No torch; its facts are passed in."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbench import __version__

_GIB = 2.0**30
_COMMAND_LIMIT_S = 10.0
_PACKAGE = Path(__file__).resolve().parents[1]
#: Parts of hyperbench that make no numbers: what reads them, and the command line.
_NOT_MEASURING = ("analyze", "commands", "cli.py", "__main__.py")
#: Environment variables that change what is measured.
_ENV_PREFIXES = (
    "OMP_",
    "MKL_",
    "KMP_",
    "GOMP_",
    "OPENBLAS_",
    "DNNL_",
    "ONEDNN_",
    "ATEN_",
    "MALLOC_",
    "PYTORCH_",
    "CUDA_",
    "CUBLAS_",
    "CUDNN_",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_",
    "LD_PRELOAD",
    "TRITON_INTERPRET",
    "HYPERATTN_AUTOTUNE",
)


@dataclass(frozen=True)
class Key:
    """A key of environment.json: its type, what a value must satisfy, and how it is shown."""

    kind: type
    check: Callable[[Any], bool] = lambda value: True
    show: Callable[[Any], str] = str


def _filled(value: str) -> bool:
    return bool(value.strip())


def _positive(value: float) -> bool:
    return value > 0


def _gib(value: int) -> str:
    return f"{value / _GIB:.1f} GiB"


def _pairs(value: Mapping[str, object]) -> str:
    return " ".join(f"{name}={text}" for name, text in value.items())


#: Every key there is; a value may be null where the machine does not tell.
KEYS: dict[str, Key] = {
    "machine": Key(str, _filled),
    "cpu_model": Key(str, _filled),
    "cpu_count": Key(int, _positive),
    "affinity": Key(str, _filled),
    "threads": Key(int, _positive),
    "parallel": Key(dict, show=_pairs),
    "memory_total_bytes": Key(int, _positive, _gib),
    "gpu_name": Key(str, _filled),
    "gpu_count": Key(int, lambda value: value >= 0),
    "gpu_memory_bytes": Key(int, _positive, _gib),
    "driver": Key(str, _filled),
    "cuda": Key(str, _filled),
    "cudnn": Key(str, _filled),
    "torch": Key(str, _filled),
    "triton": Key(str, _filled),
    "kernels": Key(dict, show=_pairs),
    "flash_attn": Key(str, _filled),
    "python": Key(str, _filled),
    "os": Key(str, _filled),
    "hyperbench": Key(str, _filled),
    "commit": Key(str, lambda value: all(c in "0123456789abcdef" for c in value)),
    "dirty": Key(bool),
    "code": Key(str, _filled),
    "env_vars": Key(dict, show=_pairs),
    "aa_floor": Key(float, lambda value: 0 <= value < math.inf, lambda value: f"{value:.2%}"),
    "timer_resolution_ns": Key(int, lambda value: value >= 0, lambda value: f"{value:,} ns"),
    "flush_ratio": Key(float, _positive, lambda value: f"{value:.2f}"),
    "device": Key(str, _filled),
    "device_reason": Key(str),
    "config_hash": Key(str, _filled),
    "run_id": Key(str, _filled),
    "started": Key(str, _filled),
    "schema_version": Key(int, _positive),
}

#: Keys that must agree for a run to be resumed: numbers of two machines, libraries or states of the code never stand in
#: one table. The commit is not among them: `code` says whether what is measured has changed.
RESUME_KEYS = (
    "machine", "cpu_model", "gpu_name", "threads", "code", "torch", "triton", "flash_attn", "cuda", "cudnn", "driver",
    "python", "os", "affinity", "env_vars",
)  # fmt: skip
_SHOWN_CHARS = 40


def collect(
    torch_facts: Mapping[str, Any], settings: Mapping[str, Any], env: Mapping[str, str], targets: Iterable[str] = ()
) -> dict[str, Any]:
    """All keys: what this machine tells, what torch told (`torch_facts`), and the run's own (`settings`).

    `env` is what the workers' environment adds to this one, `targets` the functions that are measured. Raises
    ValueError on a value that its key does not allow.
    """
    known = {**_machine(), **_libraries(), **_repository(_PACKAGE), "code": code_fingerprint(targets)}
    known.update({name: value for name, value in torch_facts.items() if name in KEYS})
    known.update(settings)
    known["driver"] = _driver() if known.get("gpu_name") else None
    known["env_vars"] = relevant_env({**os.environ, **env})
    on_gpu = known.get("device") == "cuda" and known.get("gpu_name")
    known["machine"] = known["gpu_name"] if on_gpu else cpu_label(known["cpu_model"], known["cpu_count"])
    return checked({name: known.get(name) for name in KEYS})


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, if each is null or of its key's type and allowed; else ValueError, naming key and value."""
    for name, value in values.items():
        key = KEYS.get(name)
        if key is None:
            raise ValueError(f"environment key {name!r} is unknown; allowed: {', '.join(KEYS)}")
        right_type = isinstance(value, key.kind) and (key.kind is bool or not isinstance(value, bool))
        if value is not None and not (right_type and key.check(value)):
            raise ValueError(f"environment key {name}={value!r} must be a valid {key.kind.__name__}")
    return dict(values)


def changes(there: Mapping[str, Any], here: Mapping[str, Any], keys: Iterable[str] = RESUME_KEYS) -> list[str]:
    """Differences of two environments as short texts; a key that only one of them has is no difference."""

    def short(value: Any) -> str:
        text = str(value)
        return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."

    differing = (key for key in keys if key in there and key in here and there[key] != here[key])
    return [f"{key} ({short(there[key])} there, {short(here[key])} here)" for key in differing]


def shown(values: Mapping[str, Any]) -> dict[str, str]:
    """Every known value as text for people; a null is left out."""
    return {name: key.show(values[name]) for name, key in KEYS.items() if values.get(name) is not None}


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
    """The model name in the text of /proc/cpuinfo, if it says one."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return None


def code_fingerprint(targets: Iterable[str] = ()) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the code that is measured and that measures, committed or not.

    All of hyperattn_core, and of hyperbench every package but analyze and commands; of `targets`, functions by their
    full names, that lie elsewhere the module that each is in (not what that module imports). Nothing is imported.
    """
    core = importlib.util.find_spec("hyperattn_core")
    digest = hashlib.sha256()
    for folder in (_PACKAGE, *map(Path, (core and core.submodule_search_locations) or [])):
        for path in sorted(folder.rglob("*.py")):
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
    if parts[0] in ("hyperbench", "hyperattn_core"):
        return None
    for length in range(len(parts) - 1, 0, -1):
        for folder in dict.fromkeys([os.getcwd(), *sys.path]):
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


def _machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    return {
        "cpu_model": (cpu_model(cpuinfo.read_text()) if cpuinfo.exists() else None) or platform.processor() or None,
        "cpu_count": available_cpus(),
        "affinity": ranges(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_total_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
        "os": platform.platform(),
    }


def _libraries() -> dict[str, Any]:
    return {
        "hyperbench": __version__,
        "torch": version_of("torch"),
        "triton": version_of("triton"),
        "flash_attn": version_of("flash-attn"),
    }


def _repository(folder: Path) -> dict[str, Any]:
    # Only a checkout of this project itself counts, not a repository that an installed copy happens to lie in.
    root = folder.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return {"commit": None, "dirty": None}
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    status = _output(["git", "-C", str(root), "status", "--porcelain"])
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    text = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return text.splitlines()[0].strip() if text else None


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
