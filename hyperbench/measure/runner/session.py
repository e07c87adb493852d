"""One `hyperbench run` from its words to its folder: prepare (nothing written), open the folder, measure. No torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import RunConfig, load
from hyperbench.measure import work_items
from hyperbench.measure.runner import noise_floor as noise_room
from hyperbench.measure.runner.estimate import Speed, plan_s
from hyperbench.measure.runner.interrupts import AtOnce
from hyperbench.measure.runner.locks import busy_devices
from hyperbench.measure.runner.outcome import Listener, Outcome
from hyperbench.measure.runner.run_folder import open_folder as open_folder
from hyperbench.measure.runner.run_folder import sweep_up
from hyperbench.measure.runner.runner import Runner
from hyperbench.measure.runner.time_breakdown import Account
from hyperbench.measure.runner.worker_process import Child, WorkerProcess
from hyperbench.store import run_folder
from hyperbench.store.files import StoreError
from hyperbench.store.journal import Journal, read_journal
from hyperbench.store.schema import Point

Facts = dict[str, Any]
_PROBE_LIMIT_S = 300.0
_LOG = "worker.log"


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its configuration, its points, and what torch said about this machine.

    `began_s` is when it began, on a clock that never goes back. `busy` says which devices others are measuring: this
    machine's speed was then not measured, and estimates are those of a usual one.
    """

    config: RunConfig
    points: tuple[Point, ...]
    facts: Facts
    began_s: float = field(default_factory=time.monotonic)
    busy: str = ""

    @property
    def speed(self) -> Speed:
        """How fast the run's device is, as far as the probe has measured it."""
        rates = self.facts.get("flops_per_s", {})
        return Speed(
            float(rates.get(self.config.device.name, Speed.flops_per_s)),
            # The probe times the import of PyTorch; a worker makes its first calls as well.
            1.5 * float(self.facts.get("start_s", Speed.start_s)),
        )

    def estimates_s(self) -> list[float]:
        """Seconds that each point is likely to take, all rounds together, with its share of starting the workers."""
        groups = work_items.group(self.points)
        found = plan_s(groups, work_items.Progress(self.config.protocol), self.config, self.speed)
        return [found.get(point.point_id, 0.0) for point in self.points]


def prepare(words: Sequence[str], ask: Callable[[dict[str, Any], Mapping[str, str]], Facts] | None = None) -> Prepared:
    """Compose, check and expand a command line; nothing is written.

    `ask` puts a request to the probe. Raises ConfigError, one line, on anything that cannot be run.
    """
    chosen: list[str] = []
    began_s = time.monotonic()

    def as_asked(asked: str) -> tuple[str, str]:
        chosen.append(asked)
        return ("cpu", "") if asked == "auto" else (asked, f"device={asked} was asked for")

    draft = load(words, as_asked)
    busy = busy_devices()
    facts = (ask or ask_probe)(_request(draft, measure_rate=not busy), draft.device.env)
    if facts["problems"]:
        raise ConfigError(facts["problems"][0])
    config = load(words, lambda asked: choose_device(asked, facts))
    _check_device(config, facts)
    defaults = {target: found["defaults"] for target, found in facts["methods"].items()}
    try:
        return Prepared(config, work_items.with_defaults(config.points, defaults), facts, began_s, busy)
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
            [sys.executable, "-m", "hyperbench.measure.probe.main"],
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

    `start` is called, before the first point, with the seconds that the whole is likely to take.
    """
    config, account = prepared.config, Account(began_s=prepared.began_s)

    def spawn() -> Child:
        return WorkerProcess(config.device.env, folder / _LOG)

    with Journal(folder / run_folder.JOURNAL) as journal:
        history = read_journal(folder / run_folder.JOURNAL)
        sweep_up(folder)
        runner = Runner(
            config, prepared.points, journal, spawn, listener,
            history=history, retry_failed=retry_failed, speed=prepared.speed, account=account,
        )  # fmt: skip
        start(runner.remaining_s())
        try:
            outcome = runner.run()
        except AtOnce:
            raise
        except BaseException:
            # What went wrong is told; that the tables cannot be written for the same reason is not.
            with suppress(StoreError):
                run_folder.write_tables(folder)
            raise
        account.switch("tables")
        outcome.run = run_folder.write_tables(folder)
        outcome.time = account.report()
        return outcome


def _request(config: RunConfig, *, measure_rate: bool) -> dict[str, Any]:
    methods: dict[str, dict[str, Any]] = {}
    inputs: dict[str, dict[str, Any]] = {}
    for point in config.points:
        item = methods.setdefault(point.target, {"name": point.method, "target": point.target, "hypers": []})
        if point.hyper not in item["hypers"]:
            item["hypers"].append(point.hyper)
        inputs[repr((point.input, point.input_params))] = {"family": point.input, "params": point.input_params}
    return {"methods": list(methods.values()), "inputs": list(inputs.values()), "measure_rate": measure_rate}


def _check_device(config: RunConfig, facts: Facts) -> None:
    if config.protocol.cuda_graph and config.device.name != "cuda":
        raise ConfigError(f"protocol.cuda_graph=true needs device=cuda, and this run is on {config.device.name}")
    if config.device.name == "cuda" and not facts["cuda_bfloat16"]:
        for point in config.points:
            if point.dtype == "bfloat16":
                raise ConfigError(f"dtype=bfloat16: {facts['gpu_name']} lacks it; allowed: float16, float32, float64")
