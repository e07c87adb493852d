"""Typed parts of a run's configuration and the checks of their values; a refusal names key, value and the allowed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hyperbench.config.catalog import ConfigError, check_name
from hyperbench.store.schema import KINDS, MAX_INT, PARAMETER_TYPES, Pass

_ENDLESS = 1e300
_RANGE, _MOST_SEEDS = re.compile(r"(\d{1,9})-(\d{1,9})"), 10_000
_PASS_NAMES = ", ".join(Pass)
#: What error.extra may ask for: errors of each head, the mass that a plan catches, properties of the input that the
#: paper's theorem is stated in, bias and spread over seeds, the error of the softmax's denominator.
EXTRA_ERRORS = ("per_head", "recall", "theory", "bias", "denominator")
DTYPES = ("float64", "float32", "bfloat16", "float16")
#: Orders of the axes of q, k, v and of the output: (batch, heads, seq_len, head_dim) and (batch, seq_len, heads, ...).
LAYOUTS = ("bhnd", "bnhd")
T = TypeVar("T")


@dataclass(frozen=True)
class CallOptions:
    """Way of calling a method; None where its function says so itself.

    `layout` is one of LAYOUTS; `causal` is false for a method that has no causal form; with `allow_leak` one that sees
    later keys or values under a causal mask is measured nevertheless, and marked.
    """

    layout: str | None = None
    causal: bool | None = None
    allow_leak: bool = False


#: Those of a method of which the configuration says nothing.
PLAIN_CALL = CallOptions()


@dataclass(frozen=True)
class ProtocolConfig:
    """Rules of timing a pass: warm-up, when sampling stops, and the budgets in seconds of one round."""

    name: str
    description: str
    rounds: int
    target_half_width: float
    min_samples: int
    max_samples: int
    budget_s: dict[str, float]
    slow_min_samples: int
    warmup_min_calls: int
    warmup_min_s: float
    warmup_max_s: float
    skip_warmup_above_s: float
    slices: int
    timeout_s: float
    slow_rounds: int = 1
    fixed_time: bool = False
    input_copies: int = 1
    input_copies_bytes: int = 0
    cuda_graph: bool = False
    as_paper: bool = False
    keep_first_above_s: float = 0.0
    min_spread_s: float = 0.0

    def __post_init__(self) -> None:
        check_text("protocol.name", self.name)
        for field in dataclasses.fields(self):
            key, value = f"protocol.{field.name}", getattr(self, field.name)
            if field.type == "int":
                check_int(key, value, low=0 if field.name in ("warmup_min_calls", "input_copies_bytes") else 1)
            elif field.type == "bool":
                check_bool(key, value)
            elif field.type == "float":
                check_number(key, value, positive=field.name in ("target_half_width", "timeout_s"))
        if not isinstance(self.budget_s, dict):
            raise ConfigError(f"protocol.budget_s={self.budget_s} must give seconds for each of {_PASS_NAMES}")
        for key, value in self.budget_s.items():
            check_name("protocol.budget_s key", key, Pass)
            check_number(f"protocol.budget_s.{key}", value)
        if self.max_samples < self.min_samples:
            raise ConfigError(
                f"protocol.max_samples={self.max_samples} must be at least protocol.min_samples={self.min_samples}"
            )
        if self.warmup_max_s < self.warmup_min_s:
            raise ConfigError(
                f"protocol.warmup_max_s={self.warmup_max_s} must be at least "
                f"protocol.warmup_min_s={self.warmup_min_s}: warm-up ends at the latest after the first"
            )

    def rounds_for(self, pass_: str, call_s: float) -> int:
        """Rounds in which a pass is measured whose call takes so many seconds: fewer where one exceeds its budget."""
        return min(self.rounds, self.slow_rounds) if call_s > self.budget_s[pass_] else self.rounds


@dataclass(frozen=True)
class ErrorConfig:
    """Rules of measuring the error: for which seeds, on how many rows, up to which lengths, and what else."""

    seeds: tuple[int, ...]
    rows: int
    grad_max_seq_len: int | None
    operator_norm_max_seq_len: int
    float64_max_seq_len: int
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.seeds, (list, tuple)) or not self.seeds:
            raise ConfigError(f"error.seeds={self.seeds} must be a list of at least one seed")
        object.__setattr__(self, "seeds", tuple(seed for value in self.seeds for seed in _range_of(value)))
        for seed in self.seeds:
            check_int("error.seeds", seed, low=0)
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"error.seeds={list(self.seeds)} names a seed twice")
        check_int("error.rows", self.rows, low=1)
        for name in ("grad_max_seq_len", "operator_norm_max_seq_len", "float64_max_seq_len"):
            if getattr(self, name) is not None or name != "grad_max_seq_len":
                check_int(f"error.{name}", getattr(self, name), low=0)
        if not isinstance(self.extra, (list, tuple)):
            raise ConfigError(f"error.extra={self.extra} must be a list of {', '.join(EXTRA_ERRORS)}")
        for name in self.extra:
            check_name("error.extra", name, EXTRA_ERRORS)
        object.__setattr__(self, "extra", tuple(self.extra))
        if "bias" in self.extra and len(self.seeds) < 2:
            raise ConfigError(f"error.extra has bias, which needs two seeds or more; error.seeds={list(self.seeds)}")


@dataclass(frozen=True)
class DeviceConfig:
    """The device of a run, and the environment variables under which its worker processes start."""

    name: str
    dtypes: tuple[str, ...]
    threads: int | None
    env: dict[str, str]
    reason: str

    def __post_init__(self) -> None:
        if not isinstance(self.dtypes, (list, tuple)) or not self.dtypes:
            raise ConfigError(f"device.dtypes={self.dtypes} must be a list of {', '.join(DTYPES)}")
        for name in self.dtypes:
            check_name("device.dtypes", name, DTYPES)
        object.__setattr__(self, "dtypes", tuple(self.dtypes))
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ConfigError(f"device.threads={self.threads} must be a positive integer or null")


def _range_of(value: Any) -> Sequence[Any]:
    """The seeds that a range such as "0-199" stands for; of anything else only itself."""
    match = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return (value,)
    first, last = map(int, match.groups())
    if not first <= last < first + _MOST_SEEDS:
        raise ConfigError(f"error.seeds={value} must lead upwards, over at most {_MOST_SEEDS:,} seeds")
    return range(first, last + 1)


def typed(cls: type[T], data: Any, key: str) -> T:
    """Build one of the dataclasses above from plain data. Raises ConfigError on a missing, unknown or wrong value."""
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if not isinstance(data, dict):
        raise ConfigError(f"{key}={data} must be a mapping with {', '.join(names)}")
    for name in data:
        check_name(f"{key} key", name, names)
    missing = [name for name in names if name not in data]
    if missing:
        raise ConfigError(f"{key}.{missing[0]} is missing")
    return cls(**data)


def call_options(method: str, node: Mapping[str, Any]) -> CallOptions:
    """The options of a method's node. Raises ConfigError on a value of one, or of `kind`, that is not allowed."""
    for key, allowed in (("layout", LAYOUTS), ("kind", KINDS)):
        if node.get(key) is not None:
            check_name(f"method.{method}.{key}", node[key], allowed)
    for key in ("causal", "allow_leak"):
        if node.get(key) is not None:
            check_bool(f"method.{method}.{key}", node[key])
    return CallOptions(node.get("layout"), node.get("causal"), bool(node.get("allow_leak")))


def passes_of(value: Any, protocol: ProtocolConfig) -> tuple[str, ...]:
    """The passes to time, in the order of the schema. Raises ConfigError on an unknown pass or one without a budget."""
    chosen = [value] if isinstance(value, str) else value
    if not isinstance(chosen, list) or not chosen:
        raise ConfigError(f"passes={value} must name at least one of {_PASS_NAMES}")
    for name in chosen:
        check_name("passes", name, Pass)
        if name not in protocol.budget_s:
            raise ConfigError(f"protocol.budget_s has no budget for {name}; set +protocol.budget_s.{name}=SECONDS")
    return tuple(str(p) for p in Pass if str(p) in chosen)


def stages_of(value: Any, passes: tuple[str, ...]) -> bool:
    """True if stages are timed. Raises ConfigError unless it is true or false, with the forward pass timed as well."""
    check_bool("stages", value)
    if value and Pass.FORWARD not in passes:
        raise ConfigError(f"stages=true needs the forward pass, whose stages they are; passes={list(passes)} lacks it")
    return bool(value)


def check_shape(shape: dict[str, Any], is_causal: Any, seed: Any, method: str, hyper: dict[str, Any]) -> None:
    """Raise ConfigError unless sizes are positive, heads fit, and the method's known sizes are positive or null."""
    for name, value in shape.items():
        check_int(f"shape.{name}", value, low=1)
    if shape["heads"] % shape["kv_heads"]:
        raise ConfigError(f"shape.kv_heads={shape['kv_heads']} must divide shape.heads={shape['heads']}")
    check_bool("is_causal", is_causal)
    check_int("seed", seed, low=0)
    for name, kind in PARAMETER_TYPES.items():
        if hyper.get(name) is not None:
            key = f"method.{method}.{name}"
            check_int(key, hyper[name], low=1) if kind is int else check_text(key, hyper[name])
    if hyper.get("seed") is not None:
        check_int(f"method.{method}.seed", hyper["seed"], low=0)


def check_int(key: str, value: Any, *, low: int) -> None:
    """Raise ConfigError unless value is an integer of at least low."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{key}={value} must be an integer of at least {low}")
    if value > MAX_INT:
        raise ConfigError(f"{key}={value} must be an integer of at most {MAX_INT}")


def check_bool(key: str, value: Any) -> None:
    """Raise ConfigError unless value is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key}={value} must be true or false")


def check_text(key: str, value: Any) -> None:
    """Raise ConfigError unless value is a name: text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key}={value} must be text")


def check_number(key: str, value: Any, *, positive: bool = True) -> None:
    """Raise ConfigError unless value is a finite number, positive or at least zero."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _ENDLESS
    if not good or (positive and value == 0):
        raise ConfigError(f"{key}={value} must be a {'positive' if positive else 'non-negative'} number")
