"""Preparation of a run: its configuration, its points, and what torch says about this machine. No torch."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hyperbench.child import command, limited
from hyperbench.child.code import Code, other_files, package_files
from hyperbench.config import tasks
from hyperbench.config.catalog import ConfigError
from hyperbench.config.compose import RunConfig, load
from hyperbench.config.inputs import target_of
from hyperbench.measure import work_items
from hyperbench.measure.model_facts import Describe, with_models
from hyperbench.measure.model_facts import ask as ask_model
from hyperbench.measure.runner.estimate import Speed, plan_s
from hyperbench.measure.runner.locks import busy_devices
from hyperbench.store.schema import TASK, Point

Facts = dict[str, Any]
#: A question to a probe, under these environment variables.
Ask = Callable[[dict[str, Any], Mapping[str, str]], Facts]
_PROBE_LIMIT_S = 300.0


@dataclass(frozen=True)
class Prepared:
    """A run that can start: its configuration, its points, and what torch said about this machine.

    `ask` puts further questions to a probe. `began_s` is when it began, on a clock that never goes back. `busy` says
    which devices others are measuring: this machine's speed was then not measured, and estimates are those of a usual
    one. `missing` tells, a line each, which methods cannot be imported: their rows will say so.
    """

    config: RunConfig
    points: tuple[Point, ...]
    facts: Facts
    ask: Ask
    began_s: float = field(default_factory=time.monotonic)
    busy: str = ""

    @property
    def missing(self) -> list[str]:
        """The methods that cannot be imported, and why."""
        return list(self.facts.get("missing", {}).values())

    @property
    def left_out(self) -> list[str]:
        """The tasks, a line each, whose data end before the examples that error.seeds asks for."""
        seeds = self.config.error.seeds
        counts = {point.input: len(tasks.examples_of(point, seeds)) for point in self.points if point.is_task}
        return [
            f"{name} has {count} of the {len(seeds)} examples that error.seeds names; the others are left out"
            for name, count in counts.items()
            if count < len(seeds)
        ]

    @property
    def speed(self) -> Speed:
        """Speed of the run's device, as far as the probe has measured it."""
        rates = self.facts.get("flops_per_s", {})
        return Speed(
            float(rates.get(self.config.device.name, Speed.flops_per_s)),
            # The probe times the import of PyTorch; a worker makes its first calls as well.
            1.5 * float(self.facts.get("start_s", Speed.start_s)),
        )

    @property
    def code(self) -> Code | None:
        """The code that the probe ran and workers must run; None where no probe was asked."""
        return Code(self.facts["code"], self.facts["files"]) if "files" in self.facts else None

    def estimates_s(self) -> list[float]:
        """Seconds that each point is likely to take, all rounds together, with its share of starting the workers."""
        groups = work_items.groups_of(self.points, self.config.isolated_methods)
        found = plan_s(groups, work_items.Progress(self.config.protocol), self.config, self.speed)
        return [found.get(point.point_id, 0.0) for point in self.points]


def ask_probe(request: dict[str, Any], env: Mapping[str, str]) -> Facts:
    """Put a question to a probe, a short process that imports torch. Raises ConfigError if torch does not import."""
    words, text = command.module("hyperbench.measure.probe.main"), json.dumps(request)
    done = limited.run(words, command.environment(env), _PROBE_LIMIT_S, text=text)
    if done.code is None:
        raise ConfigError(f"PyTorch did not answer within {_PROBE_LIMIT_S:g} s")
    if done.code != 0:
        last = (done.err.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"PyTorch does not start here: {last}")
    answer: Facts = json.loads(done.out)
    if others := other_files(answer["files"], package_files()):
        raise ConfigError(f"processes started from here run other code than this one: {others}")
    return answer


def prepare(words: Sequence[str], ask: Ask = ask_probe, describe: Describe = ask_model) -> Prepared:
    """Compose, check and expand a command line; nothing is written.

    The probe says which device `auto` stands for. Composing for the likely one beforehand answers a wrong word at once,
    and is done again only where PyTorch cannot use a GPU that is there. Raises ConfigError, one line, on anything that
    cannot be run, and where no method at all can be imported.
    """
    began_s, asked = time.monotonic(), ""

    def likely_device(name: str) -> tuple[str, str]:
        nonlocal asked
        asked = name
        return ("cuda" if shutil.which("nvidia-smi") else "cpu") if name == "auto" else name, ""

    config = load(words, likely_device)
    busy = busy_devices()
    facts = ask(_request(config, measure_rate=not busy), config.device.env)
    missing, measured = facts.get("missing", {}), {point.target for point in config.points}
    if problems := [*facts["problems"], *(missing.values() if missing.keys() >= measured else ())]:
        raise ConfigError(problems[0])
    device, reason = choose_device(asked, facts)
    if device == config.device.name:
        config = replace(config, device=replace(config.device, reason=reason))
    else:
        config = load(words, lambda name: (device, reason))
    _check_device(config, facts)
    defaults = {target: found["defaults"] for target, found in facts["methods"].items()}
    try:
        points = work_items.with_defaults(config.points, defaults)
        if not any(work_items.draw_seeds(point, config.error) for point in points):
            raise ConfigError(f"error.seeds={list(config.error.seeds)} names no example that is there")
        return Prepared(config, with_models(points, describe), facts, ask, began_s, busy)
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


def _request(config: RunConfig, *, measure_rate: bool) -> dict[str, Any]:
    makers: list[str] = []
    methods: dict[str, dict[str, Any]] = {}
    inputs: dict[str, dict[str, Any]] = {}
    for point in config.points:
        item = methods.setdefault(point.target, {"name": point.method, "target": point.target, "hypers": []})
        hyper = tasks.own_parameters(point)
        if hyper not in item["hypers"]:
            item["hypers"].append(hyper)
        if point.is_task:
            makers.append(point.input_params[TASK])
            continue
        asked = inputs.setdefault(
            repr((point.input, point.input_params)), {"family": point.input, "params": point.input_params}
        )
        # A function from outside is tried once, at the smallest of its points, before anything is measured.
        if target_of(point.input_params) and _elements(point) <= asked.get("elements", _elements(point)):
            asked |= {"elements": _elements(point), "point": point.as_dict()}
    return {
        "methods": list(methods.values()), "inputs": list(inputs.values()), "tasks": list(dict.fromkeys(makers)),
        "measure_rate": measure_rate,
    }  # fmt: skip


def _elements(point: Point) -> int:
    return point.batch * point.heads * point.seq_len * point.head_dim


def _check_device(config: RunConfig, facts: Facts) -> None:
    if config.protocol.cuda_graph and config.device.name != "cuda":
        raise ConfigError(f"protocol.cuda_graph=true needs device=cuda, and this run is on {config.device.name}")
    if config.device.name == "cuda" and not facts["cuda_bfloat16"]:
        for point in config.points:
            if point.dtype == "bfloat16":
                raise ConfigError(f"dtype=bfloat16: {facts['gpu_name']} lacks it; allowed: float16, float32, float64")
