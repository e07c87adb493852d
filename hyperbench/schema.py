"""The records that cross rooms: what a point is, what was measured at it, and which states are possible.

Units are in the names (`_ms`, `_bytes`, `_flops`). Every record is frozen and refuses to exist in an impossible state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1


class Status(StrEnum):
    """How the measurement of a point ended; only `ok` and `throttled` may carry a timing."""

    OK = "ok"
    INCORRECT = "incorrect"
    OOM = "oom"
    SKIPPED_AFTER_OOM = "skipped_after_oom"
    UNSUPPORTED = "unsupported"
    TIMEOUT = "timeout"
    THROTTLED = "throttled"
    ERROR = "error"

    @property
    def has_timing(self) -> bool:
        """Whether a record of this status may carry a timing."""
        return self in (Status.OK, Status.THROTTLED)


class Pass(StrEnum):
    """What is timed; each pass is timed directly, none is a sum of others."""

    FORWARD = "forward"
    BACKWARD = "backward"
    FORWARD_BACKWARD = "forward_backward"


class StopReason(StrEnum):
    """Why sampling ended: the interval of the median was narrow enough, or the time or the samples ran out."""

    PRECISION = "precision"
    BUDGET = "budget"
    MAX_SAMPLES = "max_samples"


@dataclass(frozen=True)
class Point:
    """One resolved configuration of the grid: a method on an input of one shape. Its id is a hash of all of it.

    `hyper` holds every parameter of the method as configured (the method's own, `_target_` left out); the columns
    block_size, sample_size, num_projections, min_seq_len, sampling and pairing of the tables are read from it.
    """

    method: str
    target: str
    device: str
    dtype: str
    is_causal: bool
    batch: int
    heads: int
    kv_heads: int
    seq_len: int
    head_dim: int
    input: str
    seed: int
    hyper: dict[str, Any] = field(default_factory=dict)
    input_params: dict[str, Any] = field(default_factory=dict)

    @property
    def point_id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the resolved configuration."""
        canonical = json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """The point as plain data, as it stands in the journal."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Point:
        """The inverse of `as_dict`. Raises ValueError on an unknown or missing key."""
        return _from_dict(cls, data)


@dataclass(frozen=True)
class Timing:
    """Samples of one pass of one point in one round, in time order, with how and why they ended."""

    point: Point
    pass_: Pass
    protocol: str
    round: int
    status: Status
    implementation: str = ""
    stop_reason: StopReason | None = None
    samples_ms: tuple[float, ...] = ()
    warmup_ms: tuple[float, ...] = ()
    peak_memory_bytes: int | None = None
    exact_equivalent_flops: float | None = None
    executed_flops: float | None = None
    message: str = ""

    def __post_init__(self) -> None:
        if self.samples_ms and not self.status.has_timing:
            raise ValueError(f"a timing of status {self.status} cannot carry samples")
        if self.status.has_timing and not self.samples_ms:
            raise ValueError(f"a timing of status {self.status} needs samples")
        if any(not (s >= 0) for s in self.samples_ms):
            raise ValueError("samples_ms must be non-negative numbers")

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes a timing unique within a run: (point_id, pass, round)."""
        return (self.point.point_id, str(self.pass_), self.round)


@dataclass(frozen=True)
class ErrorRow:
    """One metric of the approximation error of a point's output against exact attention, for one seed."""

    point: Point
    seed: int
    metric: str
    value: float | None
    status: Status = Status.OK
    message: str = ""

    @property
    def key(self) -> tuple[str, int, str]:
        """What makes an error row unique within a run: (point_id, seed, metric)."""
        return (self.point.point_id, self.seed, self.metric)


@dataclass(frozen=True)
class Stage:
    """Median time of one stage (hash, sort, sample, ...) of a method's forward pass at a point."""

    point: Point
    stage: str
    median_ms: float


Record = Timing | ErrorRow | Stage
_KINDS: dict[str, type[Any]] = {"timing": Timing, "error": ErrorRow, "stage": Stage}


def to_json(record: Record) -> dict[str, Any]:
    """A record as plain JSON data with its kind; enumerations become their values, infinities and NaN their names."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
    data = {"kind": kind, **dataclasses.asdict(record)}
    if (
        isinstance(data.get("value"), float)
        and data["value"] not in (float("inf"), float("-inf"))
        and data["value"] != data["value"]
    ):
        data["value"] = "nan"
    elif data.get("value") in (float("inf"), float("-inf")):
        data["value"] = str(data["value"])
    return data


def from_json(data: dict[str, Any]) -> Record:
    """The inverse of `to_json`. Raises ValueError on an unknown kind, an unknown key or an impossible state."""
    fields = dict(data)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown record kind {kind!r}; allowed: {', '.join(_KINDS)}")
    try:
        fields["point"] = Point.from_dict(fields["point"])
        if kind == "timing":
            fields["pass_"] = Pass(fields["pass_"])
            fields["stop_reason"] = StopReason(fields["stop_reason"]) if fields.get("stop_reason") else None
            fields["samples_ms"] = tuple(float(s) for s in fields.get("samples_ms", ()))
            fields["warmup_ms"] = tuple(float(s) for s in fields.get("warmup_ms", ()))
        if "status" in fields:
            fields["status"] = Status(fields["status"])
        if isinstance(fields.get("value"), str):
            fields["value"] = float(fields["value"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"a {kind} record is malformed: {error}") from None
    return _from_dict(_KINDS[kind], fields)


def _from_dict(cls: type[Any], data: dict[str, Any]) -> Any:
    names = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - names)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r} in a {cls.__name__} record; allowed: {', '.join(sorted(names))}")
    try:
        return cls(**data)
    except TypeError as error:
        raise ValueError(f"a {cls.__name__} record is malformed: {error}") from None
