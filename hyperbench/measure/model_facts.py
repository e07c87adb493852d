"""Questions to the process that reads language models, and what a run asks of it. No torch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hyperbench.child import command
from hyperbench.config import tasks
from hyperbench.config.catalog import ConfigError
from hyperbench.store.schema import TASK, Point

Facts = dict[str, Any]
#: Facts of a model by its parameters: layers, heads, kv_heads, head_dim, context (tokens, or None), name.
Describe = Callable[[dict[str, Any]], Facts]


def ask(request: dict[str, Any], *, shown: bool = False) -> Facts:
    """The answer of the process that reads models; with `shown` what it says meanwhile goes to stderr.

    Raises ConfigError, one line, with the reason why there is none.
    """
    done = subprocess.run(
        command.module("hyperbench.measure.models.main"), env=command.environment(), input=json.dumps(request),
        stdout=subprocess.PIPE, stderr=None if shown else subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise ConfigError(f"the process that reads the model ended with exit code {done.returncode}")
    answer: Facts = json.loads(done.stdout)
    if "problem" in answer:
        raise ConfigError(answer["problem"])
    return answer


def with_models(points: Sequence[Point], describe: Describe) -> tuple[Point, ...]:
    """The points, those of tasks with the heads and layers of their model.

    Raises ConfigError where there is no such task, model or text, where a model has fewer layers than are to be
    patched, and where a length is beyond its context, unless input.beyond_context=true.
    """
    known: dict[str, Facts] = {}
    found = []
    for point in points:
        if not point.is_task:
            found.append(point)
            continue
        request = {"describe": {name: point.input_params.get(name) for name in ("model", "path", "text", TASK)}}
        key = json.dumps(request)
        facts = known[key] if key in known else known.setdefault(key, describe(request))
        tasks.numbered(str(point.hyper.get(tasks.LAYERS, "")), facts["layers"])
        if point.batch != 1:
            raise ConfigError(f"shape.batch={point.batch}: a task is of one text at a time; allowed: 1")
        context = facts["context"]
        if context is not None and point.seq_len > context and not point.input_params.get("beyond_context"):
            raise ConfigError(
                f"shape.seq_len={point.seq_len} is beyond the context of {facts['name']}, {context} tokens; "
                "input.beyond_context=true runs it all the same"
            )
        sizes = {name: facts[name] for name in ("heads", "kv_heads", "head_dim")}
        params = {**point.input_params, tasks.MODEL_LAYERS: facts["layers"]}
        found.append(replace(point, **sizes, input_params=params))
    return tuple(found)
