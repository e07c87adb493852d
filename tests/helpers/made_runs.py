"""Prepared runs without a probe: what a machine with a CPU alone would answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any

import pytest

from hyperbench.measure import work_items
from hyperbench.measure.runner import prepare, session
from hyperbench.measure.runner.prepare import Prepared
from hyperbench.measure.runner.prepare import prepare as prepare_run
from hyperbench.measure.runner.worker_process import Child
from hyperbench.store.schema import Record, Status

HYPER_DEFAULTS: dict[str, Any] = {
    "block_size": 256,
    "sample_size": 256,
    "num_projections": 7,
    "min_seq_len": 1024,
    "sampling": "stratified",
    "pairing": "bucket",
    "hashing": "angular",
    "num_probes": None,
    "probe_floor": None,
    "seed": 0,
}
#: A run small enough for a test: one short pass after the other.
TINY = (
    "device=cpu",
    "device.threads=1",
    "protocol=quick",
    "protocol.budget_s.forward=0.01",
    "protocol.budget_s.backward=0.01",
    "protocol.budget_s.forward_backward=0.01",
    "protocol.warmup_min_s=0",
    "protocol.warmup_max_s=0.01",
    "protocol.min_samples=2",
    "protocol.max_samples=3",
    "protocol.min_spread_s=0",
    # On a machine that is busy a call may take longer than its budget: every round is measured all the same.
    "protocol.slow_rounds=9",
    "shape.head_dim=8",
    "error.seeds=[0,1]",
)


def last_of(*words: str) -> list[str]:
    """The words of a command line, of each key only the last: some test's own in place of those for all."""
    return list({word.partition("=")[0]: word for word in words}.values())


def facts(request: Mapping[str, Any], env: Mapping[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """The answer to a request of the probe; no method has a problem, and only hyper has defaults."""
    methods = {
        item["target"]: {
            "defaults": HYPER_DEFAULTS if item["target"].endswith((".hyper", ".hyper_paper")) else {},
            "unsupported": {"cpu": None, "cuda": "no GPU"},
        }
        for item in request["methods"]
    }
    return {
        "torch": "2.13.0+cpu",
        "cuda": None,
        "cuda_available": False,
        "cuda_bfloat16": False,
        "gpu_name": None,
        "gpu_count": 0,
        "gpu_memory_bytes": None,
        "threads": 2,
        "methods": methods,
        "problems": [],
        "flops_per_s": {"cpu": 1e11},
        "noise": {"median_ms": 1.0, "resolution_ns": 1, "flush_ratio": None},
        **changes,
    }


def prepared(*words: str, **changes: Any) -> Prepared:
    """A run of these words, prepared without a probe."""
    return prepare_run(last_of(*words), lambda request, env: facts(request, env, **changes))


def no_processes(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Child]) -> None:
    """Let the command line ask no probe and start no worker but those that are made here."""
    monkeypatch.setattr(prepare, "prepare", partial(prepare_run, ask=facts))
    monkeypatch.setattr(session, "measure", partial(session.measure, spawn=lambda env, log: make()))


def everything(run: Prepared, rounds: Iterable[int] | None = None) -> list[Record]:
    """A failed record for everything that a run is to measure, in some rounds or in all."""
    config, progress = run.config, work_items.Progress(run.config.protocol)
    return [
        record
        for point in run.points
        for round_ in (range(config.protocol.rounds) if rounds is None else rounds)
        for record in work_items.failed_records(
            work_items.remaining(point, config, round_, progress),
            config.passes, config.error, "", round_, work_items.Failure(Status.ERROR, "why"),
        )
    ]  # fmt: skip


@cache
def tiny(*words: str) -> Prepared:
    """A run of these words that takes no time; composed once."""
    return prepared(*TINY, *words)
