"""Runs made up for tests: the same numbers each time, written as journals through the store's own records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from hyperbench.analyze.view import View, make_view
from hyperbench.store import tables
from hyperbench.store.environment import sealed
from hyperbench.store.record_json import to_json
from hyperbench.store.run_folder import Run
from hyperbench.store.schema import ErrorRow, Pass, Point, Record, Status, StopReason, Timing
from tests.helpers.made_records import a_stage

MakeRun = Callable[..., Path]
HYPER: dict[str, Any] = {
    "block_size": 256,
    "sample_size": 256,
    "num_projections": 7,
    "min_seq_len": 1024,
    "sampling": "stratified",
    "pairing": "bucket",
}
PASSES = (Pass.FORWARD, Pass.BACKWARD, Pass.FORWARD_BACKWARD)
CPU_LENGTHS = tuple(2**e for e in range(10, 17))
GPU_LENGTHS = tuple(2**e for e in range(12, 18))
_EXACT_COST = {Pass.FORWARD: 1.0, Pass.BACKWARD: 2.5, Pass.FORWARD_BACKWARD: 3.5}
_HYPER_COST = {Pass.FORWARD: 1.0, Pass.BACKWARD: 1.8, Pass.FORWARD_BACKWARD: 2.9}
CONFIG: dict[str, Any] = {
    "sweep": "synthetic",
    "method": {
        "flash2": {"description": "the fused kernel", "exact": True},
        "hyper": {"description": "HyperAttention"},
    },
}
# What a run may hold that must never reach a page, a table or a terminal as anything but letters.
HOSTILE = (
    "</script><script>alert(1)</script>",
    '<a href="javascript:alert(1)">click</a>',
    "<b>bold</b><br>&lt;i&gt; $x^2$",
    "back\\slash 'single' \"double\" `grave`",
    "<img src=x onerror=alert(1)>",
)
ENVIRONMENT: dict[str, Any] = {
    "machine": "Intel Xeon, 2 cores",
    "cpu_model": "Intel(R) Xeon(R)",
    "cpu_count": 2,
    "threads": 2,
    "torch": "2.13.0",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
}


def point(
    method: str, n: int, *, is_causal: bool = False, hyper: dict[str, Any] | None = None, **changes: Any
) -> Point:
    """A point of one head, d = 64, float32 on a CPU, unless changed."""
    values: dict[str, Any] = {
        "method": method,
        "target": f"methods.{method}",
        "device": "cpu",
        "dtype": "float32",
        "is_causal": is_causal,
        "batch": 1,
        "heads": 1,
        "kv_heads": 1,
        "seq_len": n,
        "head_dim": 64,
        "input": "gaussian",
        "seed": 0,
        "hyper": hyper or {},
        **changes,
    }
    if "heads" in changes and "kv_heads" not in changes:
        values["kv_heads"] = changes["heads"]
    return Point(**values)


def exact_ms(p: Point, pass_: Pass) -> float:
    """A made-up time of exact attention, quadratic in n."""
    return _EXACT_COST[pass_] * p.heads * p.seq_len**2 * 1e-6 * (0.5 if p.is_causal else 1.0)


def hyper_ms(p: Point, pass_: Pass) -> float:
    """A made-up time of an approximate method, a little above linear in n."""
    keys = p.hyper.get("block_size", 256) + p.hyper.get("sample_size", 256)
    causal = 3.0 if p.is_causal else 1.0
    return _HYPER_COST[pass_] * p.heads * causal * (0.4 + p.seq_len * keys * 2.2e-6)


def timing(p: Point, pass_: Pass, ms: float, **changes: Any) -> Timing:
    """Twelve samples within 4 % of `ms`."""
    samples = tuple(ms * (1 + 0.004 * ((7 * i) % 11 - 5)) for i in range(12))
    values: dict[str, Any] = {
        "protocol": "strict",
        "round": 0,
        "status": Status.OK,
        "implementation": "torch-2.13.0-sdpa-flash-cpu" if p.method == "flash2" else "hyperattn_core-torch",
        "stop_reason": StopReason.PRECISION,
        "samples_ms": samples,
        "peak_memory_bytes": 4096 * p.seq_len,
        **changes,
    }
    return Timing(point=p, pass_=pass_, **values)


def failed(p: Point, pass_: Pass, status: Status = Status.OOM, message: str = "out of memory") -> Timing:
    """A pass that could not be timed."""
    return timing(p, pass_, 1.0, status=status, samples_ms=(), stop_reason=None, message=message)


def errors(p: Point, scale: float = 1.0, seeds: Sequence[int] = (0, 1, 2)) -> list[Record]:
    """Error rows of a point for several draws, with the trivial answers beside them."""
    rows: list[Record] = []
    for seed in seeds:
        base = scale * 0.3 * (p.seq_len / 1024) ** 0.35
        values = {
            "out_rel_fro": base * (1 + 0.05 * (seed - 1)),
            "dq_rel_fro": base * 1.2,
            "out_rel_op": 0.02 * base,
            "mean_v_rel_fro": 0.82,
            "zero_rel_fro": 1.0,
        }
        rows += [ErrorRow(point=p, seed=seed, metric=metric, value=value) for metric, value in values.items()]
    return rows


def stages(p: Point, parts: dict[str, float] | None = None, lost: dict[str, str] | None = None) -> list[Timing]:
    """A point's stages: each takes its part of the made-up forward pass; `lost` ones have none but a message."""
    causal = {"leaves": 0.3, "merge": 0.05} if p.is_causal else {}
    shares = parts or {"hash": 0.06, "sort": 0.08, "sample": 0.01, "attend": 0.8 - sum(causal.values()), **causal}
    names, found = tuple(shares), []
    for name, share in shares.items():
        ms = share * hyper_ms(p, Pass.FORWARD)
        samples = tuple(ms * (1 + 0.01 * (i - 3)) for i in range(7))
        if lost and name in lost:
            found.append(a_stage(p, name, status=Status.ERROR, message=lost[name], all_stages=names))
        else:
            found.append(a_stage(p, name, *samples, stop_reason=StopReason.PRECISION, all_stages=names))
    return found


def grid(
    lengths: Iterable[int] = CPU_LENGTHS,
    methods: Sequence[str] = ("flash2", "hyper"),
    masks: Sequence[bool] = (False, True),
    change: Callable[[Timing], Timing | None] = lambda t: t,
    staged: bool = False,
    **changes: Any,
) -> list[Record]:
    """Every pass of every method at every length and masking, with errors; `change` may replace or drop a timing.

    With `staged` the stages of the approximate methods stand beside them.
    """
    records: list[Record] = []
    for i, method in enumerate(methods):
        for is_causal in masks:
            for n in lengths:
                p = point(method, n, is_causal=is_causal, hyper={} if method == "flash2" else HYPER, **changes)
                for pass_ in PASSES:
                    ms = exact_ms(p, pass_) if method == "flash2" else hyper_ms(p, pass_) * (1 + 0.6 * (i - 1))
                    made = change(timing(p, pass_, ms))
                    if made is not None:
                        records.append(made)
                if method != "flash2":
                    records += errors(p, scale=1.0 + 0.4 * i)
                    records += stages(p) if staged else []
    return records


def sweep(
    axis: str,
    values: Sequence[Any],
    methods: Sequence[str] = ("hyper",),
    masks: Sequence[bool] = (False,),
    n: int = 16_384,
) -> list[Record]:
    """A baseline beside methods that take these values of one parameter, or beside whom the shape takes them."""
    records: list[Record] = []
    for is_causal in masks:
        shapes: list[dict[str, Any]] = [{}] if axis in HYPER else [{axis: value} for value in values]
        points = [point("flash2", n, is_causal=is_causal, **shape) for shape in shapes]
        for method in methods:
            for value in values:
                hyper = {**HYPER, axis: value} if axis in HYPER else HYPER
                shape = {} if axis in HYPER else {axis: value}
                points.append(point(method, n, is_causal=is_causal, hyper=hyper, **shape))
        for p in points:
            cost = exact_ms if p.method == "flash2" else hyper_ms
            records += [timing(p, pass_, cost(p, pass_)) for pass_ in PASSES]
            if p.method != "flash2":
                records += errors(p)
    return records


def view_from(records: Iterable[Record], baseline: str = "flash2", **environment: Any) -> View:
    """The view of a run of these records, without a folder."""
    frames = tables.build(records, "synthetic")
    return make_view(Run(Path("run"), CONFIG, {**ENVIRONMENT, **environment}, **frames), baseline)


def write_run(folder: Path, records: Iterable[Record], environment: dict[str, Any] | None = None) -> Path:
    """A run's folder that holds these records."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps(sealed({**ENVIRONMENT, **(environment or {})})), encoding="utf-8"
    )
    lines = [json.dumps(to_json(record)) + "\n" for record in records]
    (folder / "journal.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
