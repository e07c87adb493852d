"""Runs of several rounds made up for tests of comparisons: every round has a luck of its own, the same each time."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hyperbench.store.environment import sealed
from hyperbench.store.record_json import to_json
from hyperbench.store.schema import Pass, Point, Record, Status, Timing
from tests.helpers.made_records import a_point, a_timing

PASSES = (Pass.FORWARD, Pass.FORWARD_BACKWARD)
ENVIRONMENT: dict[str, Any] = {"machine": "Some CPU, 2 cores", "device": "cpu", "torch": "2.13.0", "commit": "ab" * 20}


def rounds(
    point: Point, ms: float = 1.0, *, count: int = 5, noise: float = 0.001, luck: str = "", **changes: Any
) -> list[Timing]:
    """One pass of a point in `count` rounds of about `ms`; rounds differ by `noise` (relative), by chance of `luck`.

    Over its rounds the mean of the log is that of `ms` exactly, whatever the luck.
    """
    made = a_timing(point, **changes)
    rng = np.random.default_rng(zlib.crc32(f"{point.point_id} {made.pass_} {luck}".encode()))
    offsets = rng.normal(0.0, noise, count)
    offsets -= offsets.mean()
    times = ms * np.exp(offsets)
    return [
        a_timing(point, **{"round": i, "samples_ms": (0.999 * t, float(t), 1.001 * t), **changes})
        for i, t in enumerate(times)
    ]


def failed(point: Point, status: Status = Status.OOM, *, count: int = 5, **changes: Any) -> list[Timing]:
    """One pass of a point that failed in every round."""
    common = {"status": status, "samples_ms": (), "stop_reason": None, "message": f"it was {status}", **changes}
    return [a_timing(point, **{"round": i, **common}) for i in range(count)]


def points(
    methods: Sequence[str] = ("flash2", "hyper"), lengths: Sequence[int] = (1024, 2048), **changes: Any
) -> list[Point]:
    """A point for each method and length."""
    hyper: dict[str, dict[str, Any]] = {"flash2": {}}
    return [
        a_point(
            **{"method": m, "target": f"some.{m}", "seq_len": n, "hyper": hyper.get(m, {"block_size": 256}), **changes}
        )
        for m in methods
        for n in lengths
    ]


def sweep(luck: str = "", slowed: dict[int, float] | None = None, **changes: Any) -> list[Timing]:
    """Two methods at two lengths, two passes each, in five rounds; `slowed` gives factors by length."""
    return [
        timing
        for point in points()
        for pass_ in PASSES
        for timing in rounds(point, (slowed or {}).get(point.seq_len, 1.0), luck=luck, pass_=pass_, **changes)
    ]


def write_run(
    folder: Path, records: Iterable[Record], config: dict[str, Any] | None = None, **environment: Any
) -> Path:
    """A run's folder that holds these records."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"sweep": "made", "protocol": {"name": "strict", "rounds": 5}, **(config or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps(sealed({**ENVIRONMENT, **environment})), encoding="utf-8")
    lines = [json.dumps(to_json(record)) + "\n" for record in records]
    (folder / "journal.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
