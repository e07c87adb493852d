"""Records as the plain JSON data of which journals and the messages of workers are made, and back."""

from __future__ import annotations

import dataclasses
import marshal
import math
from functools import lru_cache
from typing import Any

from hyperbench.store.plain_data import decoded, numbers, short
from hyperbench.store.schema import ErrorRow, Pass, Point, Record, Status, Timing

_KINDS: dict[str, type[Any]] = {"timing": Timing, "error": ErrorRow}
_NON_FINITE = ("inf", "-inf", "nan")
#: Kind of a stage in journals written before a stage became a timing.
_OLD_STAGE = "stage"


def to_json(record: Record) -> dict[str, Any]:
    """A record as plain JSON data with its kind; enumerations become their values, infinities and NaN their names."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
    data = {"kind": kind, **dataclasses.asdict(record)}
    for name, value in data.items():
        if isinstance(value, float) and not math.isfinite(value):
            data[name] = str(value)
    return data


def from_json(data: Any) -> Record:
    """The inverse of `to_json`. Raises ValueError on anything that is no record in a possible state."""
    if not isinstance(data, dict):
        raise ValueError(f"a record is a mapping, not {short(data)}")
    fields = dict(data)
    if isinstance(fields.get("point"), dict):
        fields["point"] = _point(marshal.dumps(fields["point"], 2))
    kind = fields.pop("kind", None)
    if kind == _OLD_STAGE:
        kind, fields = "timing", _from_old_stage(fields)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"unknown record kind {short(kind)}; allowed: {', '.join(_KINDS)}")
    cls: Any = _KINDS[kind]
    for name in numbers(cls):
        if fields.get(name) in _NON_FINITE:
            fields[name] = float(fields[name])
    record: Record = decoded(cls, fields)
    return record


@lru_cache(maxsize=4096)
def _point(data: bytes) -> Any:
    """A point from its marshalled fields: the records of a point share one, since most of a journal is points."""
    return decoded(Point, marshal.loads(data))


def _from_old_stage(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a timing from those of an old record of a stage, which had a median with or without samples."""
    median_ms = fields.pop("median_ms", None)
    if not fields.get("stage"):
        raise ValueError("a record of a stage needs its name")
    samples_ms = fields.pop("samples_ms", None) or ([] if median_ms is None else [median_ms])
    defaults = {"pass_": Pass.FORWARD, "protocol": "", "round": 0, "status": Status.OK}
    return {**defaults, **fields, "samples_ms": samples_ms}
