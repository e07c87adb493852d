"""One `hyperbench run` from its words to its folder: prepare (nothing written), open the folder, measure. No torch."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperbench import environment, store
from hyperbench.catalog import ConfigError
from hyperbench.config import RunConfig, differing_keys, load
from hyperbench.measure import grid
from hyperbench.measure import noise as noise_room
from hyperbench.measure.child import Child, WorkerProcess
from hyperbench.measure.runner import Listener, Outcome, Runner
from hyperbench.schema import SCHEMA_VERSION
from hyperbench.store import StoreError

Facts = dict[str, Any]
_PROBE_LIMIT_S = 300.0
_LOG = "worker.log"
_FALLBACK_FLOPS_PER_S = 1e11
#: Keys of the environment that must agree for a run to go on: numbers of two origins never stand in one table.
_ORIGIN = ("machine", "threads", "torch", "triton", "flash_attn", "code")


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its configuration, its cells, and what torch said about this machine."""

    config: RunConfig
    cells: tuple[grid.Cell, ...]
    facts: Facts

    @property
    def flops_per_s(self) -> float:
        """The measured rate of exact attention on the run's device."""
        return float(self.facts.get("flops_per_s", {}).get(self.config.device.name, _FALLBACK_FLOPS_PER_S))

    def estimates_s(self) -> list[float]:
        """Seconds that each cell is likely to take, all rounds together."""
        config = self.config
        found = []
        for cell in self.cells:
            none_yet = grid.FinishedStages() if config.stages else None
            rounds = (
                grid.todo(cell, config.passes, config.error, r, set(), none_yet) for r in range(config.protocol.rounds)
            )
            found.append(sum(sum(grid.estimate_s(w, config, self.flops_per_s).values()) for w in rounds))
        return found


def prepare(words: Sequence[str], ask: Callable[[dict[str, Any], Mapping[str, str]], Facts] | None = None) -> Prepared:
    """Compose, check and expand a command line; nothing is written.

    `ask` puts a request to the probe. Raises ConfigError, one line, on anything that cannot be run.
    """
    chosen: list[str] = []

    def as_asked(asked: str) -> tuple[str, str]:
        chosen.append(asked)
        return ("cpu", "") if asked == "auto" else (asked, f"device={asked} was asked for")

    draft = load(words, as_asked)
    facts = (ask or ask_probe)(_request(draft), draft.device.env)
    if facts["problems"]:
        raise ConfigError(facts["problems"][0])
    config = load(words, lambda asked: choose_device(asked, facts))
    _check_device(config, facts)
    defaults = {target: found["defaults"] for target, found in facts["methods"].items()}
    try:
        return Prepared(config, grid.resolve(config, defaults), facts)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def choose_device(asked: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """The device to take and why. Raises ConfigError for device=cuda without a CUDA GPU."""
    if asked == "cuda" and not facts["cuda_available"]:
        raise ConfigError(f"device=cuda: PyTorch {facts['torch']} sees no CUDA GPU here; allowed: auto, cpu")
    if asked != "auto":
        return asked, f"device={asked} was asked for"
    if facts["cuda_available"]:
        return "cuda", f"PyTorch sees {facts['gpu_name']}"
    return "cpu", "PyTorch sees no CUDA GPU here"


def ask_probe(request: dict[str, Any], env: Mapping[str, str]) -> Facts:
    """The probe's answer. Raises ConfigError if the probe does not run, which means that torch does not import."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hyperbench.measure.probe"],
            input=json.dumps(request), capture_output=True, text=True, timeout=_PROBE_LIMIT_S,
            env={**os.environ, **env}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ConfigError(f"PyTorch did not answer within {_PROBE_LIMIT_S:g} s") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"PyTorch does not start here: {last}")
    answer: Facts = json.loads(done.stdout)
    return answer


def open_folder(
    prepared: Prepared,
    out: Path | None,
    *,
    resume: bool,
    fresh: bool,
    noise: Callable[[Prepared], Mapping[str, Any]] = lambda prepared: {},
) -> Path:
    """The run's folder, made or continued, with its config.yaml and environment.json.

    `noise` is asked for further keys of the environment where a folder is made (see `noise_here`).
    With `resume` a named folder that is not there is made, so that the same command starts a run and goes on with it.
    Raises StoreError if the folder is foreign, holds another configuration, or cannot be written.
    """
    config = prepared.config
    if out is None and resume:
        out = _latest_of(config)
    folder = out if out is not None else store.RUNS_ROOT / f"{config.sweep}-{config.device.name}-{_now():%Y%m%d-%H%M%S}"
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"out={folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not store.is_run_folder(folder) and not _was_begun(config, folder):
            raise StoreError(f"out={folder} is not empty and no run's folder; choose another out=DIR")
        if fresh:
            _remove_run(folder)
        elif store.is_run_folder(folder):
            _check_same(prepared, folder, resume)
            return folder
    _make(prepared, folder, noise(prepared))
    return folder


def noise_here(prepared: Prepared, ask: Callable[[dict[str, Any], Mapping[str, str]], Facts] | None = None) -> Facts:
    """The A/A floor, the timer's resolution and the effect of the flush, measured or as `doctor` or a run found them.

    Nothing for one round: what cannot be compared needs no floor, and starting processes takes seconds.
    """
    config = prepared.config
    if config.protocol.rounds < 2:
        return {}
    env = {**config.device.env, **_threads_env(config)}
    return noise_room.noise_of(
        noise_room.origin_of(prepared.facts, config.device.name, env, config.device.threads),
        lambda: noise_room.measure_noise(ask or ask_probe, config.device.name, env),
    )


def _threads_env(config: RunConfig) -> dict[str, str]:
    return {} if config.device.threads is None else {"OMP_NUM_THREADS": str(config.device.threads)}


def measure(
    prepared: Prepared,
    folder: Path,
    listener: Listener,
    *,
    retry_failed: bool,
    start: Callable[[float], object] = float,
) -> Outcome:
    """Measure what the folder's journal lacks, then write the tables. Raises StoreError or MeasureError.

    `start` hears, before the first cell, the seconds that the whole is likely to take.
    """
    config = prepared.config

    def spawn() -> Child:
        return WorkerProcess(config.device.env, folder / _LOG)

    with store.Journal(folder / store.JOURNAL) as journal:
        runner = Runner(
            config, prepared.cells, journal, spawn, listener,
            history=store.read_journal(folder / store.JOURNAL),
            retry_failed=retry_failed, flops_per_s=prepared.flops_per_s,
        )  # fmt: skip
        start(runner.remaining_s())
        try:
            return runner.run()
        finally:
            store.write_tables(folder)


def _request(config: RunConfig) -> dict[str, Any]:
    methods: dict[str, dict[str, Any]] = {}
    inputs: dict[str, dict[str, Any]] = {}
    for point in config.points:
        item = methods.setdefault(point.target, {"name": point.method, "target": point.target, "hypers": []})
        if point.hyper not in item["hypers"]:
            item["hypers"].append(point.hyper)
        inputs[repr((point.input, point.input_params))] = {"family": point.input, "params": point.input_params}
    return {"methods": list(methods.values()), "inputs": list(inputs.values()), "measure_rate": True}


def _check_device(config: RunConfig, facts: Facts) -> None:
    if config.protocol.cuda_graph and config.device.name != "cuda":
        raise ConfigError(f"protocol.cuda_graph=true needs device=cuda, and this run is on {config.device.name}")
    if config.device.name == "cuda" and not facts["cuda_bfloat16"]:
        for point in config.points:
            if point.dtype == "bfloat16":
                raise ConfigError(f"dtype=bfloat16: {facts['gpu_name']} lacks it; allowed: float16, float32, float64")


def _was_begun(config: RunConfig, folder: Path) -> bool:
    """Whether a folder holds only what a run of this configuration leaves that was killed while making it."""
    names = {path.name for path in folder.iterdir()}
    begun = {name for name in names if name.startswith((f".{store.CONFIG}.", f".{store.ENVIRONMENT}."))}
    written = names - begun
    return written <= {store.CONFIG} and (not written or store.read_config(folder) == config.resolved)


def _latest_of(config: RunConfig) -> Path:
    runs = [path.parent for path in store.RUNS_ROOT.glob(f"*/{store.CONFIG}") if store.is_run_folder(path.parent)]
    same = [run for run in runs if _holds(run, config)]
    if not same:
        raise StoreError(f"there is no run of this configuration under {store.RUNS_ROOT} to resume; name it by out=DIR")
    return max(same, key=lambda run: (run / store.CONFIG).stat().st_mtime_ns)


def _holds(run: Path, config: RunConfig) -> bool:
    try:
        return store.read_config(run) == config.resolved
    except StoreError:
        return False  # a damaged run of something else must not stand in the way


def _check_same(prepared: Prepared, folder: Path, resume: bool) -> None:
    differing = differing_keys(store.read_config(folder), prepared.config.resolved)
    if differing:
        raise StoreError(
            f"out={folder} holds another configuration, which differs in {', '.join(differing)};"
            " choose another out=DIR, or --fresh to replace it"
        )
    if not resume:
        raise StoreError(f"out={folder} holds a run of this configuration; --resume continues it, --fresh replaces it")
    there, here = store.read_environment(folder), _environment(prepared)
    changed = [f"{key} ({there.get(key)} there, {here[key]} here)" for key in _ORIGIN if there.get(key) != here[key]]
    if changed:
        raise StoreError(
            f"out={folder} cannot go on: its numbers come from another {' and '.join(changed)};"
            " choose another out=DIR, or --fresh to measure all again"
        )


def _environment(prepared: Prepared, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    config = prepared.config
    settings = {
        "device": config.device.name,
        "device_reason": config.device.reason,
        "config_hash": config.config_hash,
        "run_id": uuid.uuid4().hex[:12],
        "started": _now().isoformat(timespec="seconds"),
        "schema_version": SCHEMA_VERSION,
        **(more or {}),
    }
    if config.device.threads is not None:
        settings["threads"] = config.device.threads
    return environment.collect(prepared.facts, settings, config.device.env)


def _make(prepared: Prepared, folder: Path, more: Mapping[str, Any]) -> None:
    import yaml

    config, found = prepared.config, _environment(prepared, more)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        store.atomic_write_text(folder / store.CONFIG, yaml.safe_dump(config.resolved, sort_keys=False))
        store.atomic_write_text(folder / store.ENVIRONMENT, json.dumps(found, indent=2) + "\n")
        store.Journal(folder / store.JOURNAL).close()
    except OSError as error:
        raise StoreError(f"out={folder} cannot be written: {error.strerror}") from None


def _remove_run(folder: Path) -> None:
    """Replace a run: the journal is held first, so that a run that is still being written is not taken away."""
    with store.Journal(folder / store.JOURNAL):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
