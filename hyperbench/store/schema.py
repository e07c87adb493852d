"""The records of a run: points, timings and errors, each in a possible state only.

Units are in the names (`_ms`, `_bytes`, `_flops`). Every record is frozen; making one in an impossible state raises
ValueError.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from hyperbench.store.plain_data import MAX_INT as MAX_INT
from hyperbench.store.plain_data import check_types, decoded, fits, is_plain, short

#: 2: lines of a journal carry a checksum, and a header names the run.
SCHEMA_VERSION = 2
#: Parameters of methods that have a column of their own in the tables, and their types there.
PARAMETER_TYPES: dict[str, type[Any]] = {
    "block_size": int, "sample_size": int, "num_projections": int, "min_seq_len": int, "sampling": str, "pairing": str,
}  # fmt: skip
#: Kinds of methods that are none of those compared: answers that any method has to beat, and what none can beat.
KINDS = ("trivial", "oracle")
#: The parameter of an input that says which task of a language model it is; no other input has it.
TASK = "task"
#: In the place of a stage's name: all stages of a point, where none could be told apart.
ALL_STAGES = "all"


class Status(StrEnum):
    """Status of a measurement; only `ok` and `throttled` may carry a timing."""

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
        """True if a record of this status may carry a timing."""
        return self in (Status.OK, Status.THROTTLED)


class Pass(StrEnum):
    """A timed pass; each is timed directly, none is a sum of others."""

    FORWARD = "forward"
    BACKWARD = "backward"
    FORWARD_BACKWARD = "forward_backward"


class Cause(StrEnum):
    """End of the worker process that a failed record is put down to; none where the measured code failed by itself."""

    #: The process ended, by an exit or a signal.
    CRASH = "crash"
    #: It was ended by SIGKILL, most likely for want of memory.
    KILL = "kill"
    #: It did not come back within the limit, and was ended.
    TIMEOUT = "timeout"


class StopReason(StrEnum):
    """Reason for the end of sampling: a narrow interval of the median, or no time or no samples left."""

    PRECISION = "precision"
    BUDGET = "budget"
    MAX_SAMPLES = "max_samples"


class Flag(StrEnum):
    """A warning about a timing, to be read before trusting it; a flagged timing stays where it is."""

    #: The samples fall into two groups apart from each other: their median lies in one of them, or between.
    BIMODAL = "bimodal"
    #: The samples get slower or faster with time.
    DRIFT = "drift"
    #: Launching the call takes the host longer than the device needs for it: the launch is what was timed.
    HOST_BOUND = "host_bound"
    #: Other processes used the machine's cores during the samples.
    BUSY_MACHINE = "busy_machine"
    #: The clocks of the device were held down.
    THROTTLED = "throttled"
    #: More operations per second than the device can do: not all of the work was done, or not all was timed.
    ABOVE_PEAK = "above_peak"
    #: Under a causal mask the method sees keys or values after a position, and was measured all the same.
    LEAKS = "leaks"


@dataclass(frozen=True)
class Point:
    """One resolved configuration of the grid: a method on an input of one shape. Its id is a hash of all of it.

    `hyper` holds every parameter of the method as configured (the method's own, `_target_` left out); the columns
    block_size, sample_size, num_projections, min_seq_len, sampling and pairing of the tables are read from it.
    Raises ValueError on a value of the wrong type or out of its range.
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

    def __post_init__(self) -> None:
        check_types(self)
        if not (is_plain(self.hyper) and is_plain(self.input_params)):
            raise ValueError("the parameters of a point must be plain data, not nested deeply")
        for name in ("batch", "heads", "kv_heads", "seq_len", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} of a point must be positive")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} of a point must divide heads={self.heads}")
        for name, kind in PARAMETER_TYPES.items():
            value = self.hyper.get(name)
            if value is not None and not fits(value, kind):
                raise ValueError(f"{name}={short(value)} of a point must be of type {kind.__name__}")

    @cached_property
    def point_id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the resolved configuration."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    @property
    def is_task(self) -> bool:
        """True if its input is a task of a language model: its error rows are scores of examples."""
        return TASK in self.input_params

    def as_dict(self) -> dict[str, Any]:
        """The point as plain data, as it stands in the journal."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Point:
        """The inverse of `as_dict`. Raises ValueError on an unknown or missing key."""
        point: Point = decoded(cls, data)
        return point


@dataclass(frozen=True)
class Timing:
    """Samples of one pass of one point in one round, or of one stage of it, in time order, with how and why they ended.

    `stage` is "" for the whole pass; a stage (hash, sort, sample, ...) is timed by itself. `all_stages` names every
    stage of the pass in order, so that a reader knows where this one stands and whether one is missing; it is empty for
    the whole pass. The stage ALL_STAGES stands for all that have no record of their own: nothing could be told of them.

    `first_call_ms` is the wall time of the first such call in the process (compilation, tuning, page faults), never a
    sample, and `setup_ms` that of what a method makes beforehand (its `prepare`). `host_ms` is the median time after
    which a call gave the host back, on a device that works alongside it.
    `peak_memory_bytes` is the most that PyTorch's allocator held above what it held before the call; on a CPU the
    resident set of the process rose by `resident_peak_bytes` meanwhile. `memory_before_bytes` was in use before.
    `flags` say what a reader must know before trusting it; `conditions` hold load, clocks, power and so on.
    """

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
    first_call_ms: float | None = None
    host_ms: float | None = None
    memory_before_bytes: int | None = None
    flags: tuple[str, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    all_stages: tuple[str, ...] = ()
    cause: Cause | None = None
    resident_peak_bytes: int | None = None
    setup_ms: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        self.check_state()

    def check_state(self) -> None:
        """Raise ValueError unless fields of the right types fit together."""
        if self.samples_ms and not self.status.has_timing:
            raise ValueError(f"a timing of status {self.status} cannot carry samples")
        if self.status.has_timing and not self.samples_ms:
            raise ValueError(f"a timing of status {self.status} needs samples")
        if self.status.has_timing and self.cause is not None:
            raise ValueError(f"a timing of status {self.status} cannot have cause={self.cause}")
        for name, samples in (("samples_ms", self.samples_ms), ("warmup_ms", self.warmup_ms)):
            # A sum is finite only if all of it is; one that overflows is looked at again.
            if samples and not (min(samples) >= 0.0 and (sum(samples) < math.inf or all(map(math.isfinite, samples)))):
                raise ValueError(f"{name} must be non-negative numbers")
        values = vars(self)
        for name in ("first_call_ms", "host_ms", "setup_ms"):
            if not 0.0 <= (values[name] or 0.0) < math.inf:
                raise ValueError(f"{name}={values[name]} must be a non-negative number")
        for name in ("round", "peak_memory_bytes", "memory_before_bytes", "resident_peak_bytes"):
            if (values[name] or 0) < 0:
                raise ValueError(f"{name}={values[name]} cannot be negative")
        for flag in self.flags:
            if flag not in list(Flag):
                raise ValueError(f"flags={short(flag)} is unknown; allowed: {', '.join(Flag)}")
        if self.flags and not self.samples_ms:
            raise ValueError("flags are of samples, and a timing without samples has none")
        if not is_plain(self.conditions, only_finite=True):
            raise ValueError("conditions of a timing must be plain data, finite and not nested deeply")
        if self.all_stages and self.stage not in (*self.all_stages, ALL_STAGES):
            raise ValueError(f"stage={short(self.stage)} must be one of {short(self.all_stages)}")

    @property
    def key(self) -> tuple[str, str, str, int]:
        """The timing's key, unique within a run: (point_id, pass, stage, round)."""
        return (self.point.point_id, str(self.pass_), self.stage, self.round)


@dataclass(frozen=True)
class ErrorRow:
    """One metric of the approximation error of a point's output against exact attention, for one seed.

    Of a task of a language model it is a score, and the seed the number of the example.

    Where `value` is estimated from a part of the rows, the true one lies between `low` and `high` (95 %).
    """

    point: Point
    seed: int
    metric: str
    value: float | None
    status: Status = Status.OK
    message: str = ""
    cause: Cause | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        self.check_state()

    def check_state(self) -> None:
        """Raise ValueError unless fields of the right types fit together."""
        if self.status.has_timing != (self.value is not None):
            raise ValueError(f"an error row of status {self.status} cannot have value={self.value}")
        if self.status.has_timing and self.cause is not None:
            raise ValueError(f"an error row of status {self.status} cannot have cause={self.cause}")

        low, value, high = self.low, self.value, self.high
        if (low, high) == (None, None):
            return
        if low is None or value is None or high is None or not low <= value <= high:
            raise ValueError(f"low={self.low} and high={self.high} of an error row must be around value={self.value}")

    @property
    def key(self) -> tuple[str, int, str]:
        """The error row's key, unique within a run: (point_id, seed, metric)."""
        return (self.point.point_id, self.seed, self.metric)


Record = Timing | ErrorRow
