"""A/A floor: how far fresh processes differ that measure the same call. No torch: the processes are probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hyperbench.measure.runner.prepare import Ask, Prepared
from hyperbench.stats.samples import median

#: Fresh processes of which each gives one median of the same call.
PROCESSES = 4


def aa_floor(medians_ms: list[float]) -> float:
    """The A/A floor: the largest relative deviation of a process's median from the median of all processes.

    A difference of two measurements that is smaller than this may come from the processes alone. Raises ValueError
    with fewer than two processes.
    """
    if len(medians_ms) < 2:
        raise ValueError("an A/A floor needs at least two processes")
    centre = median(medians_ms)
    return max(abs(value / centre - 1.0) for value in medians_ms) if centre > 0 else 0.0


def measure_noise(ask: Ask, device: str, env: Mapping[str, str]) -> dict[str, Any]:
    """The keys aa_floor, timer_resolution_ns and flush_ratio of environment.json, measured by PROCESSES probes.

    Raises whatever `ask` raises.
    """
    answers = []
    for index in range(PROCESSES):
        request = {"methods": [], "inputs": [], "noise": {"device": device, "full": index == 0}}
        answers.append(ask(request, env)["noise"])
    return {
        "aa_floor": aa_floor([answer["median_ms"] for answer in answers]),
        "timer_resolution_ns": answers[0]["resolution_ns"],
        "flush_ratio": answers[0]["flush_ratio"],
    }


def noise_of_run(prepared: Prepared) -> dict[str, Any]:
    """The noise under the settings of a run.

    Nothing for one round: what cannot be compared needs no floor, and starting processes takes seconds.
    """
    config = prepared.config
    if config.protocol.rounds < 2:
        return {}
    threads = {} if config.device.threads is None else {"OMP_NUM_THREADS": str(config.device.threads)}
    return measure_noise(prepared.ask, config.device.name, {**config.device.env, **threads})
